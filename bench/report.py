"""What was found: rows with limits, the table, the JSON file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Limit:
    """A bound on a figure: `at_most` or at least."""

    value: float
    at_most: bool = True

    def holds(self, figure: float) -> bool:
        """Whether the figure keeps it."""
        return figure <= self.value if self.at_most else figure >= self.value

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        figure: what the limit is on; for a comparison the median of the laps' ratios.
        figure_of_minima: the same from each side's best round, which noise from other processes spares most.
        unit: of `median` and `minimum`.
    """

    section: str
    shape: str
    contestant: str
    unit: str
    median: float
    minimum: float
    figure: float | None = None
    figure_of_minima: float | None = None
    against: str = ""
    limit: Limit | None = None

    @property
    def is_missed(self) -> bool:
        """Whether there is a limit and the figure breaks it."""
        return self.limit is not None and self.figure is not None and not self.limit.holds(self.figure)

    @property
    def verdict(self) -> str:
        """`pass`, `MISS`, or nothing where no limit applies."""
        return "" if self.limit is None else "MISS" if self.is_missed else "pass"

    @property
    def title(self) -> str:
        """The row in words, for the line that says what was missed."""
        against = f" against {self.against}" if self.against else ""
        return f"{self.section}: {self.contestant}{against}: {self.figure:.2f}, limit {self.limit}"


HEADER = ("", "shape", "contestant", "median", "min", "unit", "against", "ratio", "of minima", "limit", "")
LEFT_ALIGNED = {0, 1, 2, 5, 6, 9, 10}


def own_figures(section: str, shape: str, contestant: str, unit: str, samples: Sequence[float]) -> Row:
    """A row that compares with nothing."""
    return Row(section, shape, contestant, unit, median(samples), min(samples))


def number(value: float) -> str:
    """Three digits or so: nothing here is known better."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    against = row.against or ("(itself)" if row.limit else "")
    limit = str(row.limit) if row.limit else ""
    ratios = ["" if figure is None else f"{figure:.2f}" for figure in (row.figure, row.figure_of_minima)]
    numbers = [number(row.median), number(row.minimum), row.unit]
    return (row.section, row.shape, row.contestant, *numbers, against, *ratios, limit, row.verdict)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows in aligned columns, under a heading."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            cell.ljust(width) if place in LEFT_ALIGNED else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()


def write_json(path: Path, rows: Sequence[Row], circumstances: dict[str, object]) -> None:
    """Rows and samples for a machine to read; the directory is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = [asdict(row) | {"verdict": row.verdict.lower() or None} for row in rows]
    path.write_text(json.dumps(circumstances | {"rows": figures}, indent=2) + "\n")
