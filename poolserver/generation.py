"""A generation: what its workers serve, and on which terms. How one follows another is ``succession.py``'s."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from poolserver import handlers
from poolserver.errors import ConfigError
from poolserver.listener import Listener
from poolserver.sections import Config
from poolserver.station import Station, Terms

_log = logging.getLogger("poolserver")


@dataclass(frozen=True)
class Generation:
    """What its workers serve, and on which terms."""

    name: str
    listeners: Sequence[Listener]
    make_stations: Callable[[], list[Station]]
    terms: Terms
    use_log: Callable[[], None] = lambda: None
    """In a worker: log to where this generation does."""
    on_start: Callable[[], None] = lambda: None
    on_stop: Callable[[], None] = lambda: None
    """``server.worker_start`` and ``worker_stop``, for each worker to call. They may raise ConfigError."""

    def leave(self) -> None:
        """A worker's last act; whatever ``on_stop`` raises, it leaves."""
        try:
            self.on_stop()
        except ConfigError as error:
            _log.error("%s", error, extra={"details": error.details})


def load(settings: Config) -> handlers.Service:
    """Import what the configuration names. Raises ConfigError."""
    section = settings.server
    return handlers.load(section.handler, section.server_class, [Path(path) for path in section.pythonpath])
