"""What surrounds a service in its process: the shell that it leaves or the manager that started it, its umask, its
working directory, its pid file, and whom it is to become. Entered before anything is bound, left when all is over.

Runs in the master, and with ``server.daemonize`` in the process that launches it.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from poolserver import log, systemd
from poolserver.address import parse
from poolserver.errors import ConfigError
from poolserver.pidfile import PidFile
from poolserver.privileges import Account
from poolserver.sections import Server
from poolserver.systemd import Manager


@dataclass(frozen=True)
class Surroundings:
    """What the service has to do with."""

    manager: Manager
    account: Account | None
    """Whom it becomes once everything is bound; None: it stays who it is."""
    announce: log.Announce
    """To whoever waits for it to serve."""


def surround(section: Server, serve: Callable[[Surroundings], None]) -> None:
    """Run ``serve`` in its surroundings: here, or in a daemon, which has announced itself when this returns.

    Raises:
        ConfigError: the working directory cannot be entered, the user does not exist, or a daemon is not wanted here.
        SystemRefusedError: the pid file is another's, or only root could do this.
        PoolserverError: what ``serve`` raises, in a daemon too, as long as it does not serve.
    """
    log.keep_standard_descriptors()
    if not section.daemonize:
        _surround(section, log.announce, serve)
        return
    refuse_daemon()
    daemonize = importlib.import_module("poolserver.daemonize")  # and with it python-daemon, which nobody else needs
    daemonize.launch(
        lambda announce: _surround(section, announce, serve),
        umask=section.umask,
        keep=[address.fd for url in section.bind for address in parse(url) if address.fd >= 0],
    )


def refuse_daemon() -> None:
    """Raises ConfigError under systemd, which takes a service that leaves it for one that has ended."""
    if systemd.is_there():
        raise ConfigError("server.daemonize: systemd supervises this process, and would take it for ended: turn it off")


def _surround(section: Server, announce: log.Announce, serve: Callable[[Surroundings], None]) -> None:
    account = Account.named(section.user, section.group)
    if account is not None:
        account.refuse_unreachable()
    with Manager.taken_from_environment() as manager, _umask(section.umask):
        _change_directory(section.chdir)
        with _pid_file(section.pidfile, account):
            serve(Surroundings(manager, account, announce))


@contextlib.contextmanager
def _pid_file(path: str, owner: Account | None) -> Iterator[None]:
    if not path:
        yield
        return
    with contextlib.closing(PidFile.claimed(path, owner)):
        yield


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    """For the block, and every process that is forked in it."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _change_directory(path: str) -> None:
    if path:
        try:
            os.chdir(path)
        except OSError as error:
            raise ConfigError(f"server.chdir: cannot enter {path}: {error.strerror}") from error
