"""The observer: what a snapshot says, and that nothing a worker writes can break it."""

import json
import os
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolserver.binding import bind_all
from poolserver.door import Register
from poolserver.events import Start, WorkerExited, WorkerReady
from poolserver.listener import Listener, Options
from poolserver.metrics import Observer
from poolserver.networks import source_of
from poolserver.pool import Pool
from poolserver.queues import Queue, queue_of
from poolserver.rows import DURATION_BOUNDS, ROW_BYTES, Outcome, Row
from poolserver.scoreboard import Berth, Scoreboard
from poolserver.snapshot import Snapshot
from poolserver.states import Policy
from poolserver.station import Terms

NOW = 1_000_000.0


class Scene:
    """A pool of two workers with two lanes each, all of them this process."""

    def __init__(self, listeners: list[Listener], workers: int = 2, **policy: float) -> None:
        self.board = Scoreboard.create()
        self.pool = Pool(Policy(workers, **policy), jitter=lambda: 0.5)
        self.register = Register.create()
        self.observer = Observer("hello", 2, Terms(handler_timeout=5.0), listeners, self.register, self.board)
        self.berths: dict[int, tuple[int, Berth]] = {}
        self.step()

    def step(self, *events: object) -> None:
        for event in [*events, None]:
            for action in self.pool.step(event, NOW):  # type: ignore[arg-type]
                if isinstance(action, Start):
                    self.berths[action.serial] = (os.getpid(), self.board.allot(2))

    def ready(self) -> "Scene":
        self.step(*[WorkerReady(serial) for serial in self.berths])
        for serial in self.berths:
            for row in self.rows(serial):
                row.idle()
        return self

    def rows(self, serial: int) -> list[Row]:
        return self.board.rows(self.berths[serial][1])

    def bury(self, serial: int) -> None:
        _, berth = self.berths.pop(serial)
        self.board.release(berth)
        self.step(WorkerExited(serial, "was killed"))

    def look(self, after: float = 0.0) -> Snapshot:
        found = self.observer.snapshot(self.pool, self.berths, NOW + after)
        json.dumps(found, allow_nan=False)
        return found


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    bound = bind_all(["tcp://127.0.0.1:0", "udp://127.0.0.1:0"], Options(backlog=7))
    yield bound
    for listener in bound:
        listener.close()


def test_starting_workers_have_no_lanes_yet(listeners: list[Listener]) -> None:
    """They are listed with their slot and pid."""
    found = Scene(listeners).look()
    assert found["state"] == "starting"
    assert [(worker["slot"], worker["state"], worker["lanes"]) for worker in found["workers"]] == [
        (0, "starting", []),
        (1, "starting", []),
    ]
    assert found["workers"][0]["pid"] == os.getpid()


def test_lanes_tell_whom_they_serve_and_for_how_long(listeners: list[Listener]) -> None:
    """And what is left of the handler deadline."""
    scene = Scene(listeners).ready()
    scene.rows(1)[1].begin("127.0.0.9:4711")
    found = scene.look()
    idle, busy = found["workers"][0]["lanes"]
    assert (idle["state"], idle["peer"], idle["deadline_left"]) == ("idle", None, None)
    assert (busy["state"], busy["peer"]) == ("busy", "127.0.0.9:4711")
    assert busy["deadline_left"] == 0.0
    assert found["pool"] == {"workers": 2, "threads": 2, "lanes": 4, "busy": 1, "idle": 3, "parked": 0}
    assert found["state"] == "serving"


def test_totals_stay_when_a_worker_dies(listeners: list[Listener]) -> None:
    """And its replacement counts on."""
    scene = Scene(listeners).ready()
    for serial in (1, 2):
        row = scene.rows(serial)[0]
        row.begin("127.0.0.1:1")
        row.end(Outcome.SERVED)
        row.refuse(Outcome.REFUSED_RATE)
    before = scene.look()["totals"]
    scene.bury(1)
    after = scene.look()["totals"]
    assert (before["accepted"], before["served"], before["refused"]["rate"]) == (4, 2, 2)
    assert after == before | {"respawns": 1}


def test_durations_are_counted_by_their_bounds_and_stay_when_a_worker_dies(listeners: list[Listener]) -> None:
    """Of those that had a handler."""
    scene = Scene(listeners).ready()
    row = scene.rows(1)[0]
    for end in (Outcome.SERVED, Outcome.ERRORS, Outcome.REFUSED_VERIFY):
        row.begin("127.0.0.1:1")
        row.end(end)
    before = scene.look()["durations"]
    scene.bury(1)
    assert scene.look()["durations"] == before
    assert before["bounds"] == list(DURATION_BOUNDS)
    assert (len(before["counts"]), sum(before["counts"])) == (len(DURATION_BOUNDS) + 1, 2)
    assert 0 <= before["sum"] < 60


def test_worker_that_cannot_start_leaves_the_service_degraded(listeners: list[Listener]) -> None:
    """Its slot is listed while it waits for the next try."""
    scene = Scene(listeners).ready()
    scene.bury(2)
    scene.bury(3)
    scene.bury(4)
    found = scene.look()
    assert found["state"] == "degraded"
    assert [(worker["slot"], worker["state"], worker["pid"]) for worker in found["workers"]][1] == (1, "stopped", None)


def test_largest_sources_are_those_with_most_connections_and_most_refusals(listeners: list[Listener]) -> None:
    """Neither hides the other."""
    scene = Scene(listeners).ready()
    for row in scene.rows(1):
        row.begin("127.0.0.9:4711")
    scene.rows(2)[0].begin("[2001:db8::1]:4711")
    scene.rows(2)[1].begin("unix:uid=7,pid=9")
    for number in range(20):
        scene.register.connections.refuse(source_of((f"10.0.0.{number}", 1), 32, 64), 1)
    found = scene.look()["sources"]
    assert len(found) == 10
    assert found[0] == {"source": "127.0.0.9", "active": 2, "refused": 0}
    assert {each["source"] for each in found} >= {"2001:db8::/64", "uid 7"}
    assert sum(each["refused"] for each in found) == 7


def test_listeners_tell_what_waits(listeners: list[Listener]) -> None:
    """The queue as the kernel has it; drops where there can be any."""
    with socket.create_connection(listeners[0].socket.getsockname()):
        select.select([listeners[0].socket], [], [], 10)
        tcp, udp = Scene(listeners).look()["listeners"]
    assert (tcp["queued"], tcp["backlog"], tcp["drops"]) == (1, 7, None)
    assert (udp["queued"], udp["backlog"], udp["drops"]) == (0, None, 0)


def test_closed_listener_tells_nothing(listeners: list[Listener]) -> None:
    """As while draining."""
    for listener in listeners:
        listener.socket.close()
    assert [listener["queued"] for listener in Scene(listeners).look()["listeners"]] == [None, None]


def test_unix_listener_tells_its_queue() -> None:
    """By netlink, as ss does."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")
        listener.listen(9)
        client.connect(listener.getsockname())
        assert queue_of(listener) == Queue(waiting=1, backlog=9)


@given(octets=st.binary(min_size=ROW_BYTES, max_size=ROW_BYTES), number=st.integers(0, 3))
def test_whatever_a_worker_writes_the_snapshot_stands(octets: bytes, number: int) -> None:
    """Garbage in a row raises nothing, counts nothing absurd, and takes nothing back."""
    scene = Scene([]).ready()
    scene.rows(1)[0].refuse(Outcome.REFUSED_RATE)
    before = scene.look()["totals"]
    scene.board.memory[number * ROW_BYTES : (number + 1) * ROW_BYTES] = octets
    found = scene.look()
    assert found["totals"]["accepted"] >= before["accepted"]
    assert found["totals"]["refused"]["rate"] >= 1
    assert found["totals"]["accepted"] <= 5 * 2**53
    assert all(lane["since"] >= 0 for worker in found["workers"] for lane in worker["lanes"])
    scene.bury(1)
    scene.bury(2)
    assert scene.look()["totals"]["accepted"] >= found["totals"]["accepted"]
