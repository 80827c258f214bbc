"""The nurse: stands between a master and the one that it starts, until that one can stand alone.

A process that systemd is to take for the service must be its own child when it is told so: of another's it awaits no
end, and ``KillMode=mixed`` kills it at a stop without waiting for its drain. So the new master's parent is the nurse,
which leaves when the new master lets it, and whose children become init's, or that of whoever stands in for it. Until
then the nurse ends as the new master ends, and the new master with the nurse. Source: systemd 252, service_set_main_pid
and unit_kill_context (main_pid_alien); prctl(2) PR_SET_CHILD_SUBREAPER.
"""

import fcntl
import os
import select
from collections.abc import Callable, Mapping, Sequence

from poolserver import log, process, signals
from poolserver.process import Process

UNTOLD_EXIT_INTERVAL = 0.1
"""Seconds between looks where no descriptor tells of its death (no pidfd)."""


def become(program: str, arguments: tuple[str, ...], environ: Mapping[str, str], fds: Sequence[int]) -> None:
    """Run another program in this process. Of its descriptors it gets the standard ones, and ``fds`` as 3, 4, ….

    Raises:
        OSError: it cannot be run; this process is of no use for anything else then.
    """
    above = 3 + len(fds)
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]  # out of each other's way
    for number, fd in enumerate(copies, 3):
        os.dup2(fd, number, inheritable=True)
    os.execve(program, arguments, environ)  # noqa: S606 - what an upgrade starts is ourselves


def tend(name: str, be_child: Callable[[int, int], int]) -> int:
    """In the nurse: have a child, and end with it, or when it says so by a byte on its leash. Returns the exit status.

    Args:
        name: The service's.
        be_child: What the child does: it is given the nurse's pid, and the writing end of the leash.
    """
    log.introduce("upgrade", name)
    signals.reset_in_child()
    signals.unblock_all()
    nurse_pid = os.getpid()
    leash_read, leash_write = os.pipe2(os.O_CLOEXEC)

    def body(_report: int) -> int:
        os.close(leash_read)
        process.die_with(nurse_pid)
        return be_child(nurse_pid, leash_write)

    child = process.fork(body)
    process.keep_only([leash_read, *child.descriptors()])
    return _status(child) if _is_dead(child, leash_read) else 0


def let_go(leash: int) -> None:
    """In the child: outlive the nurse, which leaves now. Closes the leash."""
    process.outlive_parent()
    try:
        os.write(leash, b"\n")
    except OSError:
        pass  # it is gone already
    os.close(leash)


def _is_dead(child: Process, leash_read: int) -> bool:
    """Wait until it is; False: it let us go before."""
    poller = select.poll()
    fds = [leash_read, *child.descriptors()]
    for fd in fds:
        poller.register(fd, select.POLLIN)
    while not child.has_exited():
        ready = signals.wait_readable(poller, None if child.has_exit_descriptor else UNTOLD_EXIT_INTERVAL)
        if leash_read in ready:
            if os.read(leash_read, 1):
                return False
            poller.unregister(leash_read)  # it has closed it, which is to say that it is about to die
        for fd in set(ready) & set(child.descriptors()):
            child.reports()
            if fd not in child.descriptors():
                poller.unregister(fd)
    return True


def _status(child: Process) -> int:
    """Its exit status, or death by the same signal."""
    code = os.waitstatus_to_exitcode(child.status or 0)
    if code < 0:
        process.die_by(-code)
    return code
