"""What surrounds a service in its process: the shell that it leaves or the manager that started it, its umask, its
working directory, its pid file, and whom it is to become. Entered before anything is bound, left when all is over.

Runs in the master, and with ``server.daemonize`` in the process that launches it.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from poolserver import log, streams, systemd
from poolserver.address import parse
from poolserver.errors import ConfigError
from poolserver.heir import Heir
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
    pidfile: PidFile | None = None
    heir: Heir | None = None
    """What another master leaves to this one; None: there is none."""


def surround(section: Server, serve: Callable[[Surroundings], None], heir: Heir | None = None) -> None:
    """Run ``serve`` in its surroundings: here, or in a daemon, which has announced itself when this returns.

    An ``heir`` has left the shell already, if its predecessor did.

    Raises:
        ConfigError: the working directory cannot be entered, the user does not exist, or a daemon is not wanted here.
        SystemRefusedError: the pid file is another's, or only root could do this.
        PoolserverError: what ``serve`` raises, in a daemon too, as long as it does not serve.
    """
    streams.keep_descriptors()
    if heir is not None or not section.daemonize:
        if section.daemonize:
            log.take_standard_streams()
        _surround(section, log.announce, serve, heir)
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


def _surround(
    section: Server, announce: log.Announce, serve: Callable[[Surroundings], None], heir: Heir | None = None
) -> None:
    account = Account.named(section.user, section.group)
    if account is not None:
        account.refuse_unreachable()
    with Manager.taken_from_environment() as manager, _umask(section.umask):
        if heir is not None:
            manager.is_muted = True
            manager.passed = heir.passed(section.bind)
        _change_directory(section.chdir)
        with _pid_file(section.pidfile, account, heir) as pidfile:
            serve(Surroundings(manager, account, announce, pidfile, heir))


@contextlib.contextmanager
def _pid_file(path: str, owner: Account | None, heir: Heir | None) -> Iterator[PidFile | None]:
    if not path:
        yield None
        return
    fd = heir.pidfile(path) if heir is not None else None
    with contextlib.closing(PidFile(path, fd) if fd is not None else PidFile.claimed(path, owner)) as pidfile:
        yield pidfile


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
