"""Snapshots for tests of what shows them."""

from typing import Any

from poolserver.snapshot import Snapshot


def lane(state: str = "idle", since: float = 1.0, peer: str | None = None) -> dict[str, Any]:
    return {"state": state, "since": since, "peer": peer, "deadline_left": None}


def worker(slot: int = 0, pid: int | None = 100, **others: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "pid": pid,
        "generation": 1,
        "state": "ready",
        "age": 60.0,
        "rss": 27 * 2**20,
        "cpu": 1.0,
        "accepted": 0,
        "served": 0,
        "errors": 0,
        "refused": 0,
        "lanes": [lane(), lane()],
    } | others


def snapshot(**others: Any) -> Snapshot:
    """A quiet service; ``totals`` are added to the zeros, the rest replaces what is here."""
    totals = {
        "accepted": 0,
        "served": 0,
        "errors": 0,
        "cut": 0,
        "refused": {"rate": 0, "denied": 0},
        "rehearsed": {"rate": 0},
        "timeouts": {"idle": 0},
        "respawns": 0,
        "reloads": 0,
        "reloads_failed": 0,
    } | others.pop("totals", {})
    whole = {
        "name": "hello",
        "version": "1.0",
        "pid": 99,
        "generation": 1,
        "state": "serving",
        "uptime": 100.0,
        "listeners": [{"url": "tcp://127.0.0.1:20000", "backlog": 1024, "queued": 0, "drops": None}],
        "pool": {"workers": 2, "threads": 2, "lanes": 4, "busy": 0, "idle": 4, "parked": 0},
        "parked": {"new": 0, "between": 0, "oldest": None},
        "stress": False,
        "workers": [worker(0, 100), worker(1, 101)],
        "totals": totals,
        "durations": {"bounds": [0.1, 1.0], "counts": [0, 0, 0], "sum": 0.0},
        "sources": [],
        "last_reload": None,
        "last_upgrade": None,
    }
    return whole | others  # type: ignore[return-value]
