"""``poolserver top``: the service live, on a terminal of at least 80 x 24. Needs the extra ``top`` (rich).

``screen`` lays one moment out; ``watch`` shows one after the other until q or Ctrl-C. Whatever a client or a worker put
into a name is made harmless first.
"""

import contextlib
import os
import select
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from poolserver.snapshot import LaneStatus, Snapshot, WorkerStatus
from poolserver.tables import duration, plain, size
from poolserver.trends import Trends, bars

INTERVAL = 1.0
"""Seconds between looks."""

BOTTOM_ROWS = 4
"""Of sources, and of connections, on the smallest screen."""

_QUIT = frozenset(b"qQ\x03")
"""q and Ctrl-C."""

WIDE = 100
"""Columns from which on there is room to spare."""

_FRAME_ROWS = 11
"""What is there in any case: headline, courses, headings, gaps, last line."""

_STATE_STYLES = {
    "serving": "bold white on dark_green",
    "starting": "bold black on yellow",
    "reloading": "bold black on yellow",
    "draining": "bold black on yellow",
    "stopping": "bold black on yellow",
    "degraded": "bold white on red",
}
_WORKER_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "retiring": "yellow",
    "hung": "bold red",
    "stopped": "bold red",
}


def watch(fetch: Callable[[], Snapshot | None]) -> None:
    """Show the service until q or Ctrl-C. ``fetch`` gives a snapshot, or None while nobody answers."""
    first = fetch()
    if first is None:
        return
    console = Console()
    trends = Trends.beginning(first, time.monotonic())
    with _terminal() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        silent_since: float | None = None
        while True:
            live.update(screen(trends, console.width, console.height, _silence(silent_since)), refresh=True)
            if _QUIT.intersection(keys(INTERVAL)):
                return
            snapshot = fetch()
            if snapshot is None:
                silent_since = silent_since or time.monotonic()
            else:
                silent_since = None
                trends.add(snapshot, time.monotonic())


def _silence(since: float | None) -> str:
    return "" if since is None else f"no answer for {duration(time.monotonic() - since)}"


@contextlib.contextmanager
def _terminal() -> Iterator[Callable[[float], bytes]]:
    """A call that waits for keys so many seconds, and returns them. The terminal is as it was after the block."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    raw = termios.tcgetattr(fd)
    raw[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG)  # Ctrl-C is a key here: what we changed is put back
    termios.tcsetattr(fd, termios.TCSADRAIN, raw)

    def keys(seconds: float) -> bytes:
        ready, _, _ = select.select([fd], [], [], seconds)
        return (os.read(fd, 1024) or b"q") if ready else b""

    try:
        yield keys
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def screen(trends: Trends, width: int, height: int, silence: str = "") -> RenderableType:
    """One moment, in so many columns and rows."""
    snapshot = trends.latest
    listeners = min(len(snapshot["listeners"]), max(1, (height - 20) // 2 + 1))
    bottom = max(BOTTOM_ROWS, (height - 24) // 3 + BOTTOM_ROWS)
    rows = max(3, height - _FRAME_ROWS - listeners - bottom)
    return Group(
        _headline(snapshot, silence, width),
        _course("connections/s", trends.accepted, f"{_last(trends.accepted):.1f}", 0.0, "cyan", width),
        _course(
            "busy lanes",
            trends.busy,
            f"{snapshot['pool']['busy']}/{snapshot['pool']['lanes']}",
            snapshot["pool"]["lanes"],
            "magenta",
            width,
        ),
        _rates(trends, width),
        Text(),
        _listeners(snapshot, listeners, width),
        Text(),
        _workers(trends, rows, width),
        Text(),
        _bottom(snapshot, bottom, width),
        _last_line(snapshot, width),
    )


def _headline(snapshot: Snapshot, silence: str, width: int) -> RenderableType:
    state = snapshot["state"]
    left = Text.assemble(
        (f" {silence.upper()} ", "bold white on red")
        if silence
        else (f" {state.upper()} ", _STATE_STYLES.get(state, "")),
        (" UNDER STRESS ", "bold red") if snapshot["stress"] else " ",
        (_cut(snapshot["name"], 20), "bold"),
        f" for {duration(snapshot['uptime'])}",
    )
    right = f"pid {snapshot['pid']}  generation {snapshot['generation']}  poolserver {snapshot['version']}"
    return _ends(left, Text(right, "dim"), width)


def _course(name: str, values: Sequence[float], now: str, most: float, style: str, width: int) -> Text:
    """What it is now, and how it went."""
    return Text.assemble(
        (f"{name:<14}", "dim"), (f"{now:>9}", f"bold {style}"), "  ", (bars(values, width - 26, most), style)
    )


def _rates(trends: Trends, width: int) -> Text:
    snapshot = trends.latest
    pool, totals = snapshot["pool"], snapshot["totals"]
    line = Text()
    for name, rate, count in (
        ("errors", trends.errors, totals["errors"]),
        ("refused", trends.refused, sum(totals["refused"].values())),
        ("timeouts", trends.timeouts, sum(totals["timeouts"].values())),
    ):
        line.append(f"{name} ", "dim")
        line.append(f"{rate:.1f}/s", "bold red" if rate else "")
        line.append(f" ({count})  ", "dim")
    return _fit(line.append(f"parked {pool['parked']}", "dim"), width)


def _listeners(snapshot: Snapshot, rows: int, width: int) -> Table:
    table = _table(width, "LISTENER", "QUEUED", "BACKLOG", "DROPS")
    fullest = sorted(snapshot["listeners"], key=lambda each: each["queued"] or 0, reverse=True)
    for listener in snapshot["listeners"] if len(fullest) <= rows else fullest[:rows]:
        queued, backlog = listener["queued"], listener["backlog"]
        style = "bold red" if queued and backlog and queued > backlog / 2 else "yellow" if queued else ""
        numbers = (Text("-" if each is None else str(each)) for each in (backlog, listener["drops"]))
        _add(table, plain(listener["url"]), Text("-" if queued is None else str(queued), style), *numbers)
    return table


def _workers(trends: Trends, rows: int, width: int) -> Table:
    """All, or the troubled and the busiest."""
    table = _table(width, "SLOT", "PID", "GEN", "STATE", "AGE", "CPU", "MEMORY", "LANES", "BUSY", "CONN/S", "ERRORS")
    workers = trends.latest["workers"]
    if len(workers) > rows:
        workers = sorted(workers, key=lambda each: (each["state"] == "ready", -_busy(each)))[: rows - 1]
    for worker in workers:
        _add(table, *_worker_row(worker, trends, width))
    if left_out := len(trends.latest["workers"]) - len(workers):
        _add(table, "...", str(left_out), "", "more")
    return table


def _worker_row(worker: WorkerStatus, trends: Trends, width: int) -> list[str | Text]:
    pid, lanes = worker["pid"] or 0, len(worker["lanes"])
    return [
        str(worker["slot"]),
        str(worker["pid"] or "-"),
        str(worker["generation"] or "-"),
        Text(worker["state"], _WORKER_STYLES.get(worker["state"], "")),
        duration(worker["age"]),
        f"{trends.cpu.get(pid, 0.0):.0%}",
        size(worker["rss"]),
        _lanes(worker["lanes"], 16 if width >= WIDE else 8),
        f"{_busy(worker)}/{lanes}",
        f"{trends.connections.get(pid, 0.0):.1f}",
        Text(str(worker["errors"]), "red" if worker["errors"] else ""),
    ]


def _lanes(lanes: Sequence[LaneStatus], room: int) -> Text:
    """A mark for each, or for as many as there is room for: hung, busy, idle."""
    marks = {"hung": ("x", "bold red"), "busy": ("■", "magenta")}
    states = sorted((lane["state"] for lane in lanes), key=("hung", "busy", "idle").index)
    shown = min(len(states), room)
    return Text.assemble(*(marks.get(states[n * len(states) // shown], ("·", "dim")) for n in range(shown)))


def _busy(worker: WorkerStatus) -> int:
    return sum(lane["state"] != "idle" for lane in worker["lanes"])


def _bottom(snapshot: Snapshot, rows: int, width: int) -> Table:
    """The connections that are longest in their handlers, beside the largest sources."""
    longest = _table(width, "LONGEST IN HANDLER", "SLOT", "FOR")
    busy = [(lane, worker["slot"]) for worker in snapshot["workers"] for lane in worker["lanes"] if lane["peer"]]
    for lane, slot in sorted(busy, key=lambda each: -each[0]["since"])[:rows]:
        _add(longest, _cut(lane["peer"] or "", width // 2 - 13), str(slot), duration(lane["since"]))
    sources = _table(width, "SOURCE", "ACTIVE", "REFUSED")
    for source in snapshot["sources"][:rows]:
        refused = Text(str(source["refused"]), "red" if source["refused"] else "")
        _add(sources, _cut(source["source"], width // 2 - 20), str(source["active"]), refused)
    for table in (longest, sources):
        for _ in range(rows - table.row_count):
            table.add_row()
    both = Table.grid()
    both.add_column(width=width // 2 + 1)
    both.add_column()
    both.add_row(longest, sources)
    return both


def _last_line(snapshot: Snapshot, width: int) -> RenderableType:
    totals, last = snapshot["totals"], snapshot["last_reload"]
    left = Text(f"{totals['accepted']} accepted, {totals['respawns']} respawns, {totals['reloads']} reloads", "dim")
    if last is not None and not last["ok"]:
        left.append(f"  LAST RELOAD FAILED: {plain(last['reason'])}", "bold red")
    return _ends(left, Text("q quits", "dim"), width)


def _table(width: int, *headings: str) -> Table:
    """Words to the left, numbers to the right."""
    table = Table(box=None, padding=(0, 2 if width >= WIDE else 1, 0, 0), header_style="bold dim")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _WORDS else "right", no_wrap=True)
    return table


_WORDS = {"LISTENER", "STATE", "LANES", "LONGEST IN HANDLER", "SOURCE"}


def _add(table: Table, *cells: str | Text) -> None:
    """A row. What is text is only text: rich would take [red] in a name for a command."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _ends(left: Text, right: Text, width: int) -> Text:
    """One at each end of a line; the left one is cut if need be."""
    room = max(0, width - right.cell_len - 2)
    return _fit(left, room).append("  ").append_text(right)


def _fit(line: Text, width: int) -> Text:
    """As wide as that, cut or filled up."""
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def _cut(text: str, width: int) -> str:
    shown = plain(text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


def _last(values: Sequence[float]) -> float:
    return values[-1] if values else 0.0
