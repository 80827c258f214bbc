"""Workers' stacks as text for people: what ``poolserver stacks`` prints. Returns text; ``cli.py`` prints it.

Of each thread the innermost calls come first, down to the first that is poolserver's own: the rest is always the same.
"""

import linecache
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from poolserver.snapshot import Snapshot, WorkerStatus
from poolserver.stacks import END
from poolserver.tables import duration, plain

_CALL = re.compile(r' *File "(.*)", line ([0-9]{1,9}),? in (.*)')
_FORCED_HEAD = re.compile(r"(?:Current t|T)hread (0x[0-9a-f]+).*")
_OURS = str(Path(__file__).parent)
_EXAMPLES = f"{_OURS}/examples/"


def stacks_text(told: Sequence[Mapping[str, Any]], snapshot: Snapshot) -> str:
    """Where every thread of every worker is, and whom it serves."""
    workers = {worker["pid"]: worker for worker in snapshot["workers"]}
    return "\n\n".join("\n".join(_of_worker(each, workers.get(each["pid"]))) for each in told)


def _of_worker(told: Mapping[str, Any], worker: WorkerStatus | None) -> Iterator[str]:
    stacks, end, _ = f"{told['text']}".rpartition(END.decode())
    state = f" {worker['state']}" if worker is not None else ""
    yield f"worker {told['slot']} (pid {told['pid']}){state}"
    if not end:
        stacks = str(told["text"])
        yield "  did not answer by itself: it is stopped, or a C call holds the interpreter's lock"
        for number in range(len(worker["lanes"]) if worker is not None else 0):
            yield f"  lane-{number}{_occupation(f'lane-{number}', worker)}"
    for name, calls in sorted(_threads(stacks), key=lambda thread: _rank(thread[0])):
        yield f"  {plain(name)}{_occupation(name, worker)}"
        for path, line, function in calls:
            yield plain(f"      {path}:{line} in {function}")
            if source := linecache.getline(path, line).strip():
                yield plain(f"          {source}")


def _threads(text: str) -> Iterator[tuple[str, list[tuple[str, int, str]]]]:
    """Each thread's name and its calls, as far as they tell anything."""
    name = ""
    calls: list[tuple[str, int, str]] = []
    for line in text.splitlines():
        head = line.removeprefix("> ") if line.startswith("> ") else _forced_name(line)
        if head and name:
            yield name, calls
        if head:
            name, calls = head, []
        elif (call := _CALL.fullmatch(line)) and not (calls and _is_ours(calls[-1][0])):
            calls.append((call[1], int(call[2]), call[3]))
    if name:
        yield name, calls


def _forced_name(line: str) -> str:
    found = _FORCED_HEAD.fullmatch(line)
    return f"thread {found[1]}" if found else ""


def _is_ours(path: str) -> bool:
    return path.startswith(_OURS) and not path.startswith(_EXAMPLES)


def _rank(name: str) -> tuple[bool, int, str]:
    """Lanes first, by their number."""
    number = name.removeprefix("lane-")
    return (not number.isdecimal(), int(number) if number.isdecimal() else 0, name)


def _occupation(name: str, worker: WorkerStatus | None) -> str:
    """What the lane with this thread name is doing."""
    number = name.removeprefix("lane-")
    if worker is None or not number.isdecimal() or int(number) >= len(worker["lanes"]):
        return ""
    lane = worker["lanes"][int(number)]
    whom = f" with {plain(lane['peer'])}" if lane["peer"] else ""
    return f": {lane['state']}{whom} for {duration(lane['since'])}"
