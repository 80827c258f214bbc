"""Who holds an address that cannot be bound: read from ``/proc``, for an error message that names the culprit."""

import os
import struct
from pathlib import Path


def who_holds(scheme: str, sockaddr: tuple[str, int] | str) -> str:
    """A clause such as ``"; held by pid 4711 (python app.py)"``, or what to look at where /proc does not tell.

    A handler's child that outlived its server keeps the listener open; this is how its owner finds it.
    """
    inodes = _unix_inodes(sockaddr) if isinstance(sockaddr, str) else _inet_inodes(scheme, sockaddr[1])
    pids = _pids_with(inodes)
    if not pids:
        return "; another process holds it (see `ss -lnptux`)"
    if os.getpid() in pids:
        return "; this very process has it, for another URL of its configuration"
    first, others = pids[0], len(pids) - 1
    more = f" and {others} more" if others else ""
    return f"; held by pid {first} ({_command(first)}){more}"


def _inet_inodes(scheme: str, port: int) -> set[str]:
    """Inodes of sockets bound to ``port``: for TCP those in state LISTEN (0A). Source: proc(5)."""
    suffix = struct.pack(">H", port).hex().upper()
    found = set()
    table = "udp" if scheme == "udp" else "tcp"
    for path in (f"/proc/net/{table}", f"/proc/net/{table}6"):
        for fields in _rows(path):
            is_bound = fields[3] == "0A" or table == "udp"
            if is_bound and fields[1].rpartition(":")[2] == suffix:
                found.add(fields[9])
    return found


def _unix_inodes(path: str) -> set[str]:
    name = path.replace("\0", "@", 1)
    return {fields[6] for fields in _rows("/proc/net/unix") if fields[7:] == [name]}


def _rows(table: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(table).read_text().splitlines()[1:]]
    except OSError:
        return []  # no /proc, or no such family: the message then points to ss


def _pids_with(inodes: set[str]) -> list[int]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    folders = [folder for folder in Path("/proc").glob("[0-9]*") if wanted and _has_any(folder / "fd", wanted)]
    return sorted(int(folder.name) for folder in folders)


def _has_any(folder: Path, wanted: set[str]) -> bool:
    try:
        return any(str(fd.readlink()) in wanted for fd in folder.iterdir())
    except OSError:
        return False  # gone meanwhile, or another user's


def _command(pid: int) -> str:
    try:
        words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"  # gone meanwhile
    return b" ".join(words).decode("utf-8", "replace").strip()[:120] or "?"
