"""The configuration's sections: which keys there are, their types, bounds and defaults.

Owns the models; what a single value may be is ``values.py``'s, where values come from ``config.py``'s. A new section
is one class here and one field of :class:`Config`. Other modules are handed the values they need, and never build
these models.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from poolserver.admission import most_burst, parse_rate
from poolserver.scoreboard import MAX_LANES, MAX_WORKERS
from poolserver.values import (
    MAX_BACKLOG,
    MAX_BAN_AFTER,
    MAX_HEAD,
    MAX_PARKED,
    MAX_SHOWN_CHARS,
    MAX_SOCKET_BUFFER,
    NAME,
    AnchoredPath,
    Duration,
    Folders,
    Fraction,
    Mode,
    NetworkList,
    OctalMode,
    Rate,
    Refusal,
    ServiceName,
    Size,
    SwitchOrPath,
    Text,
    Urls,
    WorkerCount,
    available_cores,
    from_text,
)

# What pydantic's error types mean, in the words of this project. One that is missing here is still
# reported, in pydantic's own words.
_REQUIREMENTS = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be text{such}",
    "string_unicode": "must be UTF-8 text",
    "tuple_type": "must be a list{such}",
    "literal_error": "must be one of {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty{want}",
    "value_error": "{error}",
}


class Section(BaseModel):
    """What all sections share: frozen, closed to unknown keys, and strict (``"8"`` is no number in TOML).

    A rule about two keys is a field validator of the later one, so that its error has a line to point to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Server(Section):
    """``[server]``: what is served, and where."""

    handler: Text = ""
    server_class: Text = ""
    bind: Urls = ("tcp://127.0.0.1:20000",)
    name: ServiceName = ""
    # Its default is a path too, so it is anchored like a given one.
    pythonpath: Folders = Field(default=(".",), validate_default=True)
    preload: bool = False
    user: Text = ""
    group: Text = ""
    umask: OctalMode = Mode(0o027)
    chdir: AnchoredPath = ""
    pidfile: AnchoredPath = ""
    worker_start: Text = ""
    worker_stop: Text = ""
    daemonize: bool = False

    @property
    def service_name(self) -> str:
        """The name in titles, logs and paths: ``name``, else the last part of the handler's module name.

        Without a handler the server class's module counts, and without either it is ``poolserver``; so it is
        where that part could not be a file name.
        """
        module = (self.handler or self.server_class).partition(":")[0]
        derived = module.rpartition(".")[2]
        return self.name or (derived if NAME.fullmatch(derived) else "poolserver")


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

    workers: WorkerCount = "auto"
    # After workers, which its validator looks at. The default needs no check: 1024 x 8 lanes fit.
    threads: Annotated[int, Field(ge=1, le=MAX_LANES)] = 8
    event_loop: Literal["auto", "asyncio", "uvloop"] = "auto"

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


class Recycle(Section):
    """``[recycle]``: when a worker has served enough; 0 = never."""

    connections: Annotated[int, Field(ge=0)] = 0
    jitter: Fraction = 0.1
    rss: Annotated[Size, Field(ge=0)] = 0
    age: Duration = 0.0


class Timeouts(Section):
    """``[timeouts]``: seconds; 0 = off, but for ``boot``, and ``graceful`` where 0 = cut at once."""

    boot: Annotated[Duration, Field(gt=0)] = 30.0
    worker: Duration = 10.0
    first_byte: Duration = 0.0
    head: Duration = 30.0
    idle: Duration = 60.0
    handler: Duration = 0.0
    graceful: Duration = 30.0
    lame_duck: Duration = 0.0


class Limits(Section):
    """``[limits]``: what one source may take of the pool, and who may come at all; 0 or empty = off."""

    per_source: Annotated[int, Field(ge=0, le=MAX_LANES)] = 0
    source_prefix_v4: Annotated[int, Field(ge=1, le=32)] = 32
    source_prefix_v6: Annotated[int, Field(ge=1, le=128)] = 64
    rate_per_source: Rate = ""
    # After rate_per_source, which its validator looks at.
    burst: Annotated[int, Field(ge=0)] = 0
    allow: NetworkList = ()
    deny: NetworkList = ()
    exempt: NetworkList = ()
    ban_after: Annotated[int, Field(ge=0, le=MAX_BAN_AFTER)] = 0
    ban_for: Annotated[Duration, Field(gt=0)] = 60.0
    refuse_with: Refusal = "rst"
    dry_run: bool = False

    @field_validator("burst")
    @classmethod
    def _fills_again(cls, burst: int, info: ValidationInfo) -> int:
        """Refuse a burst that its rate would take more than 24 days to give again."""
        text = info.data.get("rate_per_source", "")  # absent when refused, which is a report of its own
        most = most_burst(parse_rate(text) or 1.0)
        if burst > most:
            raise ValueError(f"must be at most {most}" + (f' with limits.rate_per_source = "{text}"' if text else ""))
        return burst


class Parking(Section):
    """``[parking]``: which connections wait off the lanes, for what, and how many."""

    wait_for: Literal["auto", "none", "data", "line", "http"] = "auto"
    max_head: Annotated[Size, Field(ge=64, le=MAX_HEAD)] = 16384
    max_parked: Annotated[int, Field(ge=1, le=MAX_PARKED)] = 10000
    keep_alive: Duration = 75.0


class Tls(Section):
    """``[tls]``: what is spoken on ``tls://`` listeners. Files in PEM form."""

    certificate: AnchoredPath = ""
    key: AnchoredPath = ""
    client_ca: AnchoredPath = ""
    # After client_ca, which its validator looks at.
    client_auth: Literal["none", "optional", "required"] = "none"
    min_version: Literal["1.2", "1.3"] = "1.2"
    handshake_timeout: Annotated[Duration, Field(gt=0)] = 10.0

    @field_validator("client_auth")
    @classmethod
    def _can_verify(cls, client_auth: str, info: ValidationInfo) -> str:
        """Refuse to ask for certificates that nothing could verify."""
        if client_auth != "none" and not info.data.get("client_ca"):
            raise ValueError("must be none without tls.client_ca")
        return client_auth


class ProxyProtocol(Section):
    """``[proxy_protocol]``: who says whose connections it passes on, and must."""

    mode: Literal["off", "v1", "v2", "any"] = "off"
    # After mode, which its validator looks at.
    trusted: NetworkList = Field(default=(), validate_default=True)
    timeout: Annotated[Duration, Field(gt=0)] = 5.0

    @field_validator("trusted")
    @classmethod
    def _names_somebody(cls, trusted: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Refuse a mode without anybody to trust: all would be refused."""
        if not trusted and info.data.get("mode", "off") != "off":
            raise ValueError(
                'must name the proxies\' networks, such as ["192.0.2.0/24"], with proxy_protocol.mode = '
                f'"{info.data["mode"]}"'
            )
        return trusted


class Log(Section):
    """``[log]``: what is written, how, and where."""

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    format: Literal["text", "json"] = "text"
    file: AnchoredPath = ""
    access: SwitchOrPath = False


class Control(Section):
    """``[control]``: where the running server is asked; empty = a path of its name."""

    socket: AnchoredPath = ""
    mode: OctalMode = Mode(0o600)


class Metrics(Section):
    """``[metrics]``: where ``/metrics`` and ``/healthz`` are served; empty = nowhere."""

    bind: Text = ""


class Config(BaseModel):
    """A whole configuration. Immutable: a reload loads another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: Server = Server()
    socket: Socket = Socket()
    pool: Pool = Pool()
    recycle: Recycle = Recycle()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    parking: Parking = Parking()
    tls: Tls = Tls()
    proxy_protocol: ProxyProtocol = ProxyProtocol()
    log: Log = Log()
    control: Control = Control()
    metrics: Metrics = Metrics()


def _fields(section: FieldInfo) -> Mapping[str, FieldInfo]:
    assert isinstance(section.annotation, type)
    assert issubclass(section.annotation, Section)
    return section.annotation.model_fields


SECTIONS: Mapping[str, Mapping[str, FieldInfo]] = {
    name: _fields(section) for name, section in Config.model_fields.items()
}
"""Every known key, by section, in the order in which ``poolserver check`` prints them."""


ASKED_FOR_BY: Mapping[str, str] = {"proxy_protocol.trusted": "proxy_protocol.mode"}
"""Keys that must be given because of another's value: who looks for a missing one is to be sent there."""


def json_schema() -> dict[str, Any]:
    """What TOML may say, as JSON Schema: for editors. Rules between two keys are beyond it."""
    schema = Config.model_json_schema()
    defaults = Config().model_dump(mode="json")
    for section, reference in schema["properties"].items():
        reference.pop("default", None)  # the models' own words for what each key says below
        keys = schema["$defs"][reference["$ref"].rpartition("/")[2]]["properties"]
        for key, rules in keys.items():
            rules["default"] = defaults[section][key]
            for word in ("title", "gt", "ge", "le"):  # bounds of a number that may be text are no JSON Schema
                rules.pop(word, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def unknown(section: str, key: str = "") -> str:
    """Say that nobody knows this key, and the nearest one that somebody does."""
    if section not in SECTIONS:
        nearly, loosely = (difflib.get_close_matches(section, SECTIONS, n=1, cutoff=cutoff) for cutoff in (0.9, 0.5))
        near = nearly or _homes(section) or loosely
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
    if not template:
        return f"cannot be used ({details['msg']})"
    example = _example(details["input"], *details["loc"])
    such, want = (f" such as {example}", f"; want one such as {example}") if example else ("", "")
    return template.format(such=such, want=want, **details.get("ctx", {}))


def _example(value: object, section: str, key: str, *index: int) -> str:
    """What a list, or one item of it, may look like: of the items that somebody gave as text. Empty for other keys."""
    (example,) = SECTIONS[section][key].examples or [()]
    if example and not index and isinstance(value, str) and len(value) <= MAX_SHOWN_CHARS:
        items = from_text(tuple[str], value)
        example = items if isinstance(items, tuple) and items else example
    return json.dumps(example[0] if index else example, ensure_ascii=False) if example else ""
