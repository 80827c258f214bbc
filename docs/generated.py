"""The reference, made from the code: configuration, command line, signals, exit codes, metrics, what status shows.

A page has ``<!-- generated: NAME -->`` where a text goes; ``filled`` puts it there, in Markdown. Nothing is written
here that the code says: where it says nothing, the build fails. ``conf.py`` calls this, and the tests.
"""

import ast
import inspect
import re
import signal
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from prometheus_client.metrics_core import Metric
from pydantic import AfterValidator, BeforeValidator
from pydantic.fields import FieldInfo

from poolserver import cli, errors, exporter, snapshot, values
from poolserver.commands import MASTER_SIGNALS
from poolserver.config import toml_text
from poolserver.rows import DURATION_BOUNDS
from poolserver.sections import SECTIONS, Config, Section

SAMPLE = Path(__file__).parents[1] / "config" / "poolserver.toml"
"""Every key at its default, with what it is for."""

_PLACE = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)

_KINDS = {
    "duration": values.Duration,
    "fraction": values.Fraction,
    "size": values.Size,
    "permissions, octal text": values.OctalMode,
    "network": values.Network,
    'rate, such as "20/s"': values.Rate,
    '"rst", "close" or a text': values.Refusal,
    '"auto" or a number': values.WorkerCount,
    "true, false or a path": values.SwitchOrPath,
    "path": values.AnchoredPath,
    "bind URLs": values.Urls,
}
"""What people call the types of ``values.py``."""


_WORDS: Mapping[Any, str] = {bool: "true or false", int: "number", str: "text"}

_JSON_WORDS = {
    "dict[str, int]": "object of numbers",
    "list[": "list of ",
    "]": "",
    " | None": " or null",
    "str": "text",
    "int": "number",
    "float": "number",
    "bool": "true or false",
}


def filled(text: str) -> str:
    """A page with what is made from the code in its places."""
    return _PLACE.sub(lambda found: PARTS[found[1]](), text)


def configuration() -> str:
    """Every key of every section."""
    notes = sample_notes()
    return "\n".join(line for section in SECTIONS for line in _section(section, notes))


def sample_notes() -> dict[str, str]:
    """What ``config/poolserver.toml`` says of each ``section.key``. Of keys that share a comment the first has it, and
    the others say where it is."""
    notes: dict[str, str] = {}
    section, comment, first = "", list[str](), ""
    for line in SAMPLE.read_text().splitlines():
        if line.startswith("["):
            section, comment = line.strip("[]"), []  # what stands above it is about the file
        elif line.startswith("# "):
            comment, first = ([line[2:]] if first else [*comment, line[2:]]), ""
        elif " = " in line:
            key = f"{section}.{line.partition(' = ')[0]}"
            notes[key] = f"See `{first}`." if first else " ".join(comment)
            first = first or key
    return notes


def _section(section: str, notes: Mapping[str, str]) -> Iterator[str]:
    model = Config.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, Section)
    about = inspect.getdoc(model) or ""
    yield f"## `[{section}]`\n\n{_sentence(about.partition(': ')[2])}\n"
    defaults = getattr(Config(), section).model_dump()
    for key, field in SECTIONS[section].items():
        name = f"{section}.{key}"
        shown = "[]" if defaults[key] == () else toml_text(_relative(field, defaults[key]))
        yield f"### `{name}`\n"
        yield f"{_markdown(notes[name])}\n"
        yield f"Default `{shown}` · {_kind(field)} · `POOLSERVER_{section.upper()}__{key.upper()}`\n"


def _relative(field: FieldInfo, value: object) -> object:
    """A default that is a path is shown as it is written, not as it is resolved."""
    return field.default if field.validate_default and field.default != () else value


def _kind(field: FieldInfo) -> str:
    annotation = field.annotation
    name = next((name for name, kind in _KINDS.items() if _mark(kind) in field.metadata), "")
    if not name and get_origin(annotation) is Literal:
        return "one of " + ", ".join(f"`{each}`" for each in get_args(annotation))
    if not name and get_origin(annotation) is tuple:
        return {values.Network: "list of networks", values.FilledPath: "list of paths"}[get_args(annotation)[0]]
    return (name or _WORDS[annotation]) + _bounds(field)


def _mark(kind: Any) -> object:
    """The validator by which a type of ``values.py`` is known."""
    return [each for each in kind.__metadata__ if isinstance(each, AfterValidator | BeforeValidator)][-1]


def _bounds(field: FieldInfo) -> str:
    ends = {name: getattr(each, name) for each in field.metadata for name in ("ge", "gt", "le") if hasattr(each, name)}
    low = f"at least {ends['ge']}" if ends.get("ge") else f"more than {ends['gt']}" if "gt" in ends else ""
    high = f"at most {ends['le']}" if "le" in ends else ""
    said = " and ".join(each for each in (low, high) if each)
    return f", {said}" if said else ""


def commands() -> str:
    """Every command with its arguments and options, as ``--help`` has them."""
    return "\n".join(line for name in cli.cli.commands for line in _command(name))


def _command(name: str) -> Iterator[str]:
    command = cli.cli.commands[name]
    context = click.Context(command, info_name=f"poolserver {name}")
    yield f"### {name}\n"
    yield f"```text\n{' '.join(command.get_usage(context).removeprefix('Usage: ').split())}\n```\n"
    yield f"{_markdown(inspect.cleandoc(command.help or ''))}\n"
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and record[1]:
            yield f"`{record[0]}`\n: {_markdown(record[1])}\n"


def signals() -> str:
    """What each signal to the master does, in the words of ``run --help``."""
    rows = dict(_epilog("Signals to the master"))
    listed = {name for names in rows for name in names.split(", ")}
    known = {signal.Signals(number).name.removeprefix("SIG") for number in MASTER_SIGNALS}
    if missing := listed ^ known:
        raise ValueError(f"poolserver run --help and commands.py do not have the same signals: {missing}")
    return _table(("signal", "what it does"), [(f"`{name}`", text) for name, text in rows.items()])


def exit_codes() -> str:
    """What ``poolserver`` ends with: the exception tree's codes, in the words of ``--help``."""
    rows = dict(_epilog("Exit codes"))
    tree = [errors.PoolserverError, *errors.PoolserverError.__subclasses__()]
    if missing := {str(each.exit_code) for each in tree} ^ (set(rows) - {"0"}):
        raise ValueError(f"--help and errors.py do not have the same exit codes: {missing}")
    return _table(("code", "meaning"), [(f"`{code}`", text) for code, text in rows.items()])


def _epilog(title: str) -> Iterator[tuple[str, str]]:
    """The two columns below a title in what ``run --help`` ends with."""
    _, found, rest = (cli.cli.commands["run"].epilog or "").partition(f"{title}:\n")
    if not found:
        raise ValueError(f"poolserver run --help has no {title!r}")
    for line in rest.split("\n\n")[0].splitlines():
        name, _, text = line.strip().partition("  ")
        yield name, text.strip()


def metrics() -> str:
    """Every metric of a service that has counted one of everything."""
    families = list(exporter.ServiceCollector(_specimen()).collect())
    return _table(
        ("metric", "type", "labels", "what it tells"),
        [(f"`{_full_name(each)}`", each.type, _labels(each), each.documentation) for each in families],
    )


def _full_name(family: Metric) -> str:
    return {"counter": f"{family.name}_total", "info": f"{family.name}_info"}.get(family.type, family.name)


def _labels(family: Metric) -> str:
    names = dict.fromkeys(name for sample in family.samples for name in sample.labels if name != "le")
    values_of = {name: sorted({sample.labels[name] for sample in family.samples}) for name in names}
    return "; ".join(
        f"`{name}`" + (f": {', '.join(values_of[name])}" if name in ("reason", "kind", "state", "result") else "")
        for name in names
    )


def _specimen() -> snapshot.Snapshot:
    """A snapshot with something in each of its places."""
    counted = {"accepted": 1, "served": 1, "errors": 0, "cut": 0, "respawns": 0, "reloads": 0, "reloads_failed": 0}
    listener = {"url": "tcp://127.0.0.1:20000", "backlog": 1024, "queued": 0}
    whole: Any = {
        "name": "hello",
        "version": "1",
        "pid": 1,
        "generation": 1,
        "state": "serving",
        "uptime": 1.0,
        "listeners": [listener | {"drops": None}, listener | {"url": "udp://127.0.0.1:53", "drops": 0}],
        "pool": dict.fromkeys(inspect.get_annotations(snapshot.PoolStatus), 0),
        "workers": [{"slot": 0, "pid": 2, "state": "ready", "rss": 1, "cpu": 1.0}],
        "totals": counted
        | {
            "refused": dict.fromkeys(snapshot.REFUSALS, 0),
            "rehearsed": dict.fromkeys(snapshot.REFUSALS[:4], 0),
            "timeouts": dict.fromkeys(snapshot.TIMEOUTS, 0),
        },
        "durations": {"bounds": list(DURATION_BOUNDS), "counts": [0] * (len(DURATION_BOUNDS) + 1), "sum": 0.0},
    }
    return whole


def status() -> str:
    """What ``status --json`` has, from the types that it is made of."""
    known = {name: each for name, each in vars(snapshot).items() if hasattr(each, "__total__")}
    return "\n".join(line for name, each in known.items() for line in _object(name, each, known))


def _object(name: str, cls: type, known: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}\n\n{_sentence(_markdown(inspect.cleandoc(cls.__doc__ or '')))}\n"
    rows = []
    for key, kind in inspect.get_annotations(cls).items():
        text = _type_text(kind)
        for other in known:
            text = re.sub(rf"\b{other}\b", f"[{other}](#{other.lower()})", text)
        rows.append((f"`{key}`", text))
    yield _table(("key", "type"), rows) + "\n"


def _type_text(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)
    text = re.sub(r"\b[a-z_.]+\.(?=[A-Z])", "", text)
    for python, json in _JSON_WORDS.items():
        text = text.replace(python, json)
    return text


def examples() -> str:
    """The handlers that can be run at once, each with the first line of its docstring."""
    rows = []
    for path in sorted((Path(cli.__file__).parent / "examples").glob("[a-z]*.py")):
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        spec = re.search(r"poolserver run (poolserver\.examples\.\S+)", about)
        if spec is None:
            raise ValueError(f"{path}: its docstring does not say how to run it")
        rows.append((f"`{spec[1]}`", _markdown(about.splitlines()[0])))
    return _table(("handler", "what it is"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _markdown(text: str) -> str:
    """A docstring's or help's text: double backticks are single ones, and what looks like HTML or a link is not."""
    text = textwrap.dedent(text).replace("``", "`")
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(each if each.startswith("`") else re.sub(r"([<>\[\]*_])", r"\\\1", each) for each in pieces)


PARTS: Mapping[str, Callable[[], str]] = {
    "configuration": configuration,
    "commands": commands,
    "signals": signals,
    "exit-codes": exit_codes,
    "metrics": metrics,
    "status": status,
    "examples": examples,
}
