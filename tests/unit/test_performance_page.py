"""The tables of docs/performance.md are those of bench/results, and the pictures are there."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))  # last: its modules have everyday names
import figures  # noqa: E402 - they are beside the benchmark, not beside the tests
import page  # noqa: E402
from standings import Ratio, Result, Standing, results  # noqa: E402

MOST_BYTES = 150_000
"""Of a picture that everybody downloads with the sources."""


def test_tables_are_those_of_the_results() -> None:
    """`make bench-page` writes them."""
    text = page.PAGE.read_text()
    assert len(page.PLACE.findall(text)) > 10
    assert page.filled(text, results()) == text


def test_pictures_are_there_and_small() -> None:
    """Each that the page and the README show."""
    shown = {
        (file.parent / link).resolve()
        for file in (page.PAGE, ROOT / "README.md")
        for link in re.findall(r"!\[[^\]]*\]\((\S*bench/results/\S+)\)", file.read_text())
    }
    assert shown
    for path in shown:
        assert path.stat().st_size < MOST_BYTES
        assert path.with_suffix(".png").stat().st_size < MOST_BYTES


@pytest.fixture
def result() -> Result:
    """Two laps of three, one of which cannot."""
    standings = [
        Standing("poolserver 16×1", {"cpu_us": [10.0, 30.0], "per_second": [100.0, 300.0], "client_share": [0.9, 0.9]}),
        Standing("bare 16", {"cpu_us": [10.0, 20.0], "per_second": [50.0, 100.0], "client_share": [0.1, 0.1]}),
        Standing("gevent StreamServer", cannot="not installed: pip install gevent"),
    ]
    return Result(standings, "poolserver 16×1", "short", "a title", {"at": "now", "rounds": 2})


def test_result_is_read_as_it_was_written(result: Result, tmp_path: Path) -> None:
    """Lists of numbers on a line each."""
    result.write(tmp_path)
    assert results(tmp_path) == {"short": result}
    assert '"cpu_us": [10.0, 30.0]' in (tmp_path / "short.json").read_text()


def test_who_cannot_is_in_the_table(result: Result) -> None:
    """With the reason; and a client without a core left is marked."""
    ours, bare, gevent = result.rows()
    assert ours == ["poolserver 16×1", "20.0", "200*", "0.90", ""]
    assert bare[:3] == ["bare 16", "15.0", "75"]
    assert gevent == ["gevent StreamServer", "cannot: not installed: pip install gevent"]


def test_ratio_is_of_medians_and_its_spread_of_laps() -> None:
    """The laps are compared in pairs."""
    ratio = Ratio.of([10.0, 30.0, 20.0], [10.0, 10.0, 10.0])
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 1.0, 3.0)


def test_a_figure_is_judged_where_both_ran(result: Result) -> None:
    """20 of 15 is more than 1.15."""
    (judged,) = figures.judged({"short": result})
    assert judged.cells[:3] == ["CPU, short connection", "poolserver 16×1", "bare 16"]
    assert judged.is_missed
