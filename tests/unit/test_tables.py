"""What people read: the table of ``status``, rates and courses, the screen of ``top``."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from snapshots import lane, snapshot, worker

from poolserver.snapshot import Snapshot
from poolserver.tables import duration, size, status_text
from poolserver.top import screen
from poolserver.trends import BARS, Trends, bars


class TestStatus:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(None, "-"), (0.04, "0.0s"), (9.94, "9.9s"), (59.9, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_000, "1d01h")],
    )
    def test_duration_has_two_units_at_most(self, seconds: float | None, text: str) -> None:
        """Read at a glance."""
        assert duration(seconds) == text

    def test_size_is_in_megabytes(self) -> None:
        """Of 2**20 bytes."""
        assert (size(27 * 2**20), size(None)) == ("27M", "-")

    def test_state_comes_first(self) -> None:
        """The rest is for later."""
        assert status_text(snapshot(state="degraded")).startswith("hello: DEGRADED for 1m40s")

    def test_refusals_and_the_last_reload_are_named(self) -> None:
        """By reason; a failure with its own words."""
        totals = {"refused": {"rate": 3, "denied": 0, "banned": 7}, "reloads": 2, "reloads_failed": 1}
        last = {"ok": False, "reason": "x.toml:3: unknown key", "at": 1.7e9}
        text = status_text(snapshot(totals=totals, last_reload=last))
        assert "3 rate, 7 banned" in text
        assert "2, 1 failed; the last, at 2023-11-" in text
        assert "FAILED: x.toml:3: unknown key" in text

    def test_hostile_names_are_harmless(self) -> None:
        """Nothing moves the cursor, whoever chose it."""
        lanes = [lane("busy", 1.0, "\x1b[2J")]
        sources = [{"source": "\x1b]0;x\x07", "active": 1, "refused": 0}]
        text = status_text(snapshot(name="\x9b31m", workers=[worker(lanes=lanes)], sources=sources))
        assert all(line.isprintable() for line in text.splitlines())

    def test_vacant_slot_and_unknown_queue_are_dashes(self) -> None:
        """What there is not, or what nobody knows."""
        listeners = [{"url": "unix:/x", "backlog": None, "queued": None, "drops": None}]
        gone = worker(0, None, generation=None, state="stopped", age=None, rss=None, cpu=None, lanes=[])
        text = status_text(snapshot(listeners=listeners, workers=[gone]))
        assert "unix:/x        -        -      -" in text
        assert "0    -    -  stopped" in text


class TestTrends:
    def test_rates_are_what_grew_in_between(self) -> None:
        """Of the service, and of each worker that was there before."""
        trends = Trends.beginning(snapshot(), 10.0)
        later = snapshot(
            totals={"accepted": 40, "errors": 2, "refused": {"rate": 6}},
            workers=[worker(0, 100, cpu=2.0, accepted=30), worker(1, 102, accepted=10)],
        )
        trends.add(later, 12.0)
        assert (list(trends.accepted), trends.errors, trends.refused) == ([20.0], 1.0, 3.0)
        assert (trends.cpu, trends.connections) == ({100: 0.5}, {100: 15.0})

    def test_counters_of_a_new_master_are_no_negative_rate(self) -> None:
        """It may begin at zero."""
        trends = Trends.beginning(snapshot(totals={"accepted": 1000}), 10.0)
        trends.add(snapshot(), 11.0)
        assert list(trends.accepted) == [0.0]

    def test_bars_are_as_high_as_the_values(self) -> None:
        """The newest at the right; what is not nothing is seen."""
        assert bars([0, 4, 8, 0.001], 6) == "   " + BARS[4] + BARS[8] + BARS[1]
        assert bars([4], 1, most=8) == BARS[4]
        assert bars([], 3) == "   "

    @given(values=st.lists(st.floats(0, 1e12), max_size=50), width=st.integers(1, 40), most=st.floats(0, 1e12))
    def test_bars_are_as_wide_as_asked(self, values: list[float], width: int, most: float) -> None:
        """Whatever the values."""
        assert len(bars(values, width, most)) == width


def shown(one: Snapshot, width: int, height: int) -> list[str]:
    trends = Trends.beginning(one, 0.0)
    trends.add(one, 1.0)
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(screen(trends, width, height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


class TestTop:
    @pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
    @pytest.mark.parametrize("count", [1, 3, 128])
    def test_screen_fits(self, width: int, height: int, count: int) -> None:
        """Long names, large numbers, many of everything; the state is seen in any case."""
        peer = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
        workers = [
            worker(n, 4_194_304 + n, age=1e6, rss=2**34, errors=10**7, lanes=[lane("busy", 1e6, peer)] * 16)
            for n in range(count)
        ]
        listeners = [{"url": f"tcp://{peer}", "backlog": 65535, "queued": 65535, "drops": None}] * count
        sources = [{"source": "2001:db8:1111:2222::/64", "active": 10**4, "refused": 10**9}] * 10
        lines = shown(
            snapshot(name="n" * 64, state="degraded", workers=workers, listeners=listeners, sources=sources),
            width,
            height,
        )
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        assert lines[0].startswith(" DEGRADED ")
        assert lines[-1].endswith("q quits")

    def test_troubled_workers_are_shown_before_the_others(self) -> None:
        """Where not all can be."""
        workers = [worker(n, n, state="hung" if n == 77 else "ready") for n in range(128)]
        text = "\n".join(shown(snapshot(workers=workers), 80, 24))
        assert "hung" in text
        assert "more" in text

    def test_hostile_names_are_harmless(self) -> None:
        """Also on this screen."""
        lanes = [lane("busy", 1.0, "\x1b[2J[bold]")]
        lines = shown(snapshot(name="\x9b31m", workers=[worker(lanes=lanes)]), 80, 24)
        assert all(line.isprintable() for line in lines)
        assert any("\\x1b[2J[bold]" in line for line in lines)
