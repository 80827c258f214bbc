"""From one snapshot to the next: rates, and their course as a line of small bars. Pure; time is passed in."""

import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from poolserver.snapshot import Snapshot, WorkerStatus

MAX_POINTS = 240
"""Points that are remembered: more than the widest terminal shows."""

BARS = " ▁▂▃▄▅▆▇█"


@dataclass
class Trends:
    """What snapshots that were taken one after the other say together."""

    latest: Snapshot
    accepted: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=MAX_POINTS))
    """Connections a second."""
    busy: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=MAX_POINTS))
    """Busy lanes."""
    errors: float = 0.0
    refused: float = 0.0
    timeouts: float = 0.0
    """Each a second."""
    cpu: dict[int, float] = field(default_factory=dict)
    """The share of a core that each worker takes, by its pid."""
    connections: dict[int, float] = field(default_factory=dict)
    """Connections a second, by the worker's pid."""
    _at: float = 0.0

    def add(self, snapshot: Snapshot, now: float) -> None:
        """Take the next one. What a new master counts from zero again is no negative rate."""
        before, self.latest = self.latest, snapshot
        seconds = max(1e-3, now - self._at)
        self._at = now
        self.accepted.append(_rate(before["totals"]["accepted"], snapshot["totals"]["accepted"], seconds))
        self.busy.append(snapshot["pool"]["busy"])
        self.errors = _rate(before["totals"]["errors"], snapshot["totals"]["errors"], seconds)
        self.refused = _rate(_all(before["totals"]["refused"]), _all(snapshot["totals"]["refused"]), seconds)
        self.timeouts = _rate(_all(before["totals"]["timeouts"]), _all(snapshot["totals"]["timeouts"]), seconds)
        self.cpu = _by_worker(before, snapshot, seconds, lambda worker: worker["cpu"] or 0.0)
        self.connections = _by_worker(before, snapshot, seconds, lambda worker: worker["accepted"])

    @classmethod
    def beginning(cls, snapshot: Snapshot, now: float) -> "Trends":
        """With the first snapshot, which has no rates yet."""
        return cls(snapshot, _at=now)


def bars(values: Sequence[float], width: int, most: float = 0.0) -> str:
    """The last ``width`` values as bars, the newest at the right; a full one is ``most``, or the largest of them."""
    shown = list(values)[-width:]
    top = max([most, *shown]) or 1.0
    steps = len(BARS) - 1
    # What is not nothing is to be seen, however small beside the largest.
    return "".join(BARS[min(steps, max(value > 0, round(value / top * steps)))] for value in shown).rjust(width)


def _rate(before: int, after: int, seconds: float) -> float:
    return max(0, after - before) / seconds


def _all(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _by_worker(
    before: Snapshot, after: Snapshot, seconds: float, value: Callable[[WorkerStatus], float]
) -> dict[int, float]:
    """How much ``value`` grew a second in each worker that was there before, by its pid."""
    past = {worker["pid"]: value(worker) for worker in before["workers"]}
    return {
        worker["pid"]: max(0.0, value(worker) - past[worker["pid"]]) / seconds
        for worker in after["workers"]
        if worker["pid"] is not None and worker["pid"] in past
    }
