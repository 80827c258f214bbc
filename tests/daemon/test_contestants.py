"""The benchmark's contestants: each starts, answers, and leaves nobody; and what real clients say of one is understood.

They come with the extra ``dev`` and with what `.ci/run` installs; one that is missing fails its test.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from clients import wait_for

sys.path.append(str(Path(__file__).parents[2] / "bench"))  # last: its modules have everyday names
import entrants
from contestants import bare_park
from entrants import Entrant
from generators import RedisBenchmark
from lifecycle import await_answer
from rounds import LIGHTER, Load, Overload, turn
from running import Running, group

LANES = 8
LINES = (
    "poolserver 8×1",
    "poolserver 1×8",
    "poolserver 8×1, every limit",
    "poolserver asyncio",
    "poolserver uvloop",
    "ThreadingTCPServer",
    "ForkingTCPServer",
    "8 threads",
    "bare 8",
    "bare 8, C",
    "asyncio streams",
    "uvloop streams",
    "gevent StreamServer",
    "Net::Server::PreFork 8",
)
PAGES = ("ThreadingHTTPServer", "gunicorn gthread 1×8", "waitress 1×8", "cheroot 1×8", "bare park 8")
GONE_TIMEOUT = 20.0


@pytest.fixture(scope="session")
def everyone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Entrant]:
    """By label; the loop in C is compiled."""
    pages = [each for each in entrants.pages(LANES) if not each.label.startswith("poolserver")]
    lines = entrants.lines("once", tmp_path_factory.mktemp("compiled"), LANES)
    parking = Entrant(replace(bare_park("bench.web:Page", LANES), talk="gets"))
    return {each.label: each for each in [*lines, *pages, parking]}


def test_each_of_them_is_tested(everyone: dict[str, Entrant]) -> None:
    """The names below are all there are."""
    assert {*everyone} == {*LINES, *PAGES}


@pytest.mark.parametrize("label", [*LINES, *PAGES])
def test_it_answers_and_leaves_nobody(label: str, everyone: dict[str, Entrant], tmp_path: Path) -> None:
    """Its exit status is looked at as it is stopped."""
    entrant = everyone[label]
    assert not entrant.cannot
    with Running(entrant.contestant, tmp_path) as server:
        await_answer(server)
        members = group(server.pid)
    wait_for(lambda: not any(is_alive(pid, server.pid) for pid in members), GONE_TIMEOUT, f"all of {members} to leave")


def is_alive(pid: int, leader: int) -> bool:
    """Whether it still runs, in the group of its first process: its number alone may be another's by now."""
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" and int(group) == leader


@pytest.mark.parametrize(
    ("label", "load"),
    [
        ("bare 8, C", Load("pings", 20, 2)),
        ("bare 8, C", Overload("pings", 100, 50)),
        ("bare 8, C", RedisBenchmark("pings", 500, 2)),
        ("ForkingTCPServer", Load("pings", 20, 2)),
    ],
    ids=["ours", "overload", "redis-benchmark", "forking"],
)
def test_a_round_gives_figures(label: str, load: Load, everyone: dict[str, Entrant], tmp_path: Path) -> None:
    """CPU of server and client, how many, how long; and nothing failed."""
    with Running(everyone[label].contestant, tmp_path) as server:
        await_answer(server)
        figures = turn(server, load)
    outcome = figures.outcome
    assert outcome.requests >= max(1, load.count // LIGHTER)
    assert min(figures.cpu_us, outcome.seconds, outcome.client_cpu) > 0
    assert not outcome.more.get("failed")
