"""Giving up root: whom the processes run as once everything is bound, for good and in all of them.

Runs in the master before its first worker, so that every process is born without privileges. Files that the service
needs later are made before, and given to the user. Source: credentials(7), setresuid(2), prctl(2).
"""

import contextlib
import ctypes
import fcntl
import grp
import logging
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from poolserver.errors import ConfigError, SystemRefusedError

_log = logging.getLogger("poolserver")

_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)

Made = TypeVar("Made")


@dataclass(frozen=True)
class Account:
    """A user with a group, and the supplementary groups that are the user's own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def named(cls, user: str, group: str) -> "Account | None":
        """The account that the configuration names; None: nothing is to change.

        Args:
            user: A name or a number; empty = the one that we are.
            group: Likewise; empty = the user's.

        Raises:
            ConfigError: nobody has that name.
        """
        if not (user or group):
            return None
        entry = _user(user) if user else None
        uid = os.geteuid() if not user else entry.pw_uid if entry else int(user)
        if group:
            gid = _group(group)
        elif entry is not None:
            gid = entry.pw_gid
        else:
            raise ConfigError(f"server.user: no user has the number {user}, so that it needs server.group")
        own = os.getgrouplist(entry.pw_name, gid) if entry else []
        return cls(user or group, uid, gid, tuple(sorted({*own} - {gid})))

    @property
    def is_ours(self) -> bool:
        """Whether it is the one that this process has."""
        return os.geteuid() == self.uid and os.getegid() == self.gid

    def refuse_unreachable(self) -> None:
        """Raises SystemRefusedError where this process cannot become it."""
        if os.geteuid() != 0 and not self.is_ours:
            us = f"uid {os.geteuid()}, gid {os.getegid()}"
            raise SystemRefusedError(f"server.user, server.group: only root can become {self.name}; started as {us}")

    def become(self) -> None:
        """Be this account from now on, with no way back: not by setuid(2), not by a set-user-ID program. What was
        inherited from whoever started us is closed: it may be a file that only root can open.

        Raises:
            SystemRefusedError: it cannot be done, or could be undone.
        """
        try:
            if os.geteuid() == 0:
                os.setgroups(self.groups)
                os.setresgid(self.gid, self.gid, self.gid)
                os.setresuid(self.uid, self.uid, self.uid)
        except OSError as error:
            raise SystemRefusedError(f"cannot become {self.name}: {error.strerror}") from error
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            reason = os.strerror(ctypes.get_errno())
            raise SystemRefusedError(f"cannot become {self.name}: no_new_privs: {reason}")
        self._prove()
        _close_inherited()

    @contextlib.contextmanager
    def assumed(self) -> Iterator[None]:
        """For the block, what is opened and made is opened and made with this account's rights, and no others."""
        if os.geteuid() != 0 or self.uid == 0:
            yield
            return
        groups, gid = os.getgroups(), os.getegid()
        os.setgroups(self.groups)
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(gid)
            os.setgroups(groups)

    def may_write(self, folder: Path) -> bool:
        """Whether it may make and remove files there, as far as the permissions tell."""
        try:
            found = folder.stat()
        except OSError:
            return False
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in (self.gid, *self.groups) else 0
        return self.uid == 0 or found.st_mode >> shift & 0o3 == 0o3

    def may_read(self, path: Path) -> bool:
        """Whether it can read a file, or what is in a folder, tried with its rights."""
        wanted = os.R_OK | (os.X_OK if path.is_dir() else 0)
        with self.assumed():
            return os.access(path, wanted, effective_ids=True)

    def _prove(self) -> None:
        has = (*os.getresuid(), *os.getresgid())
        if os.geteuid() != 0 and has != (self.uid,) * 3 + (self.gid,) * 3:
            raise SystemRefusedError(f"could not become {self.name}: uids and gids are {has}")
        for change in (os.setuid, os.setgid) if self.uid != 0 else ():
            try:
                change(0)
            except PermissionError:
                continue
            raise SystemRefusedError(f"could not give up root for {self.name}: {change.__name__}(0) still works")


def made_for(owner: Account | None, path: str, make: Callable[[], Made]) -> Made:
    """What ``make`` makes at ``path``, owned by ``owner``.

    It is made with the owner's rights, so that nothing that the owner has prepared there can turn root's against
    somebody else: a link to another's file, for one. Where only root may, root makes it and gives it away; but in no
    folder in which others could have prepared anything.

    Raises:
        OSError: it cannot be made.
    """
    if owner is None:
        return make()
    try:
        with owner.assumed():
            return make()
    except PermissionError:
        if os.geteuid() != 0 or not _is_roots_alone(path, owner):
            raise
    made = make()
    os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
    return made


def _is_roots_alone(path: str, owner: Account) -> bool:
    """Whether nobody but root can have decided what is at ``path``, now or in a moment; a file of the owner's own does
    no harm.

    Source: what sshd(8) asks of the folders of a key file."""
    written = Path(path).absolute().parent
    meant = written.resolve()
    try:
        is_plain = not os.path.lexists(path) or _is_plain(os.lstat(path), owner)
        return is_plain and all(map(_is_safe, {written, *written.parents, meant, *meant.parents}))
    except OSError:
        return False


def _is_safe(folder: Path) -> bool:
    found = folder.lstat()
    is_shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return found.st_uid == 0 and (stat.S_ISLNK(found.st_mode) or not is_shared)


def _is_plain(found: os.stat_result, owner: Account) -> bool:
    return found.st_uid in (0, owner.uid) and found.st_nlink == 1 and not stat.S_ISLNK(found.st_mode)


def _close_inherited() -> None:
    """Descriptors that came with execve(2) are those that it would pass on: whatever Python opens is close-on-exec.

    Source: PEP 446."""
    for entry in Path("/proc/self/fd").iterdir():
        fd = int(entry.name)
        try:
            if fd > 2 and not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                _log.info("closed descriptor %d, inherited: %s", fd, entry.readlink())
                os.close(fd)
        except OSError:
            pass  # that of the listing itself


def _user(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if user.isdecimal():
            return None
        raise ConfigError(f"server.user: there is no user {user!r}") from None


def _group(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"server.group: there is no group {group!r}") from None
