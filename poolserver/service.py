"""From a configuration to a running service: what ``poolserver run`` and ``serve()`` do.

Puts listeners, scoreboard, pool and master together, and says how a worker is started.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from signal import SIGCHLD
from typing import Literal

from poolserver import config, console, generation, handlers, log, process, shortage, signals, variables
from poolserver.binding import Group
from poolserver.commands import MASTER_SIGNALS, Command
from poolserver.config import Loaded
from poolserver.console import Console
from poolserver.door import Register
from poolserver.errors import UsageError
from poolserver.handover import Pairs
from poolserver.heir import Heir
from poolserver.herald import Health, Herald
from poolserver.legacy import Legacy
from poolserver.listener import Listener, Options
from poolserver.master import Master
from poolserver.metrics import Observer
from poolserver.parties import Attendant, Spawn
from poolserver.pool import Pool
from poolserver.portions import allowance_of, policy_of
from poolserver.recycling import Recycler
from poolserver.scoreboard import Berth, Scoreboard
from poolserver.sections import Config
from poolserver.spawning import ResidentSpawn, forking_spawn
from poolserver.states import WorkerState
from poolserver.succession import Succession
from poolserver.surroundings import Surroundings, surround
from poolserver.tally import Tally
from poolserver.upgrader import Launch, Upgrader
from poolserver.vigil import Vigil
from poolserver.worker import never_accepted

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
    run(lambda: config.from_sections(given), None if isinstance(handler, str) else handler)


def run(
    read: Callable[[], Loaded], handler: Callable[..., object] | None = None, *, is_whole_process: bool = False
) -> None:
    """Serve until told to stop.

    Args:
        read: Gives the configuration; called again at each reload.
        handler: The class or function, where the caller has it already.
        is_whole_process: Nothing else goes on in this process, before or after.

    Raises:
        ConfigError: the configuration or the handler cannot be used.
        SystemRefusedError: an address cannot be bound, or no worker forked.
        PoolserverError: it failed while running.
    """
    heir = Heir.arrived()
    launch = Launch.noted(variables.environment())
    with heir or contextlib.nullcontext():
        loaded = read()
        settings = loaded.config
        if not (settings.server.handler or settings.server.server_class):
            raise UsageError("no handler: name one as package.module:attribute, or set server.handler")
        is_final = is_whole_process or settings.server.daemonize
        serve_it = functools.partial(_serve, loaded, read, handler, launch, is_final=is_final)
        surround(settings.server, serve_it, heir)


def _serve(
    loaded: Loaded,
    read: Callable[[], Loaded],
    handler: Callable[..., object] | None,
    launch: Launch,
    surroundings: Surroundings,
    *,
    is_final: bool,
) -> None:
    account = surroundings.account
    settings = loaded.config
    environ = variables.environment()
    journal = environ.get("JOURNAL_STREAM", "")
    log.configure(settings.log.level, settings.log.file, settings.log.format, journal, account, settings.log.access)
    log.introduce("master", settings.server.service_name)
    if is_final:
        log.keep_prints_from_waiting()
    heir = surroundings.heir
    if heir is not None:
        log.present()[0].prove("log opened for an upgrade")
    shortage.raise_limit()
    # While TERM and INT still simply end us, since an import may hang; but not as root that is to become somebody else.
    served = _loaded_here(settings, handler) if account is None else None
    inbox: signals.Inbox[Command] = signals.Inbox.open()
    meanings: dict[int, Command | None] = dict(MASTER_SIGNALS)
    if os.getpid() == 1:
        meanings[SIGCHLD] = Command.REAP
    taken = signals.taken(inbox, meanings, is_final=is_final)
    operated = console.opened(settings, environ, heir)
    inherited = heir.groups if heir is not None else _nothing
    # The control socket is opened first and closed last: who asked for a stop sees its end when all is over.
    with (
        contextlib.closing(inbox),
        operated as desk,
        taken,
        Succession(loaded, read, served, surroundings.manager, inherited) as succession,
    ):
        if heir is not None:
            heir.lend(succession.listeners())
        if account is not None:
            account.become()
            succession.preload(_loaded_here(settings, handler))
        _supervise(succession, inbox, desk, surroundings, launch)


def _loaded_here(settings: Config, handler: Callable[..., object] | None) -> handlers.Service | None:
    """What is served, where it is imported in this process, once for all; None: each worker imports it."""
    section = settings.server
    if handler is not None:
        return handlers.service_of(handler, section.handler, section.server_class)
    if settings.pool.worker_count == 0 or section.preload:
        return generation.load(settings)
    return None


def _nothing(_urls: Sequence[str], _options: Options) -> Sequence[Group]:
    """No master was before us."""
    return ()


def _supervise(
    succession: Succession, inbox: signals.Inbox[Command], desk: Console, surroundings: Surroundings, launch: Launch
) -> None:
    manager, heir = surroundings.manager, surroundings.heir
    board, register = Scoreboard.create(), Register.create()
    pool = Pool(policy_of(succession.settings))
    pairs = Pairs.open() if heir is None or pool.policy.resident else heir.pairs()
    ledger = _Ledger(board)
    observer = _observer(succession, register, board)
    legacy = Legacy(succession, desk, surroundings.pidfile, manager, pairs, pool, board, register)
    on_departed = functools.partial(ledger.close_door, succession, has_lanes=False)
    upgrader = Upgrader(succession.present.name, launch, manager, legacy, on_departed)
    if heir is not None:
        heir.endow(pool, board, register)
    herald = Herald(
        manager,
        pool,
        Health(lambda: succession.settings.timeouts.worker),
        lambda now: observer.snapshot(pool, master.roster(), now),
    )
    with process.frozen_heap(), _spawning(succession, board, register, inbox, desk, pairs) as spawn:
        master = Master(
            pool,
            spawn,
            inbox,
            board,
            on_ready=_on_ready(succession, desk, surroundings),
            on_close_door=lambda: ledger.close_door(succession, has_lanes=pool.policy.resident),
            register=register,
            tally=Tally(lambda count: register.worst(succession.present.terms.limits, count)),
            succession=succession,
            upgrader=upgrader,
            attendants=[
                *_watchers(succession, board, lambda: (pool, master)),
                desk,
                upgrader,
                *([heir] if heir is not None else []),
                *([herald] if manager.notify_address else []),
            ],
        )
        master.report_to(desk)
        desk.connect(pool, master, observer, is_held=heir is not None)
        try:
            master.run()
        finally:
            upgrader.leave()
        if pool.policy.resident:
            succession.present.leave()
    _log.info("stopped: %s", ledger)


def _watchers(
    succession: Succession, board: Scoreboard, supervisors: Callable[[], tuple[Pool, Master]]
) -> list[Attendant]:
    """Who looks after workers that have served enough, and those that hang."""
    return [
        Recycler(lambda: allowance_of(succession.settings), lambda: stayers(*supervisors()), board),
        Vigil(
            lambda: succession.settings.timeouts.worker,
            lambda: succession.settings.timeouts.handler,
            lambda: accepting(*supervisors()),
            board,
        ),
    ]


def _spawning(
    succession: Succession,
    board: Scoreboard,
    register: Register,
    inbox: signals.Inbox[Command],
    desk: Console,
    pairs: Pairs,
) -> contextlib.AbstractContextManager[Spawn]:
    """How workers are started: forked, or with everything in this process, in it."""
    if succession.settings.pool.worker_count:
        return forking_spawn(succession.of, board, inbox, register, desk, pairs=pairs, listeners=succession.listeners)
    on_released = functools.partial(_close_streams, succession.present.listeners, board)
    resident = ResidentSpawn(succession.present, board, register, on_released=on_released, is_reloadable=True)
    succession.followers.append(lambda: resident.take_over(succession.present.terms))
    return contextlib.nullcontext(resident)


def _on_ready(succession: Succession, desk: Console, surroundings: Surroundings) -> Callable[[], None]:
    """What is done once all workers accept: say so; where another master serves as yet, take over from it first."""
    heir, pidfile = surroundings.heir, surroundings.pidfile

    def announce() -> None:
        surroundings.announce(_ready_line(succession))

    def take() -> None:
        if pidfile is not None:
            pidfile.write()

    def be_alone() -> None:
        assert heir is not None
        desk.begin()
        succession.take_over(heir.stored)

    if heir is None:
        return announce
    heir.listeners, heir.on_take, heir.on_alone, heir.on_done = succession.listeners, take, be_alone, announce
    return heir.ready


def accepting(pool: Pool, master: Master) -> dict[int, tuple[int, Berth]]:
    """The workers that accept, by their serials."""
    workers = pool.workers
    places = master.roster().items()
    return {} if pool.policy.resident else {serial: place for serial, place in places if workers[serial].is_accepting}


def stayers(pool: Pool, master: Master) -> dict[int, tuple[int, Berth]]:
    """The workers that accept and are to stay, by their serials."""
    workers = pool.workers
    places = accepting(pool, master).items()
    return {
        serial: place
        for serial, place in places
        if workers[serial].state is WorkerState.READY and not workers[serial].is_outgoing
    }


_FINISHED = ("served", "errors")


class _Ledger:
    """Accounts for a stop."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._at_door: dict[str, int] = {}

    def close_door(self, succession: Succession, *, has_lanes: bool) -> None:
        succession.close_door(has_lanes=has_lanes)
        self._at_door = self._board.all_totals()

    def __str__(self) -> str:
        totals = self._board.all_totals()
        always = ("accepted", "served", "errors", "cut")
        counted = [f"{count} {name}" for name, count in totals.items() if count or name in always]
        if self._at_door:
            counted.append(f"{sum(totals[name] - self._at_door[name] for name in _FINISHED)} finished while draining")
        if self._board.never_accepted >= 0:
            counted.append(f"{self._board.never_accepted} never accepted")
        return ", ".join(counted)


def _observer(succession: Succession, register: Register, board: Scoreboard) -> Observer:
    """What status shows, of whichever generation is the present one."""
    first = succession.present
    observer = Observer(first.name, succession.settings.pool.threads, first.terms, first.listeners, register, board)

    def follow() -> None:
        present, settings = succession.present, succession.settings
        handler = settings.server.handler or settings.server.server_class
        observer.follow(settings.pool.threads, present.terms, present.listeners, handler)

    follow()

    succession.followers.append(follow)
    return observer


def _ready_line(succession: Succession) -> str:
    urls = ", ".join(listener.url for listener in succession.present.listeners)
    pool = succession.settings.pool
    return f"ready on {urls} (pid {os.getpid()}, {max(1, pool.worker_count)} workers x {pool.threads} lanes)"


def _close_streams(listeners: Sequence[Listener], board: Scoreboard) -> None:
    board.never_accepted = never_accepted(listeners)
    for listener in listeners:
        if listener.is_stream:
            listener.close()
