"""The herald: what systemd is told of a pool, and when; with a pool that is only stepped and a socket for its news."""

import math
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolserver.commands import Command
from poolserver.events import WorkerExited, WorkerReady
from poolserver.herald import EXTENSION_INTERVAL, RETRY_INTERVAL, STATUS_INTERVAL, Health, Herald
from poolserver.pool import Pool
from poolserver.states import Policy, WorkerState
from poolserver.systemd import Manager

SNAPSHOT = {
    "state": "serving",
    "pool": {"busy": 1, "lanes": 8, "parked": 2},
    "totals": {"accepted": 5, "refused": {"rate": 3, "denied": 1}, "errors": 0, "respawns": 0},
}


class Scene:
    """A pool of two workers, its herald, and the socket on which that is heard."""

    def __init__(self, folder: Path, watchdog: float = 0.0) -> None:
        self.heard_on = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard_on.bind(str(folder / "notify"))
        self.heard_on.setblocking(False)
        self.pool = Pool(Policy(2))
        self.manager = Manager(str(folder / "notify"), watchdog)
        self.snapshot = dict(SNAPSHOT)
        self.herald = Herald(self.manager, self.pool, Health(lambda: 10.0), lambda _now: self.snapshot)
        self.pool.step(None, 0.0)

    def heard(self, now: float) -> list[str]:
        """What one turn of the loop at ``now`` tells."""
        assert self.herald.attend((), now) == []
        told = []
        while True:
            try:
                told.append(self.heard_on.recv(65536).decode())
            except BlockingIOError:
                return told

    def serve(self, now: float = 0.0) -> None:
        """Both workers accept."""
        for serial in list(self.pool.workers):
            self.pool.step(WorkerReady(serial), now)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.heard_on.close()


def test_start_is_extended_until_every_worker_accepts(scene: Scene) -> None:
    """Again and again, and then READY=1 at once."""
    assert scene.heard(0.0) == ["EXTEND_TIMEOUT_USEC=15000000"]
    assert scene.heard(0.1) == []
    assert scene.herald.deadline() == EXTENSION_INTERVAL
    assert scene.heard(EXTENSION_INTERVAL) == ["EXTEND_TIMEOUT_USEC=15000000"]
    scene.pool.step(WorkerReady(1), 6.0)
    assert scene.heard(6.0) == []
    scene.pool.step(WorkerReady(2), 7.0)
    assert scene.herald.deadline() == 0.0
    assert scene.heard(7.0) == [
        "READY=1\nSTATUS=serving: 1 of 8 lanes busy, 2 parked; 5 accepted, 4 refused, 0 errors, 0 respawns"
    ]


def test_start_of_which_a_part_fails_is_not_extended(scene: Scene) -> None:
    """One serves, the other cannot start: READY=1 would be a lie, and trying may take for ever."""
    scene.pool.step(WorkerReady(1), 0.0)
    scene.pool.step(WorkerExited(2, "exited with code 1"), 0.0)
    assert scene.heard(1.0) == []


def test_status_is_told_when_it_has_changed(scene: Scene) -> None:
    """Not at each turn, and not twice."""
    scene.serve()
    assert len(scene.heard(0.0)) == 1
    assert len(scene.heard(STATUS_INTERVAL)) == 1
    assert scene.heard(2 * STATUS_INTERVAL) == []
    scene.snapshot["pool"] = {"busy": 7, "lanes": 8, "parked": 2}
    assert scene.heard(2 * STATUS_INTERVAL + 0.1) == []
    assert "7 of 8 lanes busy" in scene.heard(3 * STATUS_INTERVAL + 0.1)[0]


def test_drain_is_told_once_and_extended_as_long_as_it_takes(scene: Scene) -> None:
    """STOPPING=1, then more time."""
    scene.serve()
    scene.heard(0.0)
    scene.pool.step(Command.STOP, 1.0)
    assert scene.heard(1.0) == ["STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=15000000"]
    assert scene.heard(1.0 + EXTENSION_INTERVAL) == ["EXTEND_TIMEOUT_USEC=15000000"]


def test_master_that_has_handed_over_has_no_more_to_say(scene: Scene) -> None:
    """Nor anything to wake up for, however long its workers still have."""
    scene.serve()
    scene.heard(0.0)
    scene.pool.step(Command.STOP, 1.0)
    scene.manager.is_muted = True
    assert scene.heard(1.0) == []
    assert scene.herald.deadline() == math.inf


def test_news_that_could_not_be_told_is_told_later(scene: Scene, tmp_path: Path) -> None:
    """systemd's queue may be full: READY=1 must not be lost."""
    scene.serve()
    (tmp_path / "notify").rename(tmp_path / "away")
    assert scene.heard(0.0) == []
    assert scene.herald.deadline() == RETRY_INTERVAL
    (tmp_path / "away").rename(tmp_path / "notify")
    assert scene.heard(RETRY_INTERVAL)[0].startswith("READY=1\n")


def test_watchdog_hears_from_a_pool_that_is_well_in_each_quarter(tmp_path: Path) -> None:
    """Also before it is ready, and while it drains."""
    scene = Scene(tmp_path, watchdog=2.0)
    beats = [now / 10 for now in range(60) if "WATCHDOG=1" in scene.heard(now / 10)]
    assert beats == [now / 2 for now in range(12)]
    scene.heard_on.close()


def test_watchdog_hears_nothing_once_all_that_is_ready_hangs_again_and_again(tmp_path: Path) -> None:
    """Workers hang, and so do those that replaced them: twice the time in which a hang is noticed, then silence."""
    scene = Scene(tmp_path, watchdog=2.0)
    scene.serve()
    assert "WATCHDOG=1" in scene.heard(20.0)
    for worker in scene.pool.workers.values():
        worker.state = WorkerState.HUNG
    last = max(now for now in range(21, 80) if "WATCHDOG=1" in scene.heard(float(now)))
    assert last == 40
    scene.heard_on.close()


class TestHealth:
    def test_workers_that_die_make_nobody_sick(self) -> None:
        """None lives long enough to prove anything, and yet none hangs: a restart would only do harm."""
        health = Health(lambda: 10.0)
        assert all(health.look(now, has_hung=False, now=float(now)) for now in range(1000))

    def test_one_good_worker_is_enough(self) -> None:
        """Others hang and are replaced, again and again."""
        health = Health(lambda: 10.0)
        assert all(health.look(0.0, has_hung=True, now=float(now)) for now in range(11, 1000))

    def test_replacements_that_prove_themselves_end_it(self) -> None:
        """They have been ready for longer than a hang goes unnoticed."""
        health = Health(lambda: 10.0)
        assert health.look(None, has_hung=True, now=0.0)
        assert not health.look(25.0, has_hung=True, now=25.0)
        assert health.look(25.0, has_hung=False, now=35.1)

    def test_without_a_limit_nothing_hangs(self) -> None:
        """timeouts.worker = 0: no worker is ever found to hang."""
        assert Health(lambda: 0.0).look(None, has_hung=False, now=math.inf)
