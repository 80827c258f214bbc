"""The pid file: its lock says whether the service lives, its text who it is.

The lock is flock(2)'s, on a descriptor that no child has, so that it goes with the master however that ends; the number
alone would soon be a stranger's. An upgrade hands the descriptor on, and the lock with it.
"""

import fcntl
import logging
import os
import stat
from pathlib import Path

from poolserver import process
from poolserver.errors import SystemRefusedError
from poolserver.privileges import Account, made_for

_log = logging.getLogger("poolserver")

_MODE = 0o644
"""Anybody may know the pid."""

_TRIES = 16
"""Each is spent on a file that its holder removed between our opening and our locking it."""


class PidFile:
    """Owns the descriptor; from the first ``write`` on the file, too, while it is the one there. Runs in the master."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._pid = 0
        process.withhold(fd)

    @classmethod
    def claimed(cls, path: str, owner: Account | None = None) -> "PidFile":
        """Lock the file and write our pid into it. A stale one is replaced.

        Args:
            path: Its path, absolute.
            owner: Whose it is to be; None = ours.

        Raises:
            SystemRefusedError: a live process has it, which is named; or it is not safe to write there.
        """
        for _ in range(_TRIES):
            fd = _opened(path, owner)
            try:
                _refuse_held(fd, path)
                if _is_at(path, fd):
                    claimed = cls(path, os.dup(fd))
                    claimed.write()
                    return claimed
            finally:
                os.close(fd)
        raise SystemRefusedError(f"server.pidfile: {path} is removed and made again all the time")

    def fileno(self) -> int:
        """To hand on. Source: flock(2): the lock is the open file's, whoever has it."""
        return self._fd

    def write(self) -> None:
        """This process is the one."""
        self._pid = os.getpid()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{self._pid}\n".encode(), 0)

    def close(self) -> None:
        """The service ends: remove the file, or leave an empty one where its folder is root's."""
        if self._fd < 0:
            return
        if self._pid == os.getpid() and _is_at(self.path, self._fd):
            try:
                Path(self.path).unlink()
            except OSError as error:
                os.ftruncate(self._fd, 0)
                _log.info("server.pidfile: %s is left, empty: %s", self.path, error.strerror)
        self.let_go()

    def let_go(self) -> None:
        """Another process has it now, by a copy of the descriptor."""
        process.release(self._fd)
        os.close(self._fd)
        self._fd = -1


def _opened(path: str, owner: Account | None) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder = Path(path).parent.stat()
        if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
            raise SystemRefusedError(
                f"server.pidfile: everybody may write in {Path(path).parent}, and replace the file"
            )
        fd = made_for(owner, path, lambda: os.open(path, flags, _MODE))
    except OSError as error:
        reason = "it is a symbolic link" if Path(path).is_symlink() else error.strerror
        raise SystemRefusedError(f"server.pidfile: cannot open {path}: {reason}") from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid not in _trusted(owner):
        os.close(fd)
        raise SystemRefusedError(f"server.pidfile: {path} is no plain file of ours; move it away")
    return fd


def _trusted(owner: Account | None) -> set[int]:
    return {os.geteuid(), owner.uid if owner is not None else os.geteuid()}


def _refuse_held(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        who = f"pid {pid}" if pid.isdecimal() else "another process"
        raise SystemRefusedError(f"server.pidfile: {path} is held by {who}, which is running") from error
    os.fchmod(fd, _MODE)  # the umask took bits away


def _is_at(path: str, fd: int) -> bool:
    """Whether the file at the path is still this one."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False
