"""The configuration's sections: which keys there are, their types, bounds and defaults.

Owns the models and how one value is read; ``config.py`` owns where values come from. A new section is one
class here and one field of :class:`Config`. Other modules are handed the values they need, and never build
these models. With ``config.py`` the only module that imports pydantic, which costs tens of milliseconds.
"""

import difflib
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

# Worker slots of the scoreboard, which is made once, at start.
MAX_WORKERS = 1024
# Lanes of the scoreboard: workers x threads, whatever their shares.
MAX_LANES = 16_384
# Seconds, 24 days. poll(2), epoll_wait(2) and TCP_USER_TIMEOUT take milliseconds in a C int, and
# socket.settimeout() raises OverflowError above it, which would be found out in a lane.
MAX_DURATION = 2_147_483
# Bytes. setsockopt(2) takes a C int; the kernel itself cuts the value to net.core.rmem_max.
MAX_SOCKET_BUFFER = 2**31 - 1
# Connections. Older kernels keep a queue's length in 16 bits, where 65,536 would become 0.
MAX_BACKLOG = 65_535

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
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
_NAME = re.compile(r"\w[\w.@:+-]{0,63}")

# What pydantic's error types mean, in the words of this project. One that is missing here is still
# reported, in pydantic's own words.
_REQUIREMENTS = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "string_unicode": "must be UTF-8 text",
    "tuple_type": 'must be a list such as ["a", "b"]',
    "literal_error": "must be one of {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "value_error": "{error}",
}

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
        raise ValueError("must not be empty")
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


def _service_name(name: str) -> str:
    """Accept a name that can be part of a file name and of a log line; empty = derived."""
    if name and not _NAME.fullmatch(name):
        raise ValueError("must be up to 64 letters, digits and _ . @ : + -, beginning with a letter or digit")
    return name


def from_text(annotation: Any, text: str) -> object:
    """Read ``text`` from the environment or the command line as a key's type.

    Returns ``text`` itself where it does not read as that type, or where the type reads text anyway: the
    model then accepts or refuses it, so that every refusal is worded in one place.
    """
    if annotation is bool:
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
Duration = Annotated[float, BeforeValidator(_seconds)]
Size = Annotated[int, BeforeValidator(_bytes)]
OctalMode = Annotated[Mode, BeforeValidator(_mode), PlainSerializer(lambda mode: f"{mode:04o}", return_type=str)]


class Section(BaseModel):
    """What all sections share: frozen, closed to unknown keys, and strict (``"8"`` is no number in TOML).

    A rule about two keys is a field validator of the later one, so that its error has a line to point to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Server(Section):
    """``[server]``: what is served, and where."""

    handler: Text = ""
    server_class: Text = ""
    bind: Annotated[tuple[FilledText, ...], Strict(False), AfterValidator(_filled)] = ("tcp://127.0.0.1:20000",)
    name: Annotated[Text, AfterValidator(_service_name)] = ""
    # Its default is a path too, so it is anchored like a given one.
    pythonpath: Annotated[tuple[FilledPath, ...], Strict(False)] = Field(default=(".",), validate_default=True)
    chdir: AnchoredPath = ""

    @property
    def service_name(self) -> str:
        """The name in titles, logs and paths: ``name``, else the last part of the handler's module name.

        Without a handler the server class's module counts, and without either it is ``poolserver``; so it is
        where that part could not be a file name.
        """
        module = (self.handler or self.server_class).partition(":")[0]
        derived = module.rpartition(".")[2]
        return self.name or (derived if _NAME.fullmatch(derived) else "poolserver")


class Socket(Section):
    """``[socket]``: options of the listeners and of accepted connections."""

    backlog: Annotated[int, Field(ge=1, le=MAX_BACKLOG)] = 1024
    reuse_address: bool = True
    nodelay: bool = True
    keepalive: bool = True
    user_timeout: Duration = 60.0
    ipv6_only: bool = True
    defer_accept: Duration = 0.0
    receive_buffer: Annotated[Size, Field(ge=0, le=MAX_SOCKET_BUFFER)] = 0
    unix_mode: OctalMode = Mode(0o660)


class Pool(Section):
    """``[pool]``: how many worker processes, and lanes in each."""

    workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)] = "auto"
    # After workers, which its validator looks at. The default needs no check: 1024 x 8 lanes fit.
    threads: Annotated[int, Field(ge=1, le=MAX_LANES)] = 8

    @field_validator("threads")
    @classmethod
    def _fits_scoreboard(cls, threads: int, info: ValidationInfo) -> int:
        """Refuse more lanes than the scoreboard has rows for."""
        workers = info.data.get("workers", 0)  # absent when refused, which is a report of its own
        most = MAX_LANES // max(1, _resolved(workers))
        if threads > most:
            together = f"workers x threads is at most {MAX_LANES} lanes"
            raise ValueError(f"must be at most {most} with pool.workers = {workers} ({together})")
        return threads

    @property
    def worker_count(self) -> int:
        """The number of worker processes, 0 to 1024; ``auto`` counts the cores at this moment."""
        return _resolved(self.workers)


def _resolved(workers: int | Literal["auto"]) -> int:
    return min(available_cores(), MAX_WORKERS) if workers == "auto" else workers


class Timeouts(Section):
    """``[timeouts]``: seconds; 0 = off, but for ``boot``, and ``graceful`` where 0 = cut at once."""

    boot: Annotated[Duration, Field(gt=0)] = 30.0
    first_byte: Duration = 0.0
    idle: Duration = 60.0
    handler: Duration = 0.0
    graceful: Duration = 30.0


class Log(Section):
    """``[log]``: what is written, how, and where."""

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    format: Literal["text"] = "text"
    file: AnchoredPath = ""


class Config(BaseModel):
    """A whole configuration. Immutable: a reload loads another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: Server = Server()
    socket: Socket = Socket()
    pool: Pool = Pool()
    timeouts: Timeouts = Timeouts()
    log: Log = Log()


def _fields(section: FieldInfo) -> Mapping[str, FieldInfo]:
    assert isinstance(section.annotation, type)
    assert issubclass(section.annotation, Section)
    return section.annotation.model_fields


SECTIONS: Mapping[str, Mapping[str, FieldInfo]] = {
    name: _fields(section) for name, section in Config.model_fields.items()
}
"""Every known key, by section, in the order in which ``poolserver check`` prints them."""


def unknown(section: str, key: str = "") -> str:
    """Say that nobody knows this key, and the nearest one that somebody does."""
    if section not in SECTIONS:
        near = _homes(section) or difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.5)
        return f"unknown {'section' if key else 'section or key'} ({_remedy(near, list(SECTIONS))})"
    near = _homes(key) or difflib.get_close_matches(key, SECTIONS[section], n=1, cutoff=0.5)
    return f"unknown key ({_remedy(near, list(SECTIONS[section]))})"


def _homes(key: str) -> list[str]:
    """Return where a key that is written in the wrong section belongs, as ``section.key``."""
    return [f"{section}.{key}" for section, keys in SECTIONS.items() if key in keys]


def _remedy(near: list[str], known: list[str]) -> str:
    return f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"


def requirement(details: Mapping[str, Any]) -> str:
    """Say what a value must be."""
    template = _REQUIREMENTS.get(details["type"])
    return template.format(**details.get("ctx", {})) if template else f"cannot be used ({details['msg']})"
