"""What one configuration value may be, and how its text is read: durations, sizes, modes, networks, rates.

The types that ``sections.py`` builds its models of. Nothing here knows a section.
"""

import math
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, get_args, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    Strict,
    ValidationInfo,
)

from poolserver.admission import parse_rate
from poolserver.networks import parse_network
from poolserver.scoreboard import MAX_WORKERS

# Seconds, 24 days. poll(2), epoll_wait(2) and TCP_USER_TIMEOUT take milliseconds in a C int, and
# socket.settimeout() raises OverflowError above it, which would be found out in a lane.
MAX_DURATION = 2_147_483
# Bytes. setsockopt(2) takes a C int; the kernel itself cuts the value to net.core.rmem_max.
MAX_SOCKET_BUFFER = 2**31 - 1
# Bytes. A refusal's text goes out in one send to an empty socket buffer, which holds it whatever the peer does.
MAX_REFUSAL_TEXT = 1024
# Bytes. Each look at an incomplete head peeks at all of it.
MAX_HEAD = 2**20
# Connections; the limit of descriptors comes first.
MAX_PARKED = 2**20
# A strike word of the table of sources has 20 bits for the count.
MAX_BAN_AFTER = 1_000_000

# Characters of a refused value or key that are repeated in its message.
MAX_SHOWN_CHARS = 80
# Connections. Older kernels keep a queue's length in 16 bits, where 65,536 would become 0.
MAX_BACKLOG = 65_535

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_BYTES = {"K": 2**10, "M": 2**20, "G": 2**30}
_SIZE = re.compile(r"([0-9]{1,15})([KMG])?", re.IGNORECASE)
_MODE = re.compile(r"(?:0o)?([0-7]{1,5})")
# 18 digits: above any bound below, and far from the 4,300 where int() itself raises.
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_FLAGS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
# The name goes into process titles, log lines and the control socket's file name: no slash, no space,
# and short enough for the 107 bytes of a Unix socket's path.
NAME = re.compile(r"\w[\w.@:+-]{0,63}")

Mode = NewType("Mode", int)
"""Permission bits. A type of its own because its text is octal, where that of other numbers is decimal."""


def _sound(text: str) -> str:
    """Refuse NUL, which ends a text in the kernel, and what stands for undecodable bytes (PEP 383)."""
    if "\0" in text:
        raise ValueError("must not hold a NUL byte")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must be UTF-8 text")
    return text


def _filled(items: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an empty list. pydantic's own min_length would count only the items that are right."""
    if not items:
        raise ValueError('must name at least one address, such as ["tcp://127.0.0.1:20000"]')
    return items


def _anchored(text: str, info: ValidationInfo) -> str:
    """Make a path absolute against ``base`` of the validation context; empty (= off) stays empty."""
    base = (info.context or {}).get("base")
    return str(Path(base, text)) if base and text else text


def _seconds(value: object) -> float:
    """Read a duration: a number of seconds, or text such as ``"30s"``."""
    seconds = _seconds_or_none(value)
    if seconds is None or not 0 <= seconds <= MAX_DURATION:
        raise ValueError(f'must be a duration such as 30, "30s", "5m" or "250ms" of 0 to {MAX_DURATION} seconds')
    return seconds


def _seconds_or_none(value: object) -> float | None:
    """Return what ``value`` says in seconds, without regard to bounds; None when it says nothing."""
    if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
        return float(found[1]) * _SECONDS[found[2] or "s"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A whole number beyond float's range raises OverflowError; it is out of bounds all the same.
    return float(value) if abs(value) <= MAX_DURATION else math.inf


def _fraction(value: object) -> float:
    """Read a part of one: a number, or its text."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("must be a fraction from 0 to 1, such as 0.1")
    return float(value)


def _bytes(value: object) -> object:
    """Read ``"512M"`` as its bytes; pydantic judges all else."""
    if not isinstance(value, str):
        return value
    if not (found := _SIZE.fullmatch(value)):
        raise ValueError('must be a size such as 65536, "64K" or "512M"')
    return int(found[1]) * _BYTES.get((found[2] or "").upper(), 1)


def _mode(value: object) -> int:
    """Read octal text. A number is refused: 660 in TOML is decimal, and would mean 01224."""
    found = _MODE.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[1], 8) > 0o777:
        raise ValueError('must be permissions as octal text such as "0660"')
    return int(found[1], 8)


def _workers(value: object) -> object:
    """Accept ``"auto"`` or a number of worker processes."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WORKERS
    if not is_count and value != "auto":
        raise ValueError(f'must be "auto" or a whole number from 0 to {MAX_WORKERS}')
    return value


def _switch_or_path(value: object, info: ValidationInfo) -> object:
    """Accept true, false, or the path of a file."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError("must be true, false, or the path of a file")  # noqa: TRY004 - pydantic takes no TypeError
    return _anchored(_sound(value), info)


def _service_name(name: str) -> str:
    """Accept a name that can be part of a file name and of a log line; empty = derived."""
    if name and not NAME.fullmatch(name):
        raise ValueError("must be up to 64 letters, digits and _ . @ : + -, beginning with a letter or digit")
    return name


def _network(text: str) -> str:
    """Accept a network; it is read again where it is used."""
    parse_network(text)
    return text


def _rate(text: str) -> str:
    """Accept a rate such as ``"20/s"``; empty = off."""
    parse_rate(text)
    return text


def _refusal(text: str) -> str:
    """Accept what a refused connection is answered with."""
    if len(text.encode()) > MAX_REFUSAL_TEXT:
        raise ValueError(f'must be "rst", "close", or a text of at most {MAX_REFUSAL_TEXT} bytes')
    return text


def from_text(annotation: Any, text: str) -> object:
    """Read ``text`` from the environment or the command line as a key's type.

    Returns ``text`` itself where it does not read as that type, or where the type reads text anyway: the
    model then accepts or refuses it, so that every refusal is worded in one place.
    """
    if bool in (annotation, *get_args(annotation)):
        return _FLAGS.get(text.lower(), text)
    if get_origin(annotation) is tuple:
        return _items(text)
    if int in (annotation, *get_args(annotation)) and _WHOLE.fullmatch(text):
        return int(text)
    return text


def _items(text: str) -> object:
    """Read a TOML array, or else the comma-separated items that are not empty."""
    if not text.startswith("["):
        return tuple(item.strip() for item in text.split(",") if item.strip())
    try:
        document = tomllib.loads(f"items = {text}")
    except (ValueError, RecursionError):  # syntax, a number of 4,300 digits, brackets nested by the thousand
        return text
    # More than the one key means that a newline in the text started a second statement.
    return document["items"] if len(document) == 1 else text


def available_cores() -> int:
    """Count the cores this process may use, at least 1: its affinity, and less under a container's CPU quota.

    Source: sched_getaffinity(2); Linux, Documentation/admin-guide/cgroup-v2.rst, ``cpu.max``.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return cores  # no cgroup v2 here (the root has no such file), or the quota is the word "max"


Text = Annotated[str, AfterValidator(_sound)]
FilledText = Annotated[str, Field(min_length=1), AfterValidator(_sound)]
AnchoredPath = Annotated[Text, AfterValidator(_anchored)]
FilledPath = Annotated[FilledText, AfterValidator(_anchored)]
# What each may look like in TOML, for the JSON Schema.
_DurationText = Annotated[str, Field(pattern=f"^{_DURATION.pattern}$")]
_SizeText = Annotated[str, Field(pattern=r"^[0-9]{1,15}[KMGkmg]?$")]
_ModeText = Annotated[str, Field(pattern=f"^{_MODE.pattern}$")]

Duration = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | _DurationText)]
Fraction = Annotated[float, BeforeValidator(_fraction)]
Size = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=int | _SizeText)]
OctalMode = Annotated[
    Mode,
    BeforeValidator(_mode, json_schema_input_type=_ModeText),
    PlainSerializer(lambda mode: f"{mode:04o}", return_type=str),
]
Network = Annotated[FilledText, AfterValidator(_network)]
Rate = Annotated[Text, AfterValidator(_rate)]
Refusal = Annotated[FilledText, AfterValidator(_refusal)]
ServiceName = Annotated[Text, AfterValidator(_service_name)]
WorkerCount = Annotated[
    int | Literal["auto"],
    BeforeValidator(_workers, json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_WORKERS)] | Literal["auto"]),
]
SwitchOrPath = Annotated[bool | str, BeforeValidator(_switch_or_path, json_schema_input_type=bool | str)]
# Each list has an example, for the messages about what is none, and for the JSON Schema.
Urls = Annotated[
    tuple[FilledText, ...], Strict(False), AfterValidator(_filled), Field(examples=[["tcp://127.0.0.1:20000"]])
]
Folders = Annotated[tuple[FilledPath, ...], Strict(False), Field(examples=[["."]])]
NetworkList = Annotated[tuple[Network, ...], Strict(False), Field(examples=[["192.0.2.0/24", "2001:db8::/32"]])]
