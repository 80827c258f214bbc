"""From a configuration to a running service: what ``poolserver run`` and ``serve()`` do.

Puts listeners, scoreboard, pool and master together, and says how a worker is started.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGCHLD
from typing import Literal

from poolserver import config, control, handlers, log, process, shortage, signals, tls
from poolserver.admission import Limits
from poolserver.commands import MASTER_SIGNALS, Command
from poolserver.config import Loaded
from poolserver.control import ControlSocket
from poolserver.crew import Crew
from poolserver.door import Register
from poolserver.errors import ConfigError, UsageError
from poolserver.events import Start
from poolserver.handover import Pairs
from poolserver.listener import Listener, Options, bind_all
from poolserver.master import Master, Spawn, WorkerHandle
from poolserver.metrics import Observer
from poolserver.networks import Networks
from poolserver.pool import Pool
from poolserver.resident import Resident
from poolserver.scoreboard import Berth, Scoreboard
from poolserver.sections import Config
from poolserver.states import Policy
from poolserver.station import Station, Terms
from poolserver.tally import Tally
from poolserver.worker import Seat, Worker

_log = logging.getLogger("poolserver")


def serve(
    handler: str | Callable[..., object],
    bind: str | Sequence[str] = "tcp://127.0.0.1:20000",
    workers: int | Literal["auto"] = "auto",
    threads: int = 8,
    **others: dict[str, object],
) -> None:
    """Serve ``handler`` as ``poolserver run`` does, until a signal ends it. Call it from the main thread.

    Args:
        handler: ``"package.module:attribute"``, or the class or function itself.
        bind: One bind URL or several.
        workers: Worker processes; ``"auto"`` = the cores available, 0 = everything in this process.
        threads: Lanes in each worker.
        others: The configuration's other sections, as ``timeouts={"graceful": 5}``.

    Raises:
        ConfigError: the configuration or the handler cannot be used.
        SystemRefusedError: an address cannot be bound, or no worker forked.
    """
    given = {name: dict(keys) for name, keys in others.items()}
    spec = handler if isinstance(handler, str) else f"{handler.__module__}:{handler.__qualname__}"
    urls = [bind] if isinstance(bind, str) else list(bind)
    given["server"] = {"handler": spec, "bind": urls} | given.get("server", {})
    given["pool"] = {"workers": workers, "threads": threads} | given.get("pool", {})
    run(config.from_sections(given), None if isinstance(handler, str) else handler)


def run(loaded: Loaded, handler: Callable[..., object] | None = None, *, is_whole_process: bool = False) -> None:
    """Serve until told to stop.

    Args:
        loaded: The configuration.
        handler: The class or function, where the caller has it already.
        is_whole_process: Nothing else goes on in this process, before or after.

    Raises:
        ConfigError: the configuration or the handler cannot be used.
        SystemRefusedError: an address cannot be bound, or no worker forked.
        PoolserverError: it failed while running.
    """
    settings = loaded.config
    if not (settings.server.handler or settings.server.server_class):
        raise UsageError("no handler: name one as package.module:attribute, or set server.handler")
    log.keep_standard_descriptors()
    _change_directory(settings.server.chdir)
    log.configure(settings.log.level, settings.log.file)
    log.introduce("master", settings.server.service_name)
    shortage.raise_limit()
    if settings.pool.worker_count == 0:
        _load(settings, handler)  # imported while TERM and INT still simply end us: an import may hang
    inbox: signals.Inbox[Command] = signals.Inbox.open()
    meanings: dict[int, Command | None] = dict(MASTER_SIGNALS)
    if os.getpid() == 1:
        meanings[SIGCHLD] = Command.REAP
    taken = signals.taken(inbox, meanings, is_final=is_whole_process)
    where = settings.control
    controlled = control.opened(where.socket, settings.server.service_name, where.mode, config.environment())
    # The control socket is opened first and closed last: who asked for a stop sees its end when all is over.
    with contextlib.closing(inbox), controlled as asked, taken, listening(settings) as listeners:
        _supervise(settings, handler, inbox, listeners, asked)


def listener_options(settings: Config) -> Options:
    """The narrow values that a listener needs."""
    section = settings.socket
    return Options(
        backlog=section.backlog,
        reuse_address=section.reuse_address,
        nodelay=section.nodelay,
        keepalive=section.keepalive,
        user_timeout=section.user_timeout,
        ipv6_only=section.ipv6_only,
        defer_accept=section.defer_accept,
        receive_buffer=section.receive_buffer,
        unix_mode=section.unix_mode,
        idle_timeout=settings.timeouts.idle,
    )


def terms_of(settings: Config, backlog: int, service_interval: float = 0.5) -> Terms:
    """The narrow values that a crew needs. Raises ConfigError where the certificate cannot be used."""
    timeouts, parking = settings.timeouts, settings.parking
    return Terms(
        limits=Limits.parse(**settings.limits.model_dump()),
        backlog=backlog,
        graceful_timeout=timeouts.graceful,
        handler_timeout=timeouts.handler,
        first_byte_timeout=timeouts.first_byte,
        head_timeout=timeouts.head,
        keep_alive=parking.keep_alive,
        wait_for=parking.wait_for,
        max_head=parking.max_head,
        max_parked=parking.max_parked,
        proxy_mode=settings.proxy_protocol.mode,
        proxy_trusted=Networks.parse(settings.proxy_protocol.trusted),
        proxy_timeout=settings.proxy_protocol.timeout,
        tls=tls.context_for(settings.server.bind, **settings.tls.model_dump(exclude={"handshake_timeout"})),
        handshake_timeout=settings.tls.handshake_timeout,
        service_interval=service_interval,
    )


@contextlib.contextmanager
def listening(settings: Config) -> Iterator[list[Listener]]:
    """The listeners, bound; closed at the end, and the files of Unix sockets removed."""
    listeners = bind_all(settings.server.bind, listener_options(settings))
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


@contextlib.contextmanager
def forking_spawn(
    name: str,
    listeners: Sequence[Listener],
    make_stations: Callable[[], list[Station]],
    board: Scoreboard,
    inbox: signals.Inbox[Command],
    terms: Terms,
    register: Register,
    asked: ControlSocket | None = None,
) -> Iterator[Spawn]:
    """Workers that are forked. The lifeline's write end is this process's alone: each child closes its copy at once,
    or it would never report the master's death; and its copies of inbox and control socket, which are the master's."""
    lifeline_read, lifeline_write = os.pipe2(os.O_CLOEXEC)
    pairs = Pairs.open()

    def spawn(start: Start, berth: Berth, siblings: Sequence[WorkerHandle]) -> WorkerHandle:
        def body(report_fd: int) -> int:
            os.close(lifeline_write)
            inbox.close()
            if asked is not None:
                asked.close_in_child()
            for sibling in siblings:
                sibling.close()
            worker = Worker(
                Seat(start.slot, name, lifeline_read, report_fd),
                [*listeners, asked.listener] if asked is not None else listeners,  # the last to leave removes its file
                make_stations,
                board.quarters(berth),
                terms,
                register,
                pairs,
            )
            return worker.run()

        return process.fork(body)

    try:
        yield spawn
    finally:
        os.close(lifeline_read)
        os.close(lifeline_write)
        pairs.close()


def resident_spawn(
    make_stations: Callable[[], list[Station]],
    board: Scoreboard,
    terms: Terms,
    register: Register,
    *,
    on_released: Callable[[], None] = lambda: None,
) -> Spawn:
    """The one worker that is this process. ``on_released``: its lanes need the stream listeners no more."""

    def spawn(_start: Start, berth: Berth, _siblings: Sequence[WorkerHandle]) -> WorkerHandle:
        resident = Resident()
        crew = Crew(
            make_stations(),
            board.quarters(berth),
            terms,
            register,
            on_stop_asked=resident.ask_stop,
            on_released=on_released,
        )
        resident.start(crew)
        return resident

    return spawn


def _supervise(
    settings: Config,
    handler: Callable[..., object] | None,
    inbox: signals.Inbox[Command],
    listeners: list[Listener],
    asked: ControlSocket | None,
) -> None:
    terms = terms_of(settings, settings.socket.backlog)

    def make_stations() -> list[Station]:
        return handlers.stations(_load(settings, handler), listeners, terms)

    board, register = Scoreboard.create(), Register.create()
    timeouts, workers = settings.timeouts, settings.pool.worker_count
    spawning: contextlib.AbstractContextManager[Spawn]
    if workers == 0:
        spawning = contextlib.nullcontext(
            resident_spawn(
                make_stations,
                board,
                terms,
                register,
                on_released=lambda: _close_streams(listeners),
            )
        )
    else:
        name = settings.server.service_name
        spawning = forking_spawn(name, listeners, make_stations, board, inbox, terms, register, asked)
    policy = Policy(max(1, workers), timeouts.boot, timeouts.graceful, resident=workers == 0)
    with process.frozen_heap(), spawning as spawn:
        pool = Pool(policy)
        master = Master(
            pool,
            spawn,
            inbox,
            board,
            threads=settings.pool.threads,
            on_ready=lambda: log.announce(_ready_line(listeners, policy.workers, settings.pool.threads)),
            on_close_door=lambda: _close_door(listeners, has_lanes=policy.resident),
            register=register,
            tally=Tally(functools.partial(register.worst, terms.limits)),
            attendants=[asked] if asked is not None else [],
            on_answer=asked.answer if asked is not None else lambda _asker, _ok, _reason: None,
        )
        if asked is not None:
            observer = Observer(settings.server.service_name, settings.pool.threads, terms, listeners, register, board)
            asked.serve(
                {"status": lambda _asker: {"status": observer.snapshot(pool, master.roster(), time.monotonic())}}
            )
        master.run()
    always = ("accepted", "served", "errors", "cut")
    totals = {name: count for name, count in board.all_totals().items() if count or name in always}
    _log.info("stopped: %s", ", ".join(f"{count} {name}" for name, count in totals.items()))


def _load(settings: Config, handler: Callable[..., object] | None) -> handlers.Service:
    section = settings.server
    if handler is None:
        return handlers.load(section.handler, section.server_class, [Path(path) for path in section.pythonpath])
    return handlers.service_of(handler, section.handler, section.server_class)


def _ready_line(listeners: Sequence[Listener], workers: int, threads: int) -> str:
    urls = ", ".join(listener.url for listener in listeners)
    return f"ready on {urls} (pid {os.getpid()}, {workers} workers x {threads} lanes)"


def _close_door(listeners: Sequence[Listener], *, has_lanes: bool) -> None:
    """Let nobody in any more. Without lanes here, our copies close too: the last worker to have served its queue then
    frees the address, and newcomers are refused instead of waiting for the longest conversation to end."""
    for listener in listeners:
        listener.close_door()
        if not has_lanes:
            listener.close()


def _close_streams(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        if listener.is_stream:
            listener.close()


def _change_directory(path: str) -> None:
    if path:
        try:
            os.chdir(path)
        except OSError as error:
            raise ConfigError(f"server.chdir: cannot enter {path}: {error.strerror}") from error
