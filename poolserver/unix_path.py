"""The file of a Unix socket: replace a stale one, never a live one; remove only what we made."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from poolserver.errors import SystemRefusedError

_log = logging.getLogger("poolserver")

UNIX_LOCK_TIMEOUT = 5.0
"""Seconds to wait for another starter that is binding in the same directory; it needs milliseconds."""


@contextlib.contextmanager
def claimed(path: str) -> Iterator[None]:
    """While the block runs, ``path`` is free to bind and no other starter judges it.

    Raises:
        OSError: EADDRINUSE, a live server owns it; EEXIST, it is not a socket; or the folder cannot be used.
        SystemRefusedError: another process keeps the folder locked.
    """
    with _lock(Path(path).parent):
        _clear_stale(path)
        yield


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold flock(2) on the directory itself: needs no right to write and leaves no file behind."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        give_up = time.monotonic() + UNIX_LOCK_TIMEOUT
        while not _try_lock(fd):
            if time.monotonic() > give_up:
                raise SystemRefusedError(f"another process has kept {directory} locked for {UNIX_LOCK_TIMEOUT:g} s")
            time.sleep(0.01)  # flock has no time-out of its own
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear_stale(path: str) -> None:
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the path exists and is not a socket; move it away")
    if _is_alive(path):
        raise OSError(errno.EADDRINUSE, "a live server owns this socket")
    Path(path).unlink()


def _is_alive(path: str) -> bool:
    """Only ECONNREFUSED says that nobody is there: a full backlog is EAGAIN, a datagram socket EPROTOTYPE.

    Source: unix(7), connect(2).

    Raises:
        PermissionError: it is not for us to ask.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except PermissionError:
            raise PermissionError(errno.EACCES, "another user's socket is there, and may be alive") from None
        except OSError:
            return True
    return True


def unlink_if_stale(path: str) -> None:
    """If nobody listens there any more, a sibling or a new master, remove it."""
    with contextlib.suppress(OSError, SystemRefusedError), claimed(path):  # alive, no right, locked: it stays
        pass


def is_there(path: str, inode: tuple[int, int]) -> bool:
    """Whether the file at the path is this one."""
    try:
        found = Path(path).lstat()
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == inode


def unlink_if_ours(path: str, inode: tuple[int, int]) -> None:
    """A newer daemon may have put its own socket at this path: that one stays."""
    try:
        if is_there(path, inode):
            Path(path).unlink()
    except FileNotFoundError:
        pass  # somebody removed it meanwhile
    except PermissionError:
        _log.info("left %s, which its folder's owner alone can remove; the next start replaces it", path)
    except OSError as error:
        _log.warning("cannot remove %s: %s", path, error.strerror)
