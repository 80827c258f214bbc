"""The operator's console: what can be asked of a running service, and who answers. Looked after by the master's loop.

Puts the control socket together with the observer, which knows how the service is, the inquiry, which asks workers for
their stacks, and the exporter, a process that serves metrics. Commands it passes on to the pool.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from poolserver import log, process, rendezvous, stacks
from poolserver.address import parse
from poolserver.binding import bind_all
from poolserver.companion import Companion
from poolserver.control import ControlSocket
from poolserver.errors import ConfigError, PoolserverError, SystemRefusedError
from poolserver.estate import PassedFile
from poolserver.events import Event
from poolserver.heir import Heir
from poolserver.inquiry import Inquiry
from poolserver.listener import Listener, Options
from poolserver.metrics import Observer
from poolserver.pool import Pool
from poolserver.privileges import Account
from poolserver.process import Process
from poolserver.remote import Server
from poolserver.scoreboard import Berth
from poolserver.sections import Config
from poolserver.snapshot import Snapshot
from poolserver.upgrader import Passed

_log = logging.getLogger("poolserver")

MAX_PATH_BYTES = 107
"""Source: unix(7), sun_path."""

CONTROL_BACKLOG = 128
"""Connections that the kernel keeps between two turns of the loop."""

Find = Callable[[str, Options], Listener | None]
"""The listener that another master has passed to us for what is called so, if it has."""

METRICS_BACKLOG = 128
"""Scrapes and probes that wait, while the exporter is being started again, for one."""


class Supervisor(Protocol):
    """What it asks of the master."""

    def roster(self) -> Mapping[int, tuple[int, Berth]]: ...
    def signal(self, serial: int, signum: int) -> None: ...


class Console:
    """Runs in the master, from before its first fork. ``listeners`` are its own, not the service's."""

    def __init__(self, settings: Config, asked: ControlSocket, metrics: Listener | None) -> None:
        self.listeners: Sequence[Listener] = [each for each in (asked.listener, metrics) if each is not None]
        self._name = settings.server.service_name
        self._control_key = _control_key(settings.control.socket, self._name)
        self._socket = asked
        self._metrics = metrics
        self._metrics_url = settings.metrics.bind
        self._inquiry = Inquiry()
        self._examined_slots: dict[int, int] = {}
        self._exporter: Companion | None = None

    def connect(self, pool: Pool, master: Supervisor, observer: Observer, *, is_held: bool = False) -> None:
        """From here on questions are answered, and the exporter runs; the loop that takes them is about to begin.

        ``is_held``: only from ``begin`` on, since another master answers as yet.

        Raises:
            SystemRefusedError: the exporter cannot be forked.
        """
        self._pool = pool
        self._master = master
        self._observer = observer
        self._inquiry.send = master.signal
        self._inquiry.on_done = self._told_stacks
        self._inquiry.on_examined = self._examined
        self._socket.serve(
            {
                "who": lambda _asker: observer.who(),
                "status": lambda _asker: {"status": self._snapshot()},
                "stacks": self._ask_stacks,
            }
        )
        if is_held:
            self._socket.hold()
        elif self._metrics is not None:
            self._exporter = Companion("metrics", self._fork_exporter, may_restart=not pool.policy.resident)
            self._exporter.start()

    def begin(self) -> None:
        """The master before has let go: answer now. The exporter starts in the loop's next turn, or when it can."""
        for listener in self.listeners:
            listener.is_lent = False
        self._socket.begin()
        if self._metrics is not None:
            self._exporter = Companion("metrics", self._fork_exporter)

    def pass_control(self, passed: Passed) -> PassedFile | None:
        """The control socket, for another master."""
        found, on_taken = self._socket.listener, self._socket.hand_over
        return passed.file(found.socket.fileno(), self._control_key, on_taken, found.file) if found else None

    def pass_metrics(self, passed: Passed) -> PassedFile | None:
        """The metrics' listener likewise."""
        found = self._metrics
        return passed.file(found.socket.fileno(), self._metrics_url, self._end_metrics) if found else None

    def worker_pipe(self, serial: int) -> contextlib.AbstractContextManager[int]:
        """The descriptor on which a worker that is about to be forked tells its stacks."""
        return self._inquiry.pipe(serial)

    def answer(self, asker: int, ok: bool, reason: str) -> None:
        """Tell an asker whether what it asked for has happened, and if not, why."""
        self._socket.answer(asker, ok, reason)

    def examine(self, serial: int) -> None:
        """Have the threads of a worker that does not answer by itself written to the log."""
        if self._inquiry.examine(serial, time.monotonic()):
            self._examined_slots[serial] = self._pool.workers[serial].slot  # it may be buried when its answer comes

    def last_words(self, serial: int) -> str:
        """The stack that a worker left which has crashed, or nothing."""
        return self._inquiry.last_words(serial)

    def interests(self) -> dict[int, int]:
        return {fd: events for part in self._parts() for fd, events in part.interests().items()}

    def deadline(self) -> float:
        return min(part.deadline() for part in self._parts())

    def attend(self, ready: Collection[int], now: float) -> list[Event]:
        return [event for part in self._parts() for event in part.attend(ready, now)]

    def close_in_child(self) -> None:
        """In a forked worker: its copies of what is the master's."""
        for part in self._parts():
            part.close_in_child()
        if self._metrics is not None:
            self._metrics.socket.close()

    def close(self) -> None:
        """The end of the service; the control socket is closed by whoever opened it."""
        self._inquiry.close()
        if self._exporter is not None:
            self._exporter.close()

    def _end_metrics(self) -> None:
        """Another master's exporter answers whoever asks from here on."""
        if self._exporter is not None:
            self._exporter.close()
            self._exporter = None
        if self._metrics is not None:
            self._metrics.lend()
            self._metrics.close()
            self._metrics = None

    def _parts(self) -> Iterator[ControlSocket | Inquiry | Companion]:
        yield self._inquiry
        yield self._socket
        if self._exporter is not None:
            yield self._exporter

    def _snapshot(self) -> Snapshot:
        return self._observer.snapshot(self._pool, self._master.roster(), time.monotonic())

    def _ask_stacks(self, asker: int) -> Mapping[str, object] | None:
        if not self._pool.policy.resident:
            self._inquiry.begin(asker, time.monotonic())
            return None
        return self._stacks(dict.fromkeys(self._master.roster(), stacks.text(None) + stacks.END.decode()))

    def _examined(self, serial: int, text: str) -> None:
        what = "where its threads are" if text else "it is stopped, and cannot tell where its threads are"
        _log.error("worker %d: %s", self._examined_slots.pop(serial), what, extra={"details": text})

    def _told_stacks(self, asker: int, texts: Mapping[int, str]) -> None:
        self._socket.answer(asker, True, "", **self._stacks(texts))

    def _stacks(self, texts: Mapping[int, str]) -> dict[str, object]:
        roster = self._master.roster()
        told = [
            {"slot": worker.slot, "pid": roster[serial][0], "text": texts[serial]}
            for serial, worker in self._pool.workers.items()
            if serial in texts and serial in roster
        ]
        return {"stacks": told, "status": self._snapshot()}

    def _fork_exporter(self) -> Process:
        """It asks for snapshots on a connection of its own, as any client does."""
        assert self._metrics is not None
        master_pid, listener = os.getpid(), self._metrics.socket
        ours, theirs = socket.socketpair()

        def body(report_fd: int) -> int:
            log.introduce("metrics", self._name)
            process.keep_only([report_fd, listener.fileno(), theirs.fileno(), log.present()[0].fileno()])
            exporter = importlib.import_module("poolserver.exporter")
            return int(exporter.run(master_pid, listener, theirs))

        with theirs:
            try:
                forked = process.fork(body)
            except BaseException:
                ours.close()
                raise
        self._socket.adopt(ours)
        return forked


@contextlib.contextmanager
def control_socket(
    configured: str,
    name: str,
    mode: int,
    environ: Mapping[str, str],
    owner: Account | None = None,
    find: Find = lambda _path, _options: None,
) -> Iterator[ControlSocket]:
    """A control socket for the block; its file is removed after it. A stale file is replaced, a live server never.

    Args:
        configured: Its path; empty = the one that the server's name has by default. Where that cannot be used, as on a
            read-only disk, nobody can connect, which is said: the service is worth more.
        name: The server's.
        mode: The file's permissions.
        environ: Where default paths begin.
        owner: Whose its file is to be; None = ours.
        find: Gives the socket that another master has passed to us.

    Raises:
        SystemRefusedError: a server answers there already, which is named; or the configured path cannot be used.
    """
    path = Path(configured) if configured else rendezvous.default_path(name, environ, os.geteuid())
    options = Options(backlog=CONTROL_BACKLOG, unix_mode=mode, owner=owner)
    control = ControlSocket(
        find(_control_key(configured, name), options) or _bound(path, options, is_default=not configured)
    )
    try:
        yield control
    finally:
        control.close()


def _control_key(configured: str, name: str) -> str:
    """What is the same for a master and its heir, whose default path may be another: it may have given up root."""
    return configured or f"the default of {name}"


def _bound(path: Path, options: Options, *, is_default: bool) -> Listener | None:
    try:
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise SystemRefusedError(f"{path} is longer than the {MAX_PATH_BYTES} bytes that a socket's path may have")
        if is_default:
            rendezvous.make_folder(path.parent, for_another=options.owner is not None)
        (listener,) = bind_all([f"unix:{path}"], options)
    except (OSError, PoolserverError) as error:
        if who := _owner_of(path):
            text = f"{who} answers at {path} already: give this one another server.name, or its own control.socket"
            raise SystemRefusedError(text) from error
        if not is_default:
            raise SystemRefusedError(f"control.socket: {error}") from error
        _log.warning("no control socket, so signals alone are obeyed; set control.socket: %s", error)
        return None
    return listener


def _owner_of(path: Path) -> str:
    try:
        with Server.at(path) as server:
            return str(server)
    except PoolserverError:
        return ""  # the reason is another, or who holds it is no server of ours


def _nobody(_name: str, _options: Options) -> Listener | None:
    """No master has passed us anything."""
    return None


@contextlib.contextmanager
def opened(settings: Config, environ: Mapping[str, str], heir: Heir | None = None) -> Iterator[Console]:
    """The console of a service, for the block. An ``heir`` has the sockets of the master before.

    Raises:
        ConfigError: the metrics' address is none, or the extra is missing.
        SystemRefusedError: it cannot be bound; or as ``control_socket``.
    """
    name, section = settings.server.service_name, settings.control
    owner = Account.named(settings.server.user, settings.server.group)
    find = heir.control if heir is not None else _nobody
    controlled = control_socket(section.socket, name, section.mode, environ, owner, find)
    with controlled as asked, _metrics(settings, heir.metrics if heir is not None else _nobody) as metrics:
        console = Console(settings, asked, metrics)
        try:
            yield console
        finally:
            console.close()


@contextlib.contextmanager
def _metrics(settings: Config, find: Find) -> Iterator[Listener | None]:
    if not settings.metrics.bind:
        yield None
        return
    check_metrics(settings)
    url, options = settings.metrics.bind, Options(backlog=METRICS_BACKLOG)
    bound = find(url, options) or bind_all([url], options)[0]
    _log.info("metrics on %s", bound.url)
    try:
        yield bound
    finally:
        bound.close()


def check_metrics(settings: Config) -> None:
    """Raises ConfigError where metrics are asked for and cannot be served."""
    url = settings.metrics.bind
    if not url:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError("metrics.bind needs prometheus-client: pip install 'poolserver[metrics]'")
    try:
        found = parse(url)
    except ConfigError as error:
        raise ConfigError(str(error).replace("server.bind", "metrics.bind")) from None
    if len(found) != 1 or not found[0].is_stream:
        raise ConfigError(f"metrics.bind: {url!r}: want one such as tcp://127.0.0.1:9109")
