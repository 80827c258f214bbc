"""Facts about processes, read from /proc: what the kernel says is true, whatever a daemon logs. Source: proc(5)."""

import os
from pathlib import Path
from signal import SIGSTOP

from clients import wait_for


def title(pid: int) -> str:
    """The process title, as ``ps`` shows it; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def threads(pid: int) -> int:
    """How many threads it has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def children(pid: int) -> list[int]:
    """Its children, zombies included; none if it is gone."""
    try:
        return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return []


def state(pid: int) -> str:
    """``R`` running, ``S`` sleeping, ``T`` stopped, ``Z`` zombie …; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def suspend(pid: int) -> None:
    """Stop it, and wait until each of its threads stands: up to then one may still take a connection or an order."""
    os.kill(pid, SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_for(
        lambda: {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()} == {"T"},
        10,
        f"{pid} to be stopped",
    )


def is_alive(pid: int) -> bool:
    """Whether it runs: a zombie does not."""
    return state(pid) not in ("", "Z", "X")


def zombies(pid: int) -> list[int]:
    """Its children that nobody has buried."""
    return [child for child in children(pid) if state(child) == "Z"]


def started_at(pid: int) -> float:
    """When it was forked, in seconds since the machine started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def files(pid: int) -> dict[int, str]:
    """Its descriptors and what they are: ``pipe:[4711]``, ``anon_inode:[eventpoll]``, a path …"""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            pass  # closed meanwhile
    return found


def fdinfo(pid: int, fd: int) -> dict[str, str]:
    """What the kernel tells of a descriptor: ``flags``, ``Pid`` of a pidfd …"""
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def write_ends(pid: int) -> set[str]:
    """The pipes that it can write to."""
    pipes = {fd: name for fd, name in files(pid).items() if name.startswith("pipe:")}
    return {name for fd, name in pipes.items() if int(fdinfo(pid, fd)["flags"], 8) & os.O_ACCMODE != os.O_RDONLY}
