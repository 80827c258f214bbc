"""The scoreboard: allotment, single-writer rows, totals that never go back."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolserver.errors import SystemRefusedError
from poolserver.rows import LaneState, Outcome
from poolserver.scoreboard import MAX_BERTHS, MAX_ROWS, Berth, Scoreboard


def test_new_row_is_absent() -> None:
    """Untouched memory reads as no lane."""
    board = Scoreboard.create()
    (reading,) = board.read(board.allot(1))
    assert reading.state is LaneState.ABSENT
    assert reading.counters["accepted"] == 0


def test_row_tells_state_since_and_peer() -> None:
    """What a lane writes is what a reader sees."""
    board = Scoreboard.create()
    berth = board.allot(2)
    first, second = board.rows(berth)
    first.idle()
    second.begin("[2001:db8::1]:65535")
    idle, busy = board.read(berth)
    assert idle.state is LaneState.IDLE
    assert (busy.state, busy.peer) == (LaneState.BUSY, "[2001:db8::1]:65535")
    assert busy.since >= idle.since > 0


def test_every_connection_ends_in_exactly_one_counter() -> None:
    """accepted = served + errors + refused + cut once nothing is open."""
    board = Scoreboard.create()
    berth = board.allot(1)
    (row,) = board.rows(berth)
    ends = [*Outcome, Outcome.SERVED]
    for end in ends:
        row.begin("127.0.0.1:1")
        row.end(end)
    counts = board.counted([berth])
    assert counts.pop("accepted") == len(ends) == sum(counts.values())
    assert counts["served"] == 2


def test_longest_peer_fits_and_longer_ones_are_cut() -> None:
    """Bytes beyond the field do not reach the neighbour's row."""
    board = Scoreboard.create()
    berth = board.allot(2)
    first, second = board.rows(berth)
    second.begin("127.0.0.1:2")
    first.begin("x" * 100)
    assert [reading.peer for reading in board.read(berth)] == ["x" * 48, "127.0.0.1:2"]


def test_lane_replaced_goes_on_counting() -> None:
    """The successor of a dead lane does not start from zero."""
    board = Scoreboard.create()
    berth = board.allot(1)
    (row,) = board.rows(berth)
    row.begin("127.0.0.1:1")
    row.end(Outcome.ERRORS)
    (successor,) = board.rows(berth)
    successor.begin("127.0.0.1:2")
    successor.end(Outcome.ERRORS)
    assert board.counted([berth])["errors"] == 2


def test_dead_worker_leaves_its_counts_and_zeroed_rows() -> None:
    """Totals never go back when a worker dies."""
    board = Scoreboard.create()
    berth = board.allot(1)
    (row,) = board.rows(berth)
    row.begin("127.0.0.1:1")
    row.end(Outcome.SERVED)
    board.release(berth)
    assert board.all_totals()["served"] == 1
    assert board.read(board.allot(1))[0].state is LaneState.ABSENT
    assert board.all_totals()["served"] == 1


def test_room_is_bounded_and_the_refusal_names_the_bounds() -> None:
    """More than there is room for is refused by name."""
    board = Scoreboard.create()
    board.allot(MAX_ROWS)
    with pytest.raises(SystemRefusedError, match=str(MAX_ROWS)):
        board.allot(1)
    crowded = Scoreboard.create()
    for _ in range(MAX_BERTHS):
        crowded.allot(1)
    with pytest.raises(SystemRefusedError, match=str(MAX_BERTHS)):
        crowded.allot(1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4000), st.integers(0, 20)), max_size=30))
def test_berths_never_overlap(steps: list[tuple[bool, int, int]]) -> None:
    """Whatever is allotted and given back, every lane row has one owner."""
    board = Scoreboard.create()
    held: list[Berth] = []
    for gives_back, lanes, which in steps:
        if gives_back and held:
            board.release(held.pop(which % len(held)))
            continue
        try:
            held.append(board.allot(lanes))
        except SystemRefusedError:
            continue
        ends = sorted((berth.first, berth.first + berth.lanes) for berth in held)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
        assert ends[-1][1] <= MAX_ROWS
