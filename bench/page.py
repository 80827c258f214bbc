"""`make bench-page`: puts the tables of bench/results into `docs/performance.md`; a test says when they differ.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a section, `figures` or `machine`.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import figures
from standings import Result, results

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
WIDTH = 120
PLACE = re.compile(r"(?<=^<!-- table: )([a-z-]+) -->$.*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)


def filled(text: str, found: Mapping[str, Result]) -> str:
    """A page with its tables."""
    return PLACE.sub(lambda place: f"{place[1]} -->\n" + "".join(f"{line}\n" for line in table(place[1], found)), text)


def table(name: str, found: Mapping[str, Result]) -> Iterator[str]:
    """The lines of one."""
    if name == "figures":
        yield from markdown(figures.HEADING, [emphasised(each) for each in figures.judged(found)])
    elif name == "machine":
        yield from machine(found)
    elif name not in found:
        yield "Not measured yet."
    else:
        result = found[name]
        yield from markdown(result.heading, list(result.rows()))
        yield ""
        yield circumstances(result)


def circumstances(result: Result) -> str:
    """When, how often, and how much of the machine others had."""
    facts = result.facts
    if "disturbance_cpus" in facts:
        others = f"other processes took {facts['disturbance_cpus']:.2f} processors in its median lap"
        return f"{facts['at']}, {facts['rounds']} rounds; {others}."
    return f"{facts['at']}; load average {facts['load_average'][0]:.1f} at its end."


def emphasised(found: figures.Judged) -> list[str]:
    """What is missed stands out."""
    *cells, verdict = found.cells
    return [*cells, f"**{verdict}**" if found.is_missed else verdict]


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """An aligned table; a row that is too short is filled up."""
    yield f"| {' | '.join(heading)} |"
    yield f"|{'|'.join('---' for _ in heading)}|"
    for cells in rows:
        full = [*cells, *[""] * (len(heading) - len(cells))]
        yield f"| {' | '.join(full)} |"


def machine(found: Mapping[str, Result]) -> Iterator[str]:
    """What all of it ran on; a run on another machine is a line of its own."""
    for facts in {str(each.facts["cpu"]) + each.facts["kernel"]: each.facts for each in found.values()}.values():
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        yield from textwrap.wrap(f"{facts['cpu']}, Linux {facts['kernel']}, {versions}.", WIDTH)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), results()))
