"""The configuration: where its values come from, and what is said when they cannot be used.

Values are gathered from the defaults, a TOML file, the environment and the command line, each overriding the
one before; each keeps its origin, for ``poolserver check`` and for error messages. All errors of all sources
are reported together, one line each, as one ConfigError; nothing else leaves this module, whatever the file
holds. The command line and the library front call it; every other module is handed plain values. It never
imports the handler, resolves an address or changes the process.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from poolserver.errors import ConfigError
from poolserver.sections import ASKED_FOR_BY, SECTIONS, Config, requirement, unknown
from poolserver.values import MAX_SHOWN_CHARS, from_text
from poolserver.variables import PREFIX, is_setting

# Bytes read of a configuration file: far above any that people write, and the end of a mistaken /dev/zero.
MAX_FILE_BYTES = 2**20

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KINDS: Mapping[type, str] = {dict: "table", list: "list", tuple: "list"}
_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class Option(NamedTuple):
    """A command line's value for one key."""

    value: str | tuple[str, ...]  # text, read as the key's type; a tuple = a list's items as they are
    origin: str  # what the operator typed: "--workers", "--set"


class _Given(NamedTuple):
    value: object
    origin: str


@dataclass(frozen=True)
class Loaded:
    """A configuration with the origin of each value.

    ``origins`` has every known ``section.key``; ``path`` is the file that was read, as it was given.
    """

    config: Config
    origins: Mapping[str, str]
    path: Path | None = None


def load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, Option]) -> Loaded:
    """Gather the configuration from all its sources.

    Args:
        path: The TOML file; None = there is none.
        environ: Environment variables; only ``POOLSERVER_SECTION__KEY`` are looked at.
        options: The command line's values, by ``section.key``.

    Raises:
        ConfigError: Something cannot be read or used; one line for each error of any source.
    """
    draft = _Draft()
    if path is not None:
        draft.add_file(path)
    draft.add_environment(environ)
    draft.add_options(options)
    return draft.finish(path)


def from_sections(sections: Mapping[str, Mapping[str, object]], origin: str = "serve()") -> Loaded:
    """Build the configuration of a library call from sections as dicts, such as ``{"pool": {"threads": 4}}``.

    Values have the types that TOML would give them. File, environment and command line are not looked at.

    Raises:
        ConfigError: As :func:`load`; ``origin`` stands where a file and line would.
    """
    draft = _Draft()
    draft.add_tables(sections, lambda *_: origin)
    return draft.finish(None)


def effective(loaded: Loaded) -> list[tuple[str, str, str]]:
    """List every value in force as (``section.key``, its TOML text, its origin), in section order."""
    values = loaded.config.model_dump()
    return [(key, toml_text(values[section][name]), loaded.origins[key]) for section, name, key in _known_keys()]


def _known_keys() -> Iterator[tuple[str, str, str]]:
    return ((section, name, f"{section}.{name}") for section, names in SECTIONS.items() for name in names)


@dataclass
class _Draft:
    """What the sources have given so far, a later one replacing an earlier, and what is wrong with it."""

    given: dict[str, _Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add_file(self, path: Path) -> None:
        """Add a TOML file. An unreadable one is a problem like any other, and reported beside them."""
        try:
            text = _file_text(path)
            document = _parsed(text, str(path))
        except ConfigError as error:
            self.problems.append(str(error))
            return
        lines = key_lines(text)

        def origin_of(*keys: str) -> str:
            line = lines.get(keys) or lines.get(keys[:1])
            return f"{path}:{line}" if line else str(path)

        self.add_tables(document, origin_of)

    def add_tables(self, document: Mapping[str, object], origin_of: Callable[..., str]) -> None:
        """Add sections; ``origin_of(section)`` and ``origin_of(section, key)`` say where each stands."""
        for section, table in document.items():
            if section in SECTIONS and isinstance(table, Mapping):
                for key, value in table.items():
                    self._add(section, str(key), value, origin_of(section, key))
            else:
                problem = _misplaced(str(section), table)
                self._refuse(origin_of(section), _key_text(str(section)), problem)

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Add the variables that are settings."""
        for variable, text in environ.items():
            if not is_setting(variable):
                continue
            section, _, key = variable.removeprefix(PREFIX).partition("__")
            if variable == variable.upper():
                self._add_text(section.lower(), key.lower(), text, f"${variable}")
            else:
                name = f"{PREFIX}{section.upper()}__{key.upper()}"
                self._refuse(f"${variable}", _key_text(section, key), f'unknown key (did you mean "{name}"?)')

    def add_options(self, options: Mapping[str, Option]) -> None:
        """Add the command line's values."""
        for name, (value, origin) in options.items():
            section, _, key = name.partition(".")
            self._add_text(section, key, value, origin)

    def _add_text(self, section: str, key: str, value: str | tuple[str, ...], origin: str) -> None:
        known = SECTIONS.get(section, {}).get(key)
        read = from_text(known.annotation, value) if known and isinstance(value, str) else value
        self._add(section, key, read, origin)

    def _add(self, section: str, key: str, value: object, origin: str) -> None:
        if key in SECTIONS.get(section, {}):
            self.given[f"{section}.{key}"] = _Given(value, origin)
        else:
            self._refuse(origin, _key_text(section, key), unknown(section, key))

    def _refuse(self, origin: str, key: str, problem: str) -> None:
        self.problems.append(f"{origin}: {key}: {problem}")

    def finish(self, path: Path | None) -> Loaded:
        """Validate what was gathered; relative paths start at the file's directory, or else the current one.

        Raises:
            ConfigError: There are problems.
        """
        config = self._validated(path)
        if config is None or self.problems:
            raise ConfigError("\n".join(_printable(problem) for problem in self.problems))
        origins = {key: _printable(self._origin(key)) for _, _, key in _known_keys()}
        return Loaded(config, origins, path)

    def _validated(self, path: Path | None) -> Config | None:
        try:
            base = (path.parent if path else Path()).absolute()
            return Config.model_validate(self._nested(), context={"base": base})
        except ValidationError as error:
            for details in error.errors(include_url=False):
                self._refuse_value(details)
        except OSError as error:
            self.problems.append(f"the current directory cannot be used: {error.strerror}")
        return None

    def _nested(self) -> dict[str, dict[str, object]]:
        nested: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
        for key, given in self.given.items():
            section, _, name = key.partition(".")
            nested[section][name] = given.value
        return nested

    def _refuse_value(self, details: Mapping[str, Any]) -> None:
        """Report one of pydantic's errors; its ``loc`` is (section, key), and in a list the item's index."""
        key = ".".join(details["loc"][:2])
        index = details["loc"][2:3]
        item = f"item {index[0] + 1} " if index else ""
        problem = f"{item}{requirement(details)}"
        if key in self.given:
            self._refuse(self._origin(key), key, f"{problem}, not {_shown(details['input'])}")
        else:
            self._refuse(self._origin(ASKED_FOR_BY.get(key, key)), key, problem)

    def _origin(self, key: str) -> str:
        given = self.given.get(key)
        return given.origin if given else "default"


def _misplaced(section: str, value: object) -> str:
    """Say what is wrong with a name at the top of the document that is no section, or holds no table."""
    return f"must be a table ([{section}]), not {_shown(value)}" if section in SECTIONS else unknown(section)


def _file_text(path: Path) -> str:
    """Read a configuration file; a pipe such as ``/dev/fd/63`` is read to its end."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL byte in the path
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: more than {MAX_FILE_BYTES} bytes: this is no configuration file")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text: byte 0x{content[error.start]:02x}") from error


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_error(str(error), text, name)) from error
    except ValueError as error:  # int() refuses more than 4,300 digits (CPython 3.11), and says nothing of a line
        raise ConfigError(f"{name}: a number has too many digits") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: arrays or tables are nested too deeply") from error


def _syntax_error(message: str, text: str, name: str) -> str:
    """Put tomllib's "… (at line 3, column 5)" into the form of our other messages."""
    found = _POSITION.search(message)
    line = found[1] if found and found[1] else text.rstrip("\n").count("\n") + 1
    clause = _POSITION.sub("", message)
    return f"{name}:{line}: not valid TOML: {clause[:1].lower()}{clause[1:]}"


# Strings and comments, whichever begins first. A multi-line string may end in up to two quotes of its own.
_STRING_OR_COMMENT = re.compile(
    r'''"""(?:\\.|[^\\])*?"""(?!")|"(?:\\.|[^"\\\n])*"''' + r"""|'''.*?'''(?!')|'[^'\n]*'|\#[^\n]*""",
    re.DOTALL,
)
_KEY_PATH = r"""((?:[A-Za-z0-9_-]|"(?:\\.|[^"\\])*"|'[^']*'|[ \t.])+)"""
_HEADER = re.compile(rf"\[\[?{_KEY_PATH}\]")
_ASSIGNMENT = re.compile(rf"{_KEY_PATH}=")


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Find the line, from 1, of each ``(section,)`` and ``(section, key)``; tomllib tells of values only.

    ``text`` is TOML that tomllib accepts. A key in an inline table has its table's line.
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    depth = 0  # of brackets that earlier lines left open: such a line holds items, not keys
    for number, line in enumerate(_STRING_OR_COMMENT.sub(_flattened, text).split("\n"), start=1):
        path: tuple[str, ...] = ()
        if not depth and (header := _HEADER.match(line.strip())):
            path = table = _key_parts(header[1])
        elif not depth and (assignment := _ASSIGNMENT.match(line.strip())):
            path = table + _key_parts(assignment[1])
        for length in (1, 2)[: len(path)]:
            lines.setdefault(path[:length], number)
        depth += _left_open(line)
    return lines


def _flattened(found: re.Match[str]) -> str:
    """Keep a short string, which may be a key; of all else keep the line ends, which are counted."""
    text = found[0]
    is_short = text[0] != "#" and text[:3] not in ('"""', "'''")
    return text if is_short else "\n" * text.count("\n")


def _left_open(line: str) -> int:
    plain = _STRING_OR_COMMENT.sub("", line)
    return sum((character in "[{") - (character in "]}") for character in plain)


def _key_parts(path: str) -> tuple[str, ...]:
    """Split a dotted key by the one parser that knows its quotes and escapes."""
    node: Any = tomllib.loads(f"{path} = 0")
    parts = []
    while isinstance(node, dict):
        part, node = next(iter(node.items()))
        parts.append(part)
    return tuple(parts)


def toml_text(value: object) -> str:
    """Render a value as TOML would read it, with nothing in it that a terminal would obey."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _printable(json.dumps(value, ensure_ascii=False))
    if isinstance(value, tuple):
        return f"[{', '.join(toml_text(item) for item in value)}]"
    return repr(value).removesuffix(".0")


def _shown(value: object) -> str:
    """Render a refused value for its message: short, and never failing, whatever it is."""
    if isinstance(value, str):
        return toml_text(value[:MAX_SHOWN_CHARS]) + ("..." if len(value) > MAX_SHOWN_CHARS else "")
    if isinstance(value, int) and value.bit_length() > 64:  # repr() refuses more than 4,300 digits
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, bool | int | float):
        return toml_text(value)
    if isinstance(value, list | tuple) and not value:
        return "[]"
    return f"a {_KINDS.get(type(value), type(value).__name__)}"


def _key_text(section: str, key: str = "") -> str:
    return ".".join(_bare_or_quoted(part) for part in (section, key)[: 2 if key else 1])


def _bare_or_quoted(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) and len(key) <= MAX_SHOWN_CHARS else _shown(key)


def _printable(text: str) -> str:
    """Escape what would break a line or move a terminal's cursor, as TOML escapes it."""
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"
