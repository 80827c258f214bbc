"""What a discipline gave, from the rounds to the table: written as JSON, read again for the page and the charts.

Everything that is shown is computed here from the rounds' figures, which the JSON has all of.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

NUMBERS = re.compile(r"\[\s+([-+.,\deE\s]*?)\s+\]")
RESULTS = Path(__file__).resolve().parent / "results"
OURS = "poolserver"
BUSY_CLIENT = 0.85
"""A client that uses this much of a core is what limits the round."""


@dataclass(frozen=True)
class Metric:
    """A column: its heading, with the unit, and the digits after the point."""

    heading: str
    digits: int = 1


METRICS = {
    "cpu_us": Metric("CPU, µs"),
    "per_second": Metric("a second", 0),
    "client_share": Metric("client's core", 2),
    "p50_ms": Metric("p50, ms", 2),
    "p99_ms": Metric("p99, ms", 2),
    "failed": Metric("failed", 0),
    "worker_mib": Metric("private of a worker, MiB"),
    "pool_mib": Metric("all, MiB"),
    "idle_ms": Metric("CPU while idle, ms/s", 2),
    "start_ms": Metric("first answer, ms", 0),
    "respawn_ms": Metric("next answer, ms"),
    "held": Metric("held", 0),
    "kb_each": Metric("memory of each, kB"),
    "newcomer_ms": Metric("newcomer's answer, ms", 2),
}


@dataclass(frozen=True)
class Standing:
    """A contestant's rounds by metric, or why it has none."""

    label: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    cannot: str = ""

    def middle(self, metric: str) -> float:
        """The rounds' median."""
        return median(self.samples[metric])

    @property
    def is_ours(self) -> bool:
        """Whether it is poolserver, in whatever shape."""
        return self.label.startswith(OURS)


@dataclass(frozen=True)
class Ratio:
    """One against another: of the medians, and the quartiles of the single laps' ratios."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Self:
        """The sequences are of the same laps."""
        laps = [one / other for one, other in zip(ours, theirs, strict=True) if other]
        low, _, high = quantiles(laps, n=4) if len(laps) > 1 else laps * 3
        return cls(median(ours) / median(theirs), low, high)

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Result:
    """A discipline: who stood where.

    Args:
        against: whose CPU is divided by each other's, where rounds were alternated.
        section: its name on the command line, and of its file.
        title: what was measured.
        facts: machine, versions, rounds, time.
    """

    standings: list[Standing]
    against: str = ""
    section: str = ""
    title: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, label: str) -> Standing:
        known = (each for each in self.standings if each.label == label)
        return next(known, Standing(label, cannot="it was not there"))

    @property
    def metrics(self) -> list[str]:
        """The columns that it has."""
        return [name for name in METRICS if any(name in each.samples for each in self.standings)]

    def ratio(self, metric: str, ours: str, theirs: str) -> Ratio | None:
        """None where either did not take part."""
        one, other = self[ours], self[theirs]
        return None if one.cannot or other.cannot else Ratio.of(one.samples[metric], other.samples[metric])

    @property
    def heading(self) -> list[str]:
        """Of the table."""
        names = [METRICS[name].heading for name in self.metrics]
        return ["", *names, *([f"CPU of {self.against} ÷ its"] if self.against else [])]

    def rows(self) -> Iterator[list[str]]:
        """The table's cells."""
        for standing in self.standings:
            if standing.cannot:
                yield [standing.label, f"cannot: {standing.cannot}"]
                continue
            cells = [shown(standing, name) for name in self.metrics]
            ratio = self.ratio("cpu_us", self.against, standing.label) if self.against else None
            is_itself = standing.label == self.against
            yield [standing.label, *cells, *(["" if is_itself else str(ratio)] if ratio else [])]

    def write(self, folder: Path) -> None:
        """Its file, in place of the one of an earlier run."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / f"{self.section}.json").write_text(compact(text) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """From its file."""
        fields = json.loads(path.read_text())
        standings = [Standing(**each) for each in fields.pop("standings")]
        return cls(standings=standings, **fields)


def compact(text: str) -> str:
    """Each list of numbers on one line."""
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def shown(standing: Standing, metric: str) -> str:
    """A cell: the median; a client at its limit is marked."""
    if metric not in standing.samples:
        return ""
    value = standing.middle(metric)
    mark = "*" if metric == "per_second" and standing.middle("client_share") > BUSY_CLIENT else ""
    return f"{value:,.{METRICS[metric].digits}f}{mark}"


def rounded(samples: dict[str, list[float]]) -> dict[str, list[float]]:
    """Four digits, which is more than is known."""
    return {name: [float(f"{value:.4g}") for value in values] for name, values in samples.items()}


def results(folder: Path = RESULTS) -> dict[str, Result]:
    """All that there are, by section."""
    read = {}
    for path in sorted(folder.glob("*.json")):
        if "standings" in json.loads(path.read_text()):
            read[path.stem] = Result.read(path)
    return read
