"""What is known of each source, in shared memory: arrivals, strikes, bans, refusals.

Made before the first fork, written by every worker, read by all. No lock is held across processes, since a killed
worker could leave it held for ever; what that costs is argued at each class. Nothing here reads a clock or a socket.
"""

import heapq
import mmap
import struct

from poolserver.networks import CACHED_HOSTS, Source, digest_number

FARTHEST_NS = 2_147_483 * 10**9
"""How far ahead a ban or an arrival time may lie: 24 days, the longest duration of the configuration."""

_SLACK_NS = 10**9
"""How much older than another worker's a reader's clock reading may be without a doubt: it was preempted in between.
An arrival time that is farther ahead than its rate allows, but by no more than this, is left alone: cut to what the
older reading allows, each such reader would give credit back."""


WAYS = 8
"""Entries of a bucket: the words of one field of a bucket are one cache line."""

ENTRIES = 65_536
"""At most so many sources: 4 MiB a table, of which pages that nobody touched cost nothing."""

_BUCKETS = ENTRIES // WAYS - 1
"""A prime, 8,191: the remainder depends on all bits of a digest, of which some are always set."""

_BUCKET_WORDS = 4 * WAYS
_BUCKET_BYTES = 8 * _BUCKET_WORDS
_WAYS_BYTES = 8 * WAYS
_ARRIVAL, _USED, _BAN = WAYS, 2 * WAYS, 3 * WAYS
"""Where those words of an entry are, from its digest's on. What an arrival touches is in one page, on two lines: in a
process that has just been switched to, a page costs as much as a function."""

_HOT_WORDS = (_BUCKETS + 1) * _BUCKET_WORDS
_COLD_FIELDS = 4
_STRIKE_STEP = 2**20
"""A strike word is a window's start in ms times this, plus the strikes in it: one store for both."""

MAX_STRIKES = _STRIKE_STEP - 1

_STRETCH = 512
"""Bytes of refusals that are compared at once, so that the many entries without any cost next to nothing."""


class SourceTable:
    """Arrival times, strikes, bans and refusals by source: a set-associative table with many writers and no lock.

    A source's bucket follows from its digest; its entry is one of eight ways there. When all are taken, the one
    longest out of use gives way, unless it is banned or behind its arrival time: those say something that must not
    be forgotten. When all eight do, a new source goes untracked and is let in: permissive on overflow. So no number
    of sources breaks the table or makes it grow, and what an attacker with many of them can gain is what an untracked
    source may do anyway, up to its connections at once.

    Every word is stored whole. Processes that update one word at once lose all updates but one: of those that race for
    one arrival's credit more than one may come in, and strikes or refusals go uncounted. Within a process
    ``Claims.lock`` orders them. Source: measured, four processes on two cores, 20/s with a burst of 20 for 5 s: 119 to
    120 came in at 500 attempts a second, 170 to 215 at a million a second, far above what accept(2) can give.

    A process may be stopped between finding its entry and storing, and the entry be another's by then. So that a late
    store means nothing to the new owner, each word is sealed: ``value ^ number`` of the source. What was sealed by
    another unseals to a random 64-bit number, and times out of reach count as none, all but 1 in 10,000 of such
    accidents. A process that is killed within any method leaves at worst a free way or one such word.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        words = memoryview(memory).cast("Q")
        cold = [words[_HOT_WORDS + field * ENTRIES :][:ENTRIES] for field in range(_COLD_FIELDS)]
        self._memory = memory
        self._places: dict[int, int] = {}
        """Where this process found digests last, by their numbers: to see that one is still there needs no search."""
        self._words = words
        """Bucket by bucket, the digests of its ways, then their arrivals, last uses and bans."""
        self._high, self._low, self._strikes, self._refused = cold
        self.last_ban = words[_BUCKETS * _BUCKET_WORDS :]
        """One word: when the last of all bans ends. Nearly always nobody is banned, and need not be looked for."""

    @classmethod
    def create(cls) -> "SourceTable":
        """Map the memory, anonymous. Runs before the fork."""
        return cls(mmap.mmap(-1, (_HOT_WORDS + _COLD_FIELDS * ENTRIES) * 8))

    def arrive(self, source: Source, now_ns: int, interval_ns: int, burst: int) -> bool:
        """Whether one more of ``source`` comes in at a rate of one each ``interval_ns``, ``burst`` at once.

        The generic cell rate algorithm: one word, the time at which the source's credit will be full again. Each
        arrival moves it by an interval; it may lie ``burst`` intervals ahead. Those refused move nothing, so that a
        source that keeps pushing still gets its rate. Source: ITU-T I.371, virtual scheduling.
        """
        number, words = source.number, self._words
        place = self._places.get(number, 0)
        if words[place] != number and (place := self._place(source, now_ns)) < 0:
            return True
        place += _ARRIVAL
        due, most = words[place] ^ number, burst * interval_ns
        if due > now_ns:
            if due - now_ns <= most - interval_ns:
                now_ns = due
            elif due - now_ns <= FARTHEST_NS:  # else sealed by another: it means nothing
                if due - now_ns > most + _SLACK_NS:  # made under a slower rate, before a reload: from now on this one
                    words[place] = now_ns + most ^ number
                return False
        words[place] = now_ns + interval_ns ^ number
        return True

    def _place(self, source: Source, now_ns: int) -> int:
        """The word of the source's digest, as ``_entry`` has it; found there once, it is looked for there first."""
        place = self._find(source)
        if place < 0:
            return self._taken(source, now_ns)
        if len(self._places) >= CACHED_HOSTS:
            self._places.clear()
        self._places[source.number] = place
        return place

    def strike(
        self, source: Source, now_ns: int, after: int, window_ns: int, ban_ns: int, *, is_rehearsal: bool = False
    ) -> bool:
        """Count a strike; True when with ``after`` of them within ``window_ns`` it earns a ban of ``ban_ns`` now.

        A window begins with its first strike. A rehearsed ban is one that only ``heeds_rehearsal`` sees.
        """
        place = self._entry(source, now_ns)
        if place < 0:
            return False
        cold, now_ms = _cold(place), now_ns // 10**6
        start, strikes = divmod(self._strikes[cold] ^ source.number, _STRIKE_STEP)
        if abs(now_ms - start) >= window_ns // 10**6:  # before it, too: another worker's clock reading was newer
            start, strikes = now_ms, 0
        is_earned = strikes + 1 >= after
        value = 0 if is_earned else start * _STRIKE_STEP + strikes + 1
        self._strikes[cold] = value ^ source.number
        if is_earned:
            self._store_ban(place, source.number, now_ns, now_ns + ban_ns, is_rehearsal)
        return is_earned

    def banned(self, source: Source, now_ns: int, *, heeds_rehearsal: bool = False) -> bool:
        """Whether a ban on ``source`` stands."""
        place = self._find(source)
        if place < 0:
            return False
        until = self._words[place + _BAN] ^ source.number
        is_rehearsal = until & 1
        return 0 < until - is_rehearsal - now_ns <= FARTHEST_NS and (heeds_rehearsal or not is_rehearsal)

    def ban(self, key: bytes, now_ns: int, until_ns: int) -> None:
        """Ban the source that has this key, as an earlier master did."""
        source = Source.of_key(key)
        place = self._entry(source, now_ns)
        if place >= 0:
            self._store_ban(place, source.number, now_ns, until_ns, is_rehearsal=False)

    def bans(self, now_ns: int) -> list[tuple[bytes, float]]:
        """Every ban that stands, but for rehearsed ones: the source's key, and the seconds that are left."""
        words = self._words.tolist()
        found = [
            (place, (words[place + _BAN] ^ words[place]) - now_ns)
            for first in range(0, _BUCKETS * _BUCKET_WORDS, _BUCKET_WORDS)
            for place in range(first, first + WAYS)
            if words[place + _BAN] != words[place] and not (words[place + _BAN] ^ words[place]) & 1
        ]
        return [
            (key, left_ns / 1e9)
            for place, left_ns in found
            if 0 < left_ns <= FARTHEST_NS and (key := self._key(_cold(place)))
        ]

    def refuse(self, source: Source, now_ns: int) -> None:
        """Count a refusal, for ``worst`` only."""
        place = self._entry(source, now_ns)
        if place >= 0:
            self._refused[_cold(place)] += 1

    def refusals(self) -> bytes:
        """The refusals of this moment, for ``worst`` to tell later ones from."""
        return bytes(self._refused)

    def worst(self, count: int, before: bytes = b"") -> list[tuple[bytes, int]]:
        """The keys of the ``count`` sources most refused, with how often: ever, or since ``before``.

        Source: measured, 1 ms, also when all entries have refusals.
        """
        now = bytes(self._refused)
        past = before or bytes(len(now))
        found: list[tuple[int, int]] = []
        for start in range(0, len(now), _STRETCH):
            stretch, earlier = now[start : start + _STRETCH], past[start : start + _STRETCH]
            if stretch != earlier and (len(found) < count or max(memoryview(stretch).cast("Q")) > found[-1][0]):
                found = heapq.nlargest(count, found + _changed(start // 8, stretch, earlier))
        return [(key, refused) for refused, entry in found if (key := self._key(entry))]

    def _find(self, source: Source) -> int:
        """The word of the source's digest; -1 when it has none."""
        start = source.number % _BUCKETS * _BUCKET_BYTES
        return self._memory.find(source.digest, start, start + _WAYS_BYTES) >> 3

    def _entry(self, source: Source, now_ns: int) -> int:
        """The same, made now if need be; -1 when its bucket has no room."""
        place = self._find(source)
        if place < 0:
            place = self._taken(source, now_ns)
        if place >= 0:
            self._words[place + _USED] = now_ns
        return place

    def _taken(self, source: Source, now_ns: int) -> int:
        first = source.number % _BUCKETS * _BUCKET_WORDS
        used = [self._last_used(place, now_ns) for place in range(first, first + WAYS)]
        for way in sorted(range(WAYS), key=used.__getitem__):  # free ones were never used
            if self._is_forgettable(first + way, now_ns):
                self._settle(first + way, source)
                return first + way
        return -1

    def _last_used(self, place: int, now_ns: int) -> int:
        """An arrival that came in left its time, or a later one: ``arrive`` stores one word, not two."""
        arrival = self._words[place + _ARRIVAL] ^ self._words[place]
        return max(self._words[place + _USED], arrival if arrival <= now_ns + FARTHEST_NS else 0)

    def _is_forgettable(self, place: int, now_ns: int) -> bool:
        number = self._words[place]
        arrival, until = self._words[place + _ARRIVAL] ^ number, self._words[place + _BAN] ^ number
        return not (0 < arrival - now_ns <= FARTHEST_NS or 0 < until - now_ns <= FARTHEST_NS)

    def _settle(self, place: int, source: Source) -> None:
        """Give the entry to ``source``. Its digest comes last: killed in between, we leave a free way."""
        number, words, cold = source.number, self._words, _cold(place)
        words[place] = 0
        self._high[cold], self._low[cold] = struct.unpack("=QQ", source.key)
        words[place + _ARRIVAL] = words[place + _BAN] = self._strikes[cold] = number  # 0, sealed
        self._refused[cold] = 0
        words[place] = number

    def _store_ban(self, place: int, number: int, now_ns: int, until_ns: int, is_rehearsal: bool) -> None:
        """The lowest bit says rehearsal. A ban that stands is not shortened, and no rehearsal takes its place."""
        until = min(until_ns, now_ns + FARTHEST_NS) >> 1 << 1 | is_rehearsal
        standing = self._words[place + _BAN] ^ number
        if 0 < standing - now_ns <= FARTHEST_NS and not standing & 1 and (is_rehearsal or standing >= until):
            return
        # Before the ban, for it to be seen. Of two processes that are here at once the shorter ban may stay here, which
        # ends the longer with it; but bans of one configuration are equally long.
        self.last_ban[0] = max(self.last_ban[0], until)
        self._words[place + _BAN] = until ^ number

    def _key(self, cold: int) -> bytes:
        """The key; empty where two processes took the entry at once and what stands there is a mixture."""
        key = struct.pack("=QQ", self._high[cold], self._low[cold])
        place = cold // WAYS * _BUCKET_WORDS + cold % WAYS
        return key if digest_number(key) == self._words[place] else b""


def _cold(place: int) -> int:
    """Where an entry's words are that are seldom needed, whose fields lie each in one piece."""
    return place // _BUCKET_WORDS * WAYS + place % _BUCKET_WORDS


def _changed(first: int, now: bytes, past: bytes) -> list[tuple[int, int]]:
    """The refusals, and the entry, of each that has changed; ``first`` is the first one's number."""
    words = zip(memoryview(now).cast("Q"), memoryview(past).cast("Q"), strict=True)
    return [
        # fewer than before: the entry is another source's now, which began at 0
        (refused - earlier if refused > earlier else refused, entry)
        for entry, (refused, earlier) in enumerate(words, first)
        if refused != earlier and refused
    ]
