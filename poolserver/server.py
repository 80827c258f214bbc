"""The library front: mix-ins and ready-made classes that stand where ForkingMixIn and ThreadingMixIn stood.

    class Service(PreForkMixIn, socketserver.TCPServer):
        workers = 4

They put the same parts together as the daemon does (``service.py``), around one server object that its owner made.
"""

import contextlib
import functools
import gc
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from poolserver import config, datagrams, process, signals
from poolserver.adapter import LaneServer, pass_over_stock_mixins
from poolserver.commands import LIBRARY_SIGNALS, Command
from poolserver.crew import run_in_lane
from poolserver.door import Register
from poolserver.errors import ConfigError
from poolserver.generation import Generation
from poolserver.handlers import station
from poolserver.listener import Listener, Options, adopt
from poolserver.master import Master
from poolserver.parties import Spawn
from poolserver.pool import Pool
from poolserver.portions import allowance_of, terms_of
from poolserver.recycling import Recycler
from poolserver.scoreboard import Scoreboard
from poolserver.seating import PlainHTTPServer, refuse_wrapped
from poolserver.sections import Config, Timeouts
from poolserver.service import stayers
from poolserver.shared_socket import SharedSocket
from poolserver.socket_options import defer_accept
from poolserver.spawning import ResidentSpawn, forking_spawn
from poolserver.states import Policy
from poolserver.tally import Tally
from poolserver.values import available_cores

_log = logging.getLogger("poolserver")

_gate = threading.RLock()
"""Between ``serve_forever`` and ``shutdown`` of any server here, for the few lines that decide who came first.
Re-entrant, since a signal handler that calls ``shutdown`` may interrupt its own thread within it. Not taken in a
worker: another thread may have held it when the worker was forked."""


class _Run:
    """One call of ``serve_forever``, as ``shutdown`` sees it from elsewhere."""

    def __init__(self, inbox: signals.Inbox[Command]) -> None:
        self.pid = os.getpid()
        self.thread = threading.current_thread()
        self.inbox = inbox
        self.done = threading.Event()


class PoolMixIn(LaneServer):
    """What the two mix-ins share: one ``serve_forever`` at a time, ``shutdown`` from anywhere, nothing left changed.

    Class attributes: ``threads``, lanes in each process; ``timeouts``, ``limits``, ``parking`` and ``recycle``, the
    keys of the configuration's sections of those names (``{"graceful": 5}``). The rest is socketserver's own.
    """

    threads: int = 8
    timeouts: ClassVar[Mapping[str, object]] = {}
    limits: ClassVar[Mapping[str, object]] = {}
    recycle: ClassVar[Mapping[str, object]] = {}
    parking: ClassVar[Mapping[str, object]] = {}
    request_queue_size = 1024  # of 60 clients in 0.3 s, socketserver's 5 left some unanswered for ever

    _run: _Run | None = None
    _has_served = False
    _stop_before_start = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        pass_over_stock_mixins(cls)

    def server_bind(self) -> None:
        """As ever, but never with address reuse on UDP, where it lets another user take the port and its packets."""
        if self.socket_type == socket.SOCK_DGRAM and self.allow_reuse_address:
            _log.warning("allow_reuse_address is ignored on UDP: another user's process could bind the same port")
            self.allow_reuse_address = False
        super().server_bind()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until ``shutdown()``, or a signal when called from the main thread: TERM drains, INT and QUIT cut.

        ``service_actions()`` is called each ``poll_interval`` seconds where it is overridden; a stop needs no polling.

        Raises:
            PoolserverError: no worker could be started, or the listener was lost.
        """
        inbox: signals.Inbox[Command] = signals.Inbox.open()
        run = _Run(inbox)
        with _gate:
            if self._run is not None:
                inbox.close()
                raise RuntimeError("serve_forever() runs already: one call serves with all its threads")
            self._run = run  # first: a signal handler's shutdown() in between is posted to it
            is_stopped, self._stop_before_start = self._stop_before_start, False
            self._has_served = True
        try:
            if not is_stopped:
                self._serve(inbox, poll_interval)
        finally:
            with _gate:
                self._run = None
                inbox.close()
            run.done.set()

    def shutdown(self) -> None:
        """Stop serving: open connections have ``timeouts["graceful"]`` seconds, then they are cut.

        Waits for the end, except in a handler or in the thread that serves, which are themselves waited for. Before
        ``serve_forever`` it makes that return at once; after its end it does nothing.
        """
        run = self._run
        if run is None or run.pid == os.getpid():
            run = self._ask_to_stop()
        elif self.crew is not None:
            self.crew.ask_stop()
            return
        in_lane = self.crew is not None and self.crew.here.is_lane
        if run is not None and not in_lane and threading.current_thread() is not run.thread:
            run.done.wait()

    def server_close(self) -> None:
        """Close the listener; while serving, stop first."""
        if self._run is not None and self._run.pid == os.getpid():
            in_lane = self.crew is not None and self.crew.here.is_lane
            if not in_lane and threading.current_thread() is not self._run.thread:
                self.shutdown()
        super().server_close()

    def _ask_to_stop(self) -> _Run | None:
        with _gate:
            run = self._run
            if run is not None:
                run.inbox.post(Command.STOP)
            elif not self._has_served:
                self._stop_before_start = True
            return run

    def _serve(self, inbox: signals.Inbox[Command], poll_interval: float) -> None:
        settings = self._checked()
        timeouts = settings.timeouts
        terms = terms_of(settings, self.request_queue_size, poll_interval)
        options = Options(backlog=self.request_queue_size, idle_timeout=timeouts.idle)
        board, register = Scoreboard.create(), Register.create()
        allowance = allowance_of(settings)
        recycler = Recycler(lambda: allowance, lambda: stayers(pool, master), board)
        with _shared(self, options) as listener:
            pool = Pool(self._policy(timeouts))
            generation = Generation(type(self).__name__, [listener], lambda: [station(self, listener, terms)], terms)
            spawn = self._spawn(generation, board, register, inbox)
            with self._surroundings(), signals.taken(inbox, LIBRARY_SIGNALS), spawn as spawn_worker:
                master = Master(
                    pool,
                    spawn_worker,
                    inbox,
                    board,
                    on_ready=lambda: _log.debug("ready on %s", listener.url),
                    on_close_door=lambda: None,  # the socket is its owner's, who may serve again
                    register=register,
                    tally=Tally(functools.partial(register.worst, terms.limits)),
                    attendants=[recycler],
                )
                master.run()

    def _checked(self) -> Config:
        """Raises ConfigError for class attributes that cannot be used, before anything is started."""
        pool = {"workers": getattr(self, "workers", 1), "threads": self.threads}
        if pool["workers"] == 0:
            raise ConfigError("workers: must be at least 1, or auto; PreThreadMixIn serves in this process")
        refuse_wrapped(self.socket)
        sections = {
            "timeouts": self.timeouts,
            "limits": self.limits,
            "parking": self.parking,
            "recycle": self.recycle,
            "pool": pool,
        }
        return config.from_sections(sections, type(self).__name__).config

    def _policy(self, timeouts: Timeouts) -> Policy:
        raise NotImplementedError

    def _spawn(
        self, generation: Generation, board: Scoreboard, register: Register, inbox: signals.Inbox[Command]
    ) -> contextlib.AbstractContextManager[Spawn]:
        raise NotImplementedError

    def _surroundings(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class PreForkMixIn(PoolMixIn):
    """Stands where ForkingMixIn stood: ``workers`` processes are forked once, with ``threads`` lanes each, and replaced
    when they die. ``shutdown()`` in a handler stops the whole service."""

    workers: int | Literal["auto"] = "auto"

    active_children: set[int] | None = None
    """Read by programs that look after ForkingMixIn's children; ours are never theirs to wait for."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a lane: handle it here. For ``handle_request``: in a forked child, which is waited for."""
        if self.crew is not None:
            super().process_request(request, client_address)
        else:
            process.run_and_wait(lambda: self._handle_in_child(request, client_address))
            self.close_request(request)

    def _handle_in_child(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001 - as BaseServer does
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def _policy(self, timeouts: Timeouts) -> Policy:
        count = available_cores() if self.workers == "auto" else self.workers
        return Policy(count, timeouts.boot, timeouts.graceful, lanes=self.threads)

    def _spawn(
        self, generation: Generation, board: Scoreboard, register: Register, inbox: signals.Inbox[Command]
    ) -> contextlib.AbstractContextManager[Spawn]:
        return forking_spawn(lambda _number: generation, board, inbox, register)

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        if others := process.other_threads():
            _log.warning(
                "forking with other threads alive (%s): locks they hold stay locked in workers",
                ", ".join(others),
            )
        gc.collect()  # what its owner left, which may be large, is kept by a freeze
        with process.frozen_heap():
            yield


class PreThreadMixIn(PoolMixIn):
    """Stands where ThreadingMixIn stood: ``threads`` lanes in this process, made once. Never forks."""

    daemon_threads = True
    """Read by programs that set it for ThreadingMixIn; lanes never keep the interpreter from ending."""

    def handle_request(self) -> None:
        """Serve one request, in a lane of its own, which is waited for. ``timeout`` and ``handle_timeout`` as ever."""
        run_in_lane(super().handle_request)

    def _policy(self, timeouts: Timeouts) -> Policy:
        return Policy(1, timeouts.boot, timeouts.graceful, resident=True, lanes=self.threads)

    def _spawn(
        self,
        generation: Generation,
        board: Scoreboard,
        register: Register,
        inbox: signals.Inbox[Command],  # noqa: ARG002 - nobody is forked
    ) -> contextlib.AbstractContextManager[Spawn]:
        return contextlib.nullcontext(ResidentSpawn(generation, board, register))


@contextlib.contextmanager
def _shared(server: PoolMixIn, options: Options) -> Iterator[Listener]:
    """Put a ``SharedSocket`` in the place of the server's listener while lanes serve it, and all back as it was
    after."""
    own = server.socket
    timeout = own.gettimeout()
    listener = adopt(own, options)
    server.socket = datagrams.shared(own)
    try:
        yield listener
    finally:
        if listener.address.is_tcp:
            defer_accept(own, options.defer_accept)
        if isinstance(server.socket, SharedSocket):  # another one, if a handler broke the first
            server.socket.release()
        server.socket = own
        own.settimeout(timeout)


class PreForkTCPServer(PreForkMixIn, socketserver.TCPServer):
    """TCP, pre-forked."""

    allow_reuse_address = True


class PreForkUDPServer(PreForkMixIn, socketserver.UDPServer):
    """UDP, pre-forked."""


class PreForkUnixStreamServer(PreForkMixIn, socketserver.UnixStreamServer):
    """Unix stream sockets, pre-forked."""


class PreForkUnixDatagramServer(PreForkMixIn, socketserver.UnixDatagramServer):
    """Unix datagram sockets, pre-forked."""


class PreForkHTTPServer(PreForkMixIn, PlainHTTPServer):
    """``http.server.HTTPServer``, pre-forked."""


class PreThreadTCPServer(PreThreadMixIn, socketserver.TCPServer):
    """TCP, pre-threaded."""

    allow_reuse_address = True


class PreThreadUDPServer(PreThreadMixIn, socketserver.UDPServer):
    """UDP, pre-threaded."""


class PreThreadUnixStreamServer(PreThreadMixIn, socketserver.UnixStreamServer):
    """Unix stream sockets, pre-threaded."""


class PreThreadUnixDatagramServer(PreThreadMixIn, socketserver.UnixDatagramServer):
    """Unix datagram sockets, pre-threaded."""


class PreThreadHTTPServer(PreThreadMixIn, PlainHTTPServer):
    """``http.server.HTTPServer``, pre-threaded."""
