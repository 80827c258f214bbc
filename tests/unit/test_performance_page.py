"""The tables of docs/performance.md are those of bench/results, and the pictures are there."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))  # last: its modules have everyday names
import figures  # noqa: E402 - they are beside the benchmark, not beside the tests
import page  # noqa: E402
from generators import wrk_outcome  # noqa: E402
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


WRK = """\
Running 1s test @ http://127.0.0.1:8000/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.82ms    2.80ms  42.20ms   91.15%
    Req/Sec     8.80k     1.02k   10.54k    63.64%
  Latency Distribution
     50%  732.00us
     75%    1.93ms
     90%    4.02ms
     99%    1.20s
  8765 requests in 1.10s, 1.29MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
  Non-2xx or 3xx responses: 1
Requests/sec:   7968.18
Transfer/sec:      1.17MB
"""


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


def test_what_wrk_says_is_understood() -> None:
    """Its times have units of their own, and failures are named only where there are some."""
    outcome = wrk_outcome(WRK, 1.5, 0.25)
    assert (outcome.requests, outcome.seconds, outcome.client_cpu) == (8765, 1.1, 0.25)
    assert outcome.more == {"p50_ms": 0.732, "p99_ms": 1200.0, "failed": 6.0}
    without = "".join(line for line in WRK.splitlines(keepends=True) if "errors" not in line and "Non" not in line)
    assert wrk_outcome(without, 1.5, 0.25).more["failed"] == 0
