"""Leaving the shell that started us, by python-daemon; and telling it how that went.

Source: PEP 3143, daemon(7). python-daemon is used for what it does well, detaching: its defaults for owner, umask,
working folder, signals, core dumps and streams are all overridden, and its pid file is not used. Imported only where
somebody asks for it.
"""

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import daemon

from poolserver import log, process, signals
from poolserver.errors import ConfigError, NoServerError, PoolserverError, SystemRefusedError, UsageError

_log = logging.getLogger("poolserver")

_ERRORS = {each.exit_code: each for each in (PoolserverError, UsageError, NoServerError, SystemRefusedError)}

_CHUNK = 65536


def launch(serve: Callable[[log.Announce], None], *, umask: int, keep: Iterable[int] = ()) -> None:
    """Run ``serve`` in a daemon: in a session of its own, without a terminal, its standard streams on /dev/null.

    Returns in the process that called, when the daemon has announced that it serves; the line is on standard error
    here too. The daemon never returns.

    Args:
        serve: Is given what announces.
        umask: The daemon's.
        keep: Descriptors that it keeps; all others are closed.

    Raises:
        PoolserverError: the daemon ended before it served; the same error, with its exit code, as there.
    """
    told_fd, tell_fd = os.pipe2(os.O_CLOEXEC)
    started = process.fork(lambda _report_fd: _detached(serve, tell_fd, umask, keep))
    os.close(tell_fd)
    try:
        told = _read_all(told_fd)
    except KeyboardInterrupt:
        raise PoolserverError("interrupted; the daemon that was started goes on without us") from None
    finally:
        os.close(told_fd)
        started.end()  # the first of two children, which has left already
    outcome = json.loads(told or b"{}")
    if outcome.get("line"):
        log.announce(outcome["line"])
        return
    text, details = outcome.get("error", "the daemon ended before it was ready"), outcome.get("details", "")
    code = outcome.get("code", PoolserverError.exit_code)
    raise ConfigError(text, details) if code == ConfigError.exit_code else _ERRORS[code](text)


def _detached(serve: Callable[[log.Announce], None], tell_fd: int, umask: int, keep: Iterable[int]) -> int:
    """In the child. Its parent reads from the pipe to the end, so no process that is forked here may have a copy."""
    signals.reset_in_child()
    signals.unblock_all()
    pipe = _Pipe(tell_fd)
    try:
        _detach(umask, [tell_fd, *keep])
        process.withhold(tell_fd)
        log.take_standard_streams()
        serve(pipe.announce)
    except PoolserverError as error:
        if not pipe.tell(code=error.exit_code, error=str(error), details=getattr(error, "details", "")):
            _log.critical("%s", error)  # nobody waits for it any more
        return error.exit_code
    except BaseException:
        pipe.tell(error=f"internal error\n{traceback.format_exc()}")
        raise
    return 0


def _detach(umask: int, keep: list[int]) -> None:
    with open(os.devnull, "r+b", buffering=0) as nothing:  # noqa: PTH123 - DaemonContext wants a file object
        context = daemon.DaemonContext(
            working_directory=Path.cwd(),  # a reload reads relative paths again
            umask=umask,
            uid=os.geteuid(),
            gid=os.getegid(),
            initgroups=False,
            prevent_core=False,
            detach_process=True,
            files_preserve=keep,
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            signal_map={},
        )
        try:
            context.open()
        except daemon.daemon.DaemonError as error:
            raise SystemRefusedError(f"cannot detach: {error}") from error


class _Pipe:
    """To the process that waits for us; closed after the one thing that is told."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def announce(self, line: str) -> None:
        """The pool serves."""
        log.announce(line)
        self.tell(line=line)

    def tell(self, **outcome: object) -> bool:
        """False: there is nobody to tell, any more."""
        if self._fd < 0:
            return False
        fd, self._fd = self._fd, -1
        process.release(fd)
        try:
            os.write(fd, json.dumps(outcome).encode())
        except OSError:
            return False  # interrupted
        finally:
            os.close(fd)
        return True


def _read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, _CHUNK):
        chunks.append(chunk)
    return b"".join(chunks)
