"""What contestants are put through: rounds of a load, idleness, a start, a kill, and a crowd that says nothing."""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from entrants import Entrant
from generators import RedisBenchmark, Wrk, lacking
from lifecycle import await_answer, gap_ms, is_answered
from rounds import Load, Progress, Turn
from running import Running, group, private_bytes, proportional_bytes
from speed import measured
from standings import Result, Standing, rounded

START_RUNS, RESPAWN_RUNS = 3, 10
IDLE_DELAY, IDLE_SECONDS = 0.7, 1.0
# Silent connections: one fewer than lanes, which every pool can hold, and far more.
CROWDS = (15, 100, 1000, 5000)
SETTLE_DELAY, NEWCOMER_TIMEOUT = 0.3, 2.0
CONNECT_TIMEOUT = 10.0  # whose first packet found the backlog full is connected by its second, a second later
MIB = 2**20
PROGRAMS: Mapping[type[Load], str] = {RedisBenchmark: "redis-benchmark", Wrk: "wrk"}

Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Course:
    """Where everything runs, and how often."""

    scratch: Path
    rounds: int
    progress: Progress

    def under(self, load: Load, entrants: Sequence[Entrant], against: str) -> Result:
        """Alternating rounds of a load, all servers running."""
        program = PROGRAMS.get(type(load), "")
        lacks = f"{program} {lacking(program)}" if program and lacking(program) else ""
        able = [] if lacks else [each.contestant for each in entrants if not each.cannot]
        if not able:
            return Result([Standing(each.label, cannot=each.cannot or lacks) for each in entrants])
        samples = measured(able, load, self.scratch, self.rounds, self.progress)
        standings = [
            Standing(each.label, {} if each.cannot else columns(samples.turns[each.label]), each.cannot)
            for each in entrants
        ]
        facts = {
            "requests": load.count,
            "concurrent": load.concurrent,
            "disturbance_cpus": round(samples.disturbance, 3),
        }
        return Result(standings, against, facts=facts)

    def one_by_one(self, entrants: Sequence[Entrant], measure: Callable[[Entrant], Figures]) -> Result:
        """Each has the machine to itself."""
        standings = []
        for number, entrant in enumerate(entrants):
            self.progress(entrant.label, number / len(entrants))
            samples = {} if entrant.cannot else rounded(measure(entrant))
            standings.append(Standing(entrant.label, samples, entrant.cannot))
        return Result(standings)

    def running(self, entrant: Entrant) -> Running:
        """It, to be entered."""
        return Running(entrant.contestant, self.scratch)

    def memory(self, entrant: Entrant) -> Figures:
        """What an idle worker has for itself, what all processes have together, and CPU spent on nobody."""
        with self.running(entrant) as server:
            await_answer(server)
            time.sleep(IDLE_DELAY)
            members = server.members()
            before = server.cpu_ns(members)
            time.sleep(IDLE_SECONDS)
            idle_ms = (server.cpu_ns(members) - before) / 1e6 / IDLE_SECONDS
            workers = members[1:] or members
            return {
                "worker_mib": [private_bytes(pid) / MIB for pid in workers],
                "pool_mib": [sum(map(proportional_bytes, members)) / MIB],
                "idle_ms": [idle_ms],
            }

    def start(self, entrant: Entrant) -> Figures:
        """From exec to the first answer that follows the ready line."""
        took = []
        for _ in range(START_RUNS):
            began = time.perf_counter()
            with self.running(entrant) as server:
                await_answer(server)
                took.append((time.perf_counter() - began) * 1000)
        return {"start_ms": took}

    def respawn(self, entrant: Entrant) -> Figures:
        """From SIGKILL of the only worker to the next answer; a server of its own for each kill, so that what is timed
        is one death, and not the back-off that a worker which dies again and again earns."""
        gaps = []
        for _ in range(RESPAWN_RUNS):
            with self.running(entrant) as server:
                gaps.append(gap_ms(server))
        return {"respawn_ms": gaps}

    def held(self, entrant: Entrant) -> Figures:
        """How many silent connections there may be for a newcomer to be answered; tried by CROWDS."""
        figures: Figures = {"held": [0.0]}
        with self.running(entrant) as server, ExitStack() as stack:
            await_answer(server)
            time.sleep(IDLE_DELAY)
            empty, crowd = weight(server), 0
            for wanted in CROWDS:
                try:
                    for _ in range(wanted - crowd):
                        stack.enter_context(socket.create_connection(("127.0.0.1", server.port), CONNECT_TIMEOUT))
                except OSError:
                    break  # its backlog is full, or it has ended
                crowd = wanted
                time.sleep(SETTLE_DELAY)
                began = time.perf_counter()
                if not is_answered(server, NEWCOMER_TIMEOUT):
                    break
                newcomer_ms = (time.perf_counter() - began) * 1000
                figures = {"held": [float(crowd)], "newcomer_ms": [newcomer_ms]}
                if crowd > CROWDS[0]:  # the first few of each process cost what is not theirs
                    figures["kb_each"] = [(weight(server) - empty) / 1000 / crowd]
        return figures


def weight(server: Running) -> int:
    """Bytes of all its processes."""
    total = 0
    for pid in group(server.pid):
        try:
            total += proportional_bytes(pid)
        except ProcessLookupError:
            pass  # it was there for the newcomer alone
    return total


def columns(turns: Sequence[Turn]) -> Figures:
    """Rounds by metric."""
    rows = [
        {
            "cpu_us": turn.cpu_us,
            "per_second": turn.outcome.requests / turn.outcome.seconds,
            "client_share": turn.outcome.client_cpu / turn.outcome.seconds,
            **turn.outcome.more,
        }
        for turn in turns
    ]
    return rounded({name: [row[name] for row in rows] for name in rows[0]})
