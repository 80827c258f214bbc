"""What attacks do to servers that users could run, and to poolserver: each attack against each, one after another.

Attackers and the good client are processes of their own (`attack.py`), told apart by their source address.
"""

import os
import random
import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

from attacker import EVIL, GOOD, MANY, Attack
from contestants import Contestant, poolserver, sixteen_threads, threading_tcp
from report import Limit, Row
from rounds import Progress, p99
from running import Running, children, group, peak_bytes, private_bytes, threads

ECHO = "poolserver.examples.echo:EchoHandler"
KEY_VALUE = "poolserver.examples.keyvalue:KeyValueHandler"
ONE_LINE = "bench.handlers:OneLine"

WORKERS, LANES = 4, 8
PER_SOURCE = 8
# Connections that the flood wants. A service usually may have 1,024 descriptors, and so has the server to which that
# makes a difference.
FLOOD, USUAL_FILES = 5000, 1024
# A good client's requests, one at a time, and how long they are tried: longer than any that is served needs.
REQUESTS, ASK_SECONDS = 500, 15.0
# Seconds between them: 1.5 s of requests, and 10 s where deadlines come and go meanwhile.
SHORT_PAUSE, LONG_PAUSE = 0.003, 0.02
# What a client is ready to wait for one answer, and one that knows of a queue.
PATIENCE, MUCH_PATIENCE = 1.0, 10.0
# An attack has what it can get by then, before the good client comes.
ONSET = 0.5
# No attack lasts longer, whoever fails to end it.
ATTACK_SECONDS = 60.0

RESETS = 64  # at once
TRICKLERS, HANDLER_TIMEOUT = 200, 3.0
SILENT, FIRST_BYTE_TIMEOUT = 100, 1.0
# Seconds that TCP_DEFER_ACCEPT keeps a silent connection in the kernel, before any lane or park.
DEFERRED = 1.0
# Seconds after a deadline in which a lane must be back.
SLACK = 1.0
RATE, BURST, PUSHED, PUSH_SECONDS, RATE_TOLERANCE = 20, 20, 500, 10.0, 0.05
KILLS, KILL_INTERVAL, SOURCES, PLACES, ZERO_TIMEOUT = 50, 0.15, 20, 4, 20.0
MEGABYTES = 200


def limited(label: str, *settings: str, workers: int = WORKERS) -> Contestant:
    """poolserver with an echo handler, 4 x 8 unless said otherwise."""
    return poolserver(ECHO, workers, LANES, *settings, label=f"poolserver, {label}")


def stock() -> list[Contestant]:
    """What users run today, and poolserver without a limit."""
    return [threading_tcp(ECHO, USUAL_FILES), sixteen_threads(ECHO), limited("no limits")]


class Scene:
    """Makes the rows of one attack on one server. Limits are for the one that is set up against it."""

    def __init__(self, attack: str, server: Running, *, is_judged: bool) -> None:
        self._attack = attack
        self._label = server.label
        self._is_judged = is_judged

    def fact(self, what: str, unit: str, value: float, limit: Limit | None = None) -> Row:
        """One figure."""
        limit = limit if self._is_judged else None
        return Row(self._attack, what, self._label, unit, value, value, value if limit else None, limit=limit)

    def answered(self, seen: dict[str, list[float]]) -> Row:
        """How many of the good client's requests were: all of them, or it is a failure."""
        return self.fact(f"answered of {REQUESTS}", "requests", len(seen["ms"]), Limit(REQUESTS, at_most=False))

    def waits(self, what: str, seen: dict[str, list[float]], limit: Limit | None = None) -> Iterator[Row]:
        """How long its answers took: median, shortest, and the 99th percentile as the figure. None where none came."""
        limit = limit if self._is_judged else None
        if took := seen["ms"]:
            yield Row(self._attack, what, self._label, "ms", median(took), min(took), p99(took), limit=limit)


def asked(server: Running, pause: float, patience: float = PATIENCE) -> dict[str, list[float]]:
    """What became of a good client's requests."""
    return Attack("ask", server, GOOD, REQUESTS, pause, patience, ASK_SECONDS).wait()


def flood(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """One source opens 5,000 connections as fast as it can, holds them, and comes again where it is refused."""
    judged = limited("per_source", f"limits.per_source={PER_SOURCE}")
    for contestant in [*stock(), judged]:
        progress(f"flood: {contestant.label}")
        with Running(contestant, scratch) as server:
            yield from flooded(server, Scene("flood", server, is_judged=contestant is judged))


def flooded(server: Running, scene: Scene) -> Iterator[Row]:
    """The rows of one contestant."""
    before, log_before = asked(server, SHORT_PAUSE), server.log_bytes
    with Attack("flood", server, EVIL, FLOOD, ATTACK_SECONDS) as attack:
        time.sleep(ONSET)
        began, meanwhile = time.monotonic(), asked(server, SHORT_PAUSE)
        lasted = time.monotonic() - began + ONSET
        members = group(server.pid)
        weight, lanes = sum(map(private_bytes, members)), sum(map(threads, members))
    counts = attack.seen["counts"]
    yield from scene.waits("p99 before", before)
    yield from scene.waits("p99", meanwhile, Limit(max(3 * p99(before["ms"]), 10.0)))
    yield scene.answered(meanwhile)
    most_held = Limit(PER_SOURCE + WORKERS - 1)
    yield scene.fact("held by the attacker", "connections", attack.seen["held_most"], most_held)
    yield scene.fact("refused", "conn/s", counts.get("refused", 0) / lasted)
    yield scene.fact("threads", "threads", lanes)
    yield scene.fact("private memory", "MiB", weight / 2**20)
    yield scene.fact("log", "kB", (server.log_bytes - log_before) / 1000)


def resets(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """One source connects and resets as fast as it can."""
    for contestant in stock():
        progress(f"resets: {contestant.label}")
        with Running(contestant, scratch) as server:
            log_before = server.log_bytes
            with Attack("reset", server, EVIL, RESETS, ATTACK_SECONDS) as attack:
                time.sleep(ONSET)
                began, meanwhile = time.monotonic(), asked(server, SHORT_PAUSE)
                lasted = time.monotonic() - began + ONSET
            scene = Scene("resets", server, is_judged=False)
            yield scene.fact("resets", "conn/s", attack.seen["counts"]["left"] / lasted)
            yield scene.answered(meanwhile)
            yield from scene.waits("p99", meanwhile)
            yield scene.fact("log", "kB", (server.log_bytes - log_before) / 1000)


def trickle(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """200 connections that send a byte a second, and come again where they were cut or refused."""
    deadline = f"timeouts.handler={HANDLER_TIMEOUT:g}"
    judged = limited("handler, per_source", deadline, f"limits.per_source={PER_SOURCE}")
    for contestant in [*stock(), limited("handler", deadline), judged]:
        progress(f"trickle: {contestant.label}")
        with Running(contestant, scratch) as server:
            with Attack("trickle", server, EVIL, TRICKLERS, ATTACK_SECONDS) as attack:
                time.sleep(ONSET)
                meanwhile = asked(server, LONG_PAUSE)
            scene = Scene("trickle", server, is_judged=contestant is judged)
            yield scene.answered(meanwhile)
            yield from scene.waits("p99", meanwhile)
            lasted = attack.seen["lasted"]
            yield scene.fact("cut", "connections", len(lasted))
            if lasted:
                yield scene.fact("cut, the last after", "s", lasted[-1], Limit(HANDLER_TIMEOUT + SLACK))


def silence(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """100 clients from 100 sources that say nothing: limits by source do not see them."""
    judged = limited("first_byte", f"timeouts.first_byte={FIRST_BYTE_TIMEOUT:g}")
    parked = limited("parked", "parking.wait_for=data")
    for contestant in [*stock(), limited("per_source", "limits.per_source=1"), parked, judged]:
        progress(f"silence: {contestant.label}")
        with Running(contestant, scratch) as server:
            with Attack("silent", server, MANY, SILENT, ATTACK_SECONDS) as attack:
                time.sleep(ONSET)
                meanwhile = asked(server, SHORT_PAUSE, MUCH_PATIENCE)
            scene = Scene("silence", server, is_judged=contestant is judged)
            yield scene.answered(meanwhile)
            yield from scene.waits("p99", meanwhile)
            lasted = attack.seen["lasted"]
            yield scene.fact("cut", "connections", len(lasted), Limit(SILENT, at_most=False))
            if lasted:
                most = DEFERRED + FIRST_BYTE_TIMEOUT + SLACK
                yield scene.fact("cut, the last after", "s", lasted[-1], Limit(most))


def rate(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """One source makes 500 short connections a second for 10 s where 20 a second are allowed."""
    settings = (f"limits.rate_per_source={RATE}/s", f"limits.burst={BURST}")
    counted = [limited(f"rate, {workers} x 8", *settings, workers=workers) for workers in (1, WORKERS)]
    for contestant in [threading_tcp(ECHO, USUAL_FILES), *counted]:
        progress(f"rate: {contestant.label}")
        with Running(contestant, scratch) as server:
            seen = Attack("push", server, EVIL, PUSHED, PUSH_SECONDS).wait()
            scene = Scene("rate", server, is_judged=contestant in counted)
            through = seen["counts"]["answered"]
            yield scene.fact("through", "connections", through)
            if contestant in counted:
                off = abs(through / (BURST + RATE * (seen["elapsed"] - seen["stalled"])) - 1)
                yield scene.fact("off what is allowed", "of it", off, Limit(RATE_TOLERANCE))


def kills(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """Random workers are killed 50 times under 20 sources; afterwards each has all its places again, and no more."""
    with Running(limited("killed", f"limits.per_source={PLACES}"), scratch) as server:
        with Attack("mix", server, MANY, SOURCES, PLACES + 2, ATTACK_SECONDS) as attack:
            for number in range(KILLS):
                progress(f"kills: {number} of {KILLS}")
                time.sleep(KILL_INTERVAL)
                with suppress(ProcessLookupError, IndexError):  # nobody to kill: all are being replaced
                    os.kill(random.choice(children(server.pid)), signal.SIGKILL)
        scene = Scene("kills", server, is_judged=True)
        yield scene.fact("answered", "connections", attack.seen["counts"]["answered"])
        yield scene.fact("cut", "connections", attack.seen["counts"].get("cut", 0))
        yield scene.fact("sources at zero", "sources", sources_at_zero(server), Limit(SOURCES, at_most=False))


def sources_at_zero(server: Running) -> int:
    """How many sources get exactly as many connections at once as they may, once what was open has closed."""
    until = time.monotonic() + ZERO_TIMEOUT
    while time.monotonic() < until:
        places = Attack("places", server, MANY, SOURCES, PLACES + 1, ATTACK_SECONDS).wait()["places"]
        if (exact := sum(each == PLACES for each in places)) == SOURCES:
            break
    return exact


def line(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """One client sends 200 MB without a line's end: no limit by source helps, the handler has to say how much."""
    bounded = poolserver(KEY_VALUE, 1, LANES, label="poolserver, bounded line")
    unbounded = poolserver(ONE_LINE, 1, LANES, label="poolserver, readline()")
    for contestant in (threading_tcp(ONE_LINE), unbounded, bounded):
        progress(f"line: {contestant.label}")
        with Running(contestant, scratch) as server:
            before = sum(map(peak_bytes, group(server.pid)))
            sent = Attack("line", server, EVIL, MEGABYTES, ATTACK_SECONDS).wait()["sent"]
            grown = sum(map(peak_bytes, group(server.pid))) - before
            scene = Scene("line", server, is_judged=contestant is bounded)
            yield scene.fact("taken", "MB", sent / 1e6)
            yield scene.fact("peak memory, more by", "MiB", grown / 2**20, Limit(4.0))
