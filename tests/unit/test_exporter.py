"""What a scrape gets, and the supervision of the process that serves it."""

import json
import math
import os
import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from snapshots import lane, snapshot, worker

from poolserver.companion import STABLE_AFTER, Companion
from poolserver.errors import SystemRefusedError
from poolserver.exporter import exposition
from poolserver.process import Process
from poolserver.snapshot import Snapshot


def samples(one: Snapshot) -> dict[tuple[str, str], float]:
    """Each sample by its name and its one label's value."""
    found = {}
    for family in text_string_to_metric_families(exposition(one).decode()):
        for sample in family.samples:
            found[sample.name, ",".join(sample.labels.values())] = sample.value
    return found


def test_totals_become_counters() -> None:
    """By reason, kind and result."""
    totals = {"accepted": 7, "served": 5, "errors": 1, "cut": 1, "refused": {"rate": 3}, "timeouts": {"idle": 2}}
    found = samples(snapshot(totals=totals | {"reloads": 4, "reloads_failed": 1, "respawns": 6}))
    assert found["poolserver_connections_accepted_total", ""] == 7
    assert found["poolserver_handler_errors_total", ""] == 1
    assert found["poolserver_connections_refused_total", "rate"] == 3
    assert found["poolserver_timeouts_total", "idle"] == 2
    assert (found["poolserver_reloads_total", "ok"], found["poolserver_reloads_total", "failed"]) == (4, 1)
    assert found["poolserver_respawns_total", ""] == 6


def test_durations_become_a_histogram() -> None:
    """Cumulated, with the count of all."""
    found = samples(snapshot(durations={"bounds": [0.1, 1.0], "counts": [3, 2, 1], "sum": 7.5}))
    buckets = {label: value for (name, label), value in found.items() if name.endswith("seconds_bucket")}
    assert buckets == {"0.1": 3, "1.0": 5, "+Inf": 6}
    assert found["poolserver_handler_duration_seconds_count", ""] == 6
    assert found["poolserver_handler_duration_seconds_sum", ""] == 7.5


def test_workers_are_counted_by_state() -> None:
    """Every state is there, so that an alert on one has a zero to compare with."""
    workers = [worker(0, 1), worker(1, 2, state="hung"), worker(2, None, state="stopped", rss=None, cpu=None)]
    found = samples(snapshot(workers=workers))
    states = {label: value for (name, label), value in found.items() if name == "poolserver_workers"}
    assert states == {"starting": 0, "ready": 1, "retiring": 0, "hung": 1, "stopped": 1}
    assert found["poolserver_worker_resident_memory_bytes", "1,0"] == 27 * 2**20


def test_listeners_have_a_label_each() -> None:
    """A quote in a path does not break the text."""
    listeners = [
        {"url": 'unix:/run/a"b\\c', "backlog": 10, "queued": 3, "drops": None},
        {"url": "udp://127.0.0.1:53", "backlog": None, "queued": 4096, "drops": 9},
        {"url": "fd://3", "backlog": None, "queued": None, "drops": None},
    ]
    found = samples(snapshot(listeners=listeners))
    assert found["poolserver_accept_queue_length", 'unix:/run/a"b\\c'] == 3
    assert found["poolserver_receive_queue_bytes", "udp://127.0.0.1:53"] == 4096
    assert found["poolserver_datagrams_dropped_total", "udp://127.0.0.1:53"] == 9


def test_every_metric_is_ours_and_has_a_help() -> None:
    """The prefix, and a text."""
    lanes = [lane("busy", 1.0, "127.0.0.1:1")]
    for family in text_string_to_metric_families(exposition(snapshot(workers=[worker(lanes=lanes)])).decode()):
        assert family.name.startswith("poolserver_")
        assert family.documentation


def test_dashboard_asks_for_metrics_that_there_are() -> None:
    """Each name in config/grafana/poolserver.json is one of ours."""
    listeners = [{"url": "tcp://x", "backlog": 1, "queued": 1, "drops": None}]
    ours = {name for name, _ in samples(snapshot(listeners=listeners))}
    dashboard = Path(__file__).parents[2] / "config" / "grafana" / "poolserver.json"
    asked = set(re.findall(r"poolserver_[a-z_]+", dashboard.read_text()))
    assert json.loads(dashboard.read_text())["panels"]
    assert asked <= ours


class Forked(Process):
    """A child that the test says is dead."""

    def __init__(self) -> None:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.close(write_fd)
        super().__init__(4_000_000, None, read_fd)
        self.is_dead = False

    def has_exited(self) -> bool:
        if self.is_dead:
            self.note_reaped(9)
        return self.is_dead

    def send(self, signum: int) -> None:
        """Nobody is there."""


class Nursery:
    def __init__(self, **options: bool) -> None:
        self.started: list[Forked] = []
        self.refusal = ""
        self.companion = Companion("metrics", self.start, **options)
        self.companion.start()

    def start(self) -> Process:
        if self.refusal:
            raise SystemRefusedError(self.refusal)
        self.started.append(Forked())
        return self.started[-1]

    def die(self, now: float) -> None:
        self.started[-1].is_dead = True
        self.companion.attend([], now)


@pytest.fixture
def now() -> float:
    """The clock that the companion itself looks at when it starts."""
    return time.monotonic()


def test_dead_companion_is_started_again_and_backs_off(now: float) -> None:
    """At once, then later and later."""
    nursery = Nursery()
    nursery.die(now)
    assert len(nursery.started) == 2
    nursery.die(now)
    assert len(nursery.started) == 2
    assert now < nursery.companion.deadline() < now + 1
    nursery.companion.attend([], nursery.companion.deadline())
    assert len(nursery.started) == 3


def test_companion_that_lived_for_long_is_started_at_once(now: float) -> None:
    """Its death is no failed start."""
    nursery = Nursery()
    for _ in range(2):
        nursery.die(now)
    nursery.companion.attend([], now + 1)
    nursery.die(now + 2 * STABLE_AFTER)
    assert len(nursery.started) == 4


def test_companion_that_cannot_be_forked_is_tried_again(now: float) -> None:
    """The service goes on without it meanwhile."""
    nursery = Nursery()
    nursery.refusal = "fork failed"
    nursery.die(now)
    assert len(nursery.started) == 1
    nursery.refusal = ""
    nursery.companion.attend([], nursery.companion.deadline())
    assert len(nursery.started) == 2


def test_companion_of_a_process_with_threads_is_not_started_again(now: float) -> None:
    """Which must not fork."""
    nursery = Nursery(may_restart=False)
    nursery.die(now)
    assert nursery.companion.deadline() == math.inf
    assert len(nursery.started) == 1
