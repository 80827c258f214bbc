"""What one master leaves to the next at an upgrade: descriptors by what they are for, totals, and bans; as JSON.

Pure: both masters read and write it, and they may be of different versions. Times are ages: a clock's reading means
nothing to another process.
"""

import json
from typing import TypedDict, cast

from poolserver.errors import SystemRefusedError

VERSION = 1
"""Of this format. Another is refused: the older master then goes on."""

VARIABLE = "POOLSERVER_PREDECESSOR"
"""The environment variable that names the running master's pid and the descriptor that this is written on."""

FIRST_FD = 3
"""The first descriptor that is passed; the others follow it. Those before are the standard ones."""


FileId = tuple[int, int]
"""Device and inode of a Unix socket's file: its path may lead elsewhere by now, and to another's."""


class PassedSocket(TypedDict):
    """A listener's socket. ``is_own``: we bound it, and its ``file``, if it has one, is the service's to remove."""

    fd: int
    scheme: str
    is_own: bool
    file: FileId | None


class PassedGroup(TypedDict):
    """The listeners of one bind URL, as it was configured."""

    url: str
    sockets: list[PassedSocket]


class PassedFile(TypedDict):
    """A descriptor of something that has a path, a URL, or a name. ``file``: as of a ``PassedSocket``."""

    fd: int
    name: str
    file: FileId | None


class Counts(TypedDict):
    """What the service has counted, as the scoreboard has it."""

    totals: dict[str, int]
    durations: list[int]


class Estate(TypedDict):
    """The whole.

    ``line``: a socket between the two masters, with a ``Word`` a line. ``report``: where the heir says why it fails.
    ``leash``: on which it lets its nurse go.
    ``unclaimed``: what the service manager passed and no URL is for. ``stored``: the names of what it keeps for us.
    """

    version: int
    line: int
    report: int
    leash: int
    groups: list[PassedGroup]
    unclaimed: list[PassedFile]
    stored: list[str]
    pairs: list[int]
    control: PassedFile | None
    metrics: PassedFile | None
    pidfile: PassedFile | None
    counts: Counts
    respawns: int
    reloads: int
    reloads_failed: int
    bans: list[tuple[str, float]]
    """Of connections: a source's key in hex, and the seconds that are left."""


class Word(TypedDict, total=False):
    """A line between the masters.

    The heir says ``taken``, once: it serves, has these of the descriptors in use, and is the process ``pid``. The other
    says ``counts``, then and again: what it has counted since; and ``is_yours``, once: it has let go of them. Or
    ``is_over``: the heir is not wanted any more.
    """

    taken: list[int]
    pid: int
    is_yours: bool
    is_over: bool
    counts: Counts


def read(octets: bytes) -> Estate:
    """The estate that a predecessor wrote.

    Raises:
        SystemRefusedError: it is none, or of another version.
    """
    try:
        found = json.loads(octets)
        version = found["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemRefusedError(f"what the running master passed cannot be read: {error}") from error
    if version != VERSION:
        raise SystemRefusedError(f"what the running master passed has version {version}, ours is {VERSION}: restart")
    return cast(Estate, found)


def grown(before: Counts, after: Counts) -> Counts:
    """What was counted in between."""
    totals = {name: count - before["totals"].get(name, 0) for name, count in after["totals"].items()}
    durations = [now - then for then, now in zip(before["durations"], after["durations"], strict=True)]
    return Counts(totals=totals, durations=durations)
