"""How one generation follows another: the configuration is read again, what is new bound, what went closed.

Runs in the master. A ``Succession`` owns the listeners of the present generation, of the one that is being prepared,
and those that went but are still served. It decides nothing: ``pool.py`` says when it is to do what.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from poolserver import handlers, log, sections
from poolserver.binding import Group, bind_groups, close_all
from poolserver.config import Loaded, effective
from poolserver.errors import ConfigError, PoolserverError
from poolserver.events import NotPrepared, Prepared
from poolserver.generation import Generation, load
from poolserver.listener import Listener, Options
from poolserver.portions import listener_options, policy_of, terms_of
from poolserver.sections import Config
from poolserver.station import Station, Terms
from poolserver.systemd import Manager

_log = logging.getLogger("poolserver")

_FIXED = frozenset(
    # What the process was made with, or what others know it by.
    {"server.name", "server.preload", "server.user", "server.group", "server.umask", "server.chdir", "server.pidfile"}
    | {"server.daemonize", "control.socket", "control.mode", "metrics.bind"}
    # What a socket is bound with.
    | {"socket.reuse_address", "socket.ipv6_only"}
)
"""Keys that no reload changes: it says so by name, and changes nothing."""

_CODE = frozenset({"server.handler", "server.server_class", "server.pythonpath"})
"""What was imported once for all with ``server.preload``."""

Inherit = Callable[[Sequence[str], Options], Sequence[Group]]

_RESIDENT_SECTIONS = ("limits", "log")
"""What a reload changes where everything runs in one process."""


@dataclass(frozen=True)
class _Logs:
    """Where a generation writes: the log, and the access log where that has a file of its own."""

    main: log.LineHandler
    access: log.LineHandler | None

    def following(self, before: sections.Log, after: sections.Log) -> "_Logs":
        """Those of the generation to come: what does not change stays open.

        Raises:
            ConfigError: one cannot be opened, or the log cannot be written.
        """
        is_same = before.format == after.format
        has_same_log, has_same_access = is_same and before.file == after.file, is_same and before.access == after.access
        access_handler = self.access if has_same_access else log.opened_access(after.access, after.format)
        try:
            handler = self.main if has_same_log else _tried(log.opened(after.file, after.format))
        except BaseException:
            if access_handler is not None and not has_same_access:
                access_handler.give_back()
            raise
        return _Logs(handler, access_handler)

    def close_but(self, kept: "_Logs") -> None:
        """Close those that are not among ``kept``."""
        for handler in (self.main, self.access):
            if handler is not None and handler not in (kept.main, kept.access):
                handler.give_back()


@dataclass(frozen=True)
class _Draft:
    """A generation with what it was made of."""

    loaded: Loaded
    groups: Sequence[Group]
    logs: "_Logs"
    generation: Generation

    @property
    def listeners(self) -> list[Listener]:
        return [listener for group in self.groups for listener in group.listeners]


class Succession:
    """The present generation, and the next one while a reload is under way.

    Use it as a context manager: the end closes every listener, and removes the files of Unix sockets.

    Args:
        loaded: The configuration of the first generation.
        reread: The same once more from wherever it came; may raise PoolserverError.
        service: What is served, where it was imported already (``server.preload``, a class in a library call).
        manager: The service manager, which may have passed listeners, and may keep ours for the next master.
        inherited: What the master before has left for these bind URLs.

    Raises:
        ConfigError: a bind URL cannot be parsed, or the certificate cannot be used.
        SystemRefusedError: an address cannot be bound.
    """

    def __init__(
        self,
        loaded: Loaded,
        reread: Callable[[], Loaded],
        service: handlers.Service | None,
        manager: Manager,
        inherited: Inherit = lambda _urls, _options: (),
    ) -> None:
        self.followers: list[Callable[[], None]] = []
        """Called at a commit: lanes in this process, and status, go on under the new terms."""
        self._reread = reread
        self._service = service
        self._manager = manager
        self._number = 1
        self._next: _Draft | None = None
        self._went: list[Listener] = []
        terms = terms_of(loaded.config, loaded.config.socket.backlog)  # may raise: before anything is bound
        urls, options = loaded.config.server.bind, listener_options(loaded.config)
        groups = bind_groups(urls, options, inherited(urls, options), manager.passed)
        self._present = self._drafted(loaded, terms, groups, _Logs(*log.present()))
        manager.drop_unclaimed()
        self._keep()

    def preload(self, service: handlers.Service | None) -> None:
        """Before anything is served: this was imported, once for all."""
        self._service = service

    @property
    def settings(self) -> Config:
        """The configuration of the present generation."""
        return self._present.loaded.config

    @property
    def groups(self) -> Sequence[Group]:
        """The listeners of the present generation, by bind URL."""
        return self._present.groups

    @property
    def present(self) -> Generation:
        return self._present.generation

    def of(self, number: int) -> Generation:
        """The present generation, or the next one by its number."""
        return self._next.generation if self._next and number > self._number else self._present.generation

    def listeners(self) -> Iterator[Listener]:
        """All that are open here: a worker closes its copies of those that are not of its generation."""
        yield from self._present.listeners
        yield from self._went
        yield from self._fresh()

    def prepare(self) -> Prepared | NotPrepared:
        """Read the configuration again, bind what is new, and try the new log."""
        try:
            loaded = self._reread()
            self._refuse_fixed(loaded)
            self._next = self._prepared(loaded)
        except ConfigError as error:
            return NotPrepared(f"{error}\n{error.details}".strip())
        except PoolserverError as error:
            return NotPrepared(str(error))
        kept = {listener.socket for listener in self._next.listeners}
        closes = any(listener.socket not in kept for listener in self._present.listeners)
        return Prepared(policy_of(loaded.config), closes)

    def commit(self) -> None:
        """The next generation is the present one. Listeners that are not its own stay open until ``withdraw``."""
        assert self._next is not None
        before, self._present, self._next = self._present, self._next, None
        self._number += 1
        kept = {listener.socket for listener in self._present.listeners}
        self._went += [listener for listener in before.listeners if listener.socket not in kept]
        for listener in self._present.listeners:
            listener.apply_options()  # of one that stays and whose options do, nothing is touched
        self._keep()
        self.present.use_log()
        for follow in self.followers:
            follow()
        changed = ", ".join(_changed(before.loaded, self._present.loaded)) or "nothing in the configuration"
        code = "; the code is the one that was imported at the start" if self._service is not None else ""
        _log.info("reload: generation %d; changed: %s%s", self._number, changed, code)

    def abandon(self) -> None:
        """There will be no next generation."""
        close_all(self._fresh())
        if self._next is not None:
            self._next.logs.close_but(self._present.logs)
        self._next = None

    def withdraw(self) -> None:
        """Close what went: newcomers are refused there, and the last old worker serves what is queued."""
        went, self._went = self._went, []
        self._keep()
        for listener in went:
            _log.info("no longer listening on %s", listener.url)
            listener.is_kept = False
            listener.close_door()
            listener.close()

    def close_door(self, *, has_lanes: bool) -> None:
        """Let nobody in any more. Without lanes here, our copies close too: the last worker to have served its queue
        then frees the address, and newcomers are refused instead of waiting for the longest conversation to end."""
        self._manager.let_go()
        for listener in self.listeners():
            listener.close_door()
            if not has_lanes:
                listener.close()

    def take_over(self, stored: Sequence[str]) -> None:
        """The listeners are ours alone: the master before has let go. ``stored``: the names of what systemd keeps."""
        lent = [listener for listener in self._present.listeners if listener.is_lent]
        self._manager.take_over(stored, {each.url: each.socket for each in lent if not each.is_adopted})
        for listener in self._present.listeners:
            listener.is_lent = False
            listener.apply_options()
        self._keep()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        close_all(self.listeners())

    def _keep(self) -> None:
        """Have systemd keep what we bound, so that not even a master that is killed loses who waits there."""
        own = [listener for listener in (*self._present.listeners, *self._went) if not listener.is_adopted]
        self._manager.keep({listener.url: listener.socket for listener in own})
        for listener in own:
            listener.is_kept = self._manager.has_store

    def _fresh(self) -> list[Listener]:
        """What was bound for the next generation only."""
        held = {listener.socket for listener in self._present.listeners}
        return [each for each in self._next.listeners if each.socket not in held] if self._next else []

    def _refuse_fixed(self, loaded: Loaded) -> None:
        before, after = self.settings, loaded.config
        changed = _changed(self._present.loaded, loaded)
        reasons = {key: "a reload cannot change it; restart" for key in changed if key in _FIXED}
        if self._service is not None:
            text = "imported once at the start (server.preload): a reload cannot change it; upgrade or restart"
            reasons |= {key: text for key in changed if key in _CODE}
        if (before.pool.worker_count == 0) != (after.pool.worker_count == 0):
            reasons["pool.workers"] = "a reload cannot change between 0 and more; restart"
        elif before.pool.worker_count == 0:
            text = "without worker processes a reload changes limits and log only; restart"
            reasons = {key: text for key in changed if key.partition(".")[0] not in _RESIDENT_SECTIONS}
        if reasons:
            origins = loaded.origins
            raise ConfigError("\n".join(f"{origins[key]}: {key}: {reason}" for key, reason in reasons.items()))

    def _prepared(self, loaded: Loaded) -> _Draft:
        settings = loaded.config
        options, terms = listener_options(settings), terms_of(settings, settings.socket.backlog)
        logs = self._present.logs.following(self.settings.log, settings.log)
        try:
            groups = bind_groups(settings.server.bind, options, self._present.groups, self._manager.passed)
        except BaseException:
            logs.close_but(self._present.logs)
            raise
        retuned = [
            replace(group, listeners=tuple(each.with_options(options) for each in group.listeners)) for group in groups
        ]
        return self._drafted(loaded, terms, retuned, logs)

    def _drafted(self, loaded: Loaded, terms: Terms, groups: Sequence[Group], logs: "_Logs") -> _Draft:
        settings = loaded.config
        listeners = [listener for group in groups for listener in group.listeners]

        def make_stations() -> list[Station]:
            return handlers.stations(self._service or load(settings), listeners, terms)

        generation = Generation(
            settings.server.service_name,
            listeners,
            make_stations,
            terms,
            lambda: log.use(logs.main, settings.log.level, logs.access),
            functools.partial(handlers.call, settings.server.worker_start, "server.worker_start"),
            functools.partial(handlers.call, settings.server.worker_stop, "server.worker_stop"),
        )
        return _Draft(loaded, groups, logs, generation)


def _changed(before: Loaded, after: Loaded) -> list[str]:
    """The keys whose values differ."""
    pairs = zip(effective(before), effective(after), strict=True)
    return [key for (key, old, _), (_, new, _) in pairs if old != new]


def _tried(handler: log.LineHandler) -> log.LineHandler:
    """The same, which must take a line.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        handler.prove("log opened for a reload")
    except ConfigError:
        handler.give_back()
        raise
    return handler
