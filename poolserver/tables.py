"""A snapshot as text for people: what ``poolserver status`` prints. Returns text; ``cli.py`` prints it.

Whatever a worker or a client may have put into a name is made harmless for a terminal.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from poolserver.snapshot import Attempt, ListenerStatus, ParkedStatus, Snapshot, SourceStatus, WorkerStatus

Row = Sequence[str]


def status_text(snapshot: Snapshot) -> str:
    """The whole service in one screen, the most urgent first."""
    pool, totals = snapshot["pool"], snapshot["totals"]
    paragraphs = [
        [_headline(snapshot)],
        _table(_LISTENER_HEADINGS, [_listener_row(listener) for listener in snapshot["listeners"]]),
        _table(_WORKER_HEADINGS, [_worker_row(worker) for worker in snapshot["workers"]]),
        _facts(
            {
                "lanes": f"{pool['busy']} of {pool['lanes']} busy, {pool['idle']} idle, {pool['parked']} parked",
                "parked": _parked(snapshot["parked"]),
                "connections": (
                    f"{totals['accepted']} accepted, {totals['served']} served, "
                    f"{totals['errors']} errors, {totals['cut']} cut"
                ),
                "refused": _counts(_some(totals["refused"])) or "none",
                "rehearsed": _counts(_some(totals["rehearsed"])),
                "timed out": _counts(_some(totals["timeouts"])) or "none",
                "respawns": str(totals["respawns"]),
                "reloads": _reloads(totals["reloads"], totals["reloads_failed"], snapshot["last_reload"]),
                "upgrade": _attempt(snapshot["last_upgrade"]),
                "sources": ", ".join(_source(source) for source in snapshot["sources"][:5]),
            }
        ),
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


def duration(seconds: float | None) -> str:
    """Two units at most, such as ``3h12m``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for size, unit, smaller, small_unit in _UNITS:
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller:02d}{small_unit}"
    return f"{whole}s"


_UNITS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s"))


def size(octets: int | None) -> str:
    """Megabytes of 2**20 bytes; a dash for None."""
    return "-" if octets is None else f"{octets / 2**20:.0f}M"


def plain(text: str) -> str:
    """Escape what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def busy_lanes(worker: WorkerStatus) -> str:
    """Such as ``3/8``; a worker that starts has no lanes yet."""
    lanes = worker["lanes"]
    return f"{sum(lane['state'] != 'idle' for lane in lanes)}/{len(lanes)}" if lanes else "-"


def _headline(snapshot: Snapshot) -> str:
    return (
        f"{plain(snapshot['name'])}: {snapshot['state'].upper()} for {duration(snapshot['uptime'])}"
        f"  (pid {snapshot['pid']}, generation {snapshot['generation']}, poolserver {snapshot['version']})"
        + ("  UNDER STRESS" if snapshot["stress"] else "")
    )


_LISTENER_HEADINGS = ("LISTENER", "QUEUED", "BACKLOG", "DROPS")


def _listener_row(listener: ListenerStatus) -> Row:
    return (
        plain(listener["url"]),
        _number(listener["queued"]),
        _number(listener["backlog"]),
        _number(listener["drops"]),
    )


_WORKER_HEADINGS = ("SLOT", "PID", "GEN", "STATE", "AGE", "CPU", "MEMORY", "BUSY", "ACCEPTED", "ERRORS", "REFUSED")


def _worker_row(worker: WorkerStatus) -> Row:
    return (
        str(worker["slot"]),
        _number(worker["pid"]),
        _number(worker["generation"]),
        worker["state"],
        duration(worker["age"]),
        duration(worker["cpu"]),
        size(worker["rss"]),
        busy_lanes(worker),
        str(worker["accepted"]),
        str(worker["errors"]),
        str(worker["refused"]),
    )


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _table(headings: Row, rows: Sequence[Row]) -> list[str]:
    """Columns as wide as they need to be: words to the left, numbers to the right."""
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    words = [heading in ("LISTENER", "STATE") for heading in headings]
    return [
        "  ".join(
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in [headings, *rows]
    ]


def _facts(facts: Mapping[str, str]) -> list[str]:
    width = max(map(len, facts))
    return [f"{name.ljust(width)}  {text}" for name, text in facts.items() if text]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _parked(parked: ParkedStatus) -> str:
    """By kind; nothing where nobody is."""
    counts = _counts(_some({"new": parked["new"], "between requests": parked["between"]}))
    return f"{counts}, the oldest for {duration(parked['oldest'])}" if counts else ""


def _source(source: SourceStatus) -> str:
    counts = {"active": source["active"], "refused": source["refused"]}
    return f"{plain(source['source'])} ({_counts(_some(counts))})"


def _reloads(count: int, failed: int, last: Attempt | None) -> str:
    if last is None:
        return f"{count}, {failed} failed"
    return f"{count}, {failed} failed; the last, {_attempt(last)}"


def _attempt(last: Attempt | None) -> str:
    if last is None:
        return ""
    at = datetime.fromtimestamp(last["at"]).astimezone().isoformat(" ", "seconds")
    return f"at {at}, {'succeeded' if last['ok'] else 'FAILED: ' + plain(last['reason'])}"
