"""Claims and the table of sources: counts, arrival times, strikes and bans in shared memory."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolserver import sources
from poolserver.claims import Claims
from poolserver.networks import Source, source_of
from poolserver.scoreboard import MAX_ROWS
from poolserver.sources import ENTRIES, FARTHEST_NS, WAYS, SourceTable

SECOND = 10**9
NOW = 1_000_000 * SECOND  # of a machine that has been up for days


def source(number: int) -> Source:
    return source_of((f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1), 32, 64)


def random_source(rng: random.Random) -> Source:
    return Source.of_key(rng.randbytes(16))


def neighbours(count: int) -> list[Source]:
    """Sources of one bucket."""
    first = source(0)
    found = (Source.of_key(number.to_bytes(16, "big")) for number in range(2**24, 2**25))
    near = (each for each in found if (each.number - first.number) % sources._BUCKETS == 0)
    return [first, *itertools.islice(near, count - 1)]


def test_claims_count_by_source() -> None:
    """What is claimed counts until it is given back."""
    claims = Claims.create()
    claims.use(8, 4)
    for lane in (0, 3, 7):
        claims.claim(lane, source(1))
    claims.claim(4, source(2))
    assert (claims.active(source(1)), claims.active(source(2)), claims.active(source(3))) == (3, 1, 0)
    claims.give_back(3)
    assert claims.active(source(1)) == 2
    assert claims.standing() == Counter({source(1).number: 2, source(2).number: 1})


def test_rows_in_use_bound_what_is_counted() -> None:
    """The master's word, the last lane of all included."""
    claims = Claims.create()
    claims.claim(MAX_ROWS - 1, source(1))
    assert claims.active(source(1)) == 0
    claims.use(MAX_ROWS, 4)
    assert (claims.active(source(1)), claims.rows) == (1, MAX_ROWS)


def test_clearing_gives_back_what_a_dead_worker_held() -> None:
    """Its lanes, and no other's."""
    claims = Claims.create()
    claims.use(12, 4)
    for lane in range(12):
        claims.claim(lane, source(1))
    claims.clear(4, 4, 0)
    assert claims.active(source(1)) == 8
    assert claims.standing().total() == 8


@given(st.lists(st.tuples(st.integers(0, 15), st.one_of(st.none(), st.integers(0, 3)))))
def test_claims_agree_with_a_dict(steps: list[tuple[int, int | None]]) -> None:
    """Whatever lanes claim and give back, the counts are those of the lanes."""
    claims = Claims.create()
    claims.use(16, 4)
    lanes: dict[int, int] = {}
    for lane, whose in steps:
        if whose is None:
            claims.give_back(lane)
            lanes.pop(lane, None)
        else:
            claims.claim(lane, source(whose))
            lanes[lane] = whose
    for whose in range(4):
        assert claims.active(source(whose)) == list(lanes.values()).count(whose)


def admitted(table: SourceTable, per_second: int, seconds: int, interval_ns: int, burst: int) -> int:
    step = SECOND // per_second
    times = range(NOW, NOW + seconds * SECOND, step)
    return sum(table.arrive(source(1), now, interval_ns, burst) for now in times)


def test_rate_and_burst_pass_as_many_as_they_say() -> None:
    """20/s with a burst of 20: a source that pushes 500/s for 10 s gets 220 through."""
    assert admitted(SourceTable.create(), 500, 10, SECOND // 20, 20) in (219, 220, 221)


def test_source_within_its_rate_is_never_refused() -> None:
    """Exactly at the rate, with a burst of one."""
    assert admitted(SourceTable.create(), 20, 60, SECOND // 20, 1) == 1200


def test_burst_comes_back_with_time() -> None:
    """Idle, a source earns its burst again, and no more than that."""
    table = SourceTable.create()
    for now in (NOW, NOW + 1000 * SECOND):
        assert sum(table.arrive(source(1), now, SECOND, 5) for _ in range(20)) == 5


def test_rates_of_two_sources_are_apart() -> None:
    """One that floods costs another nothing."""
    table = SourceTable.create()
    while table.arrive(source(1), NOW, SECOND, 5):
        pass
    assert table.arrive(source(2), NOW, SECOND, 5)


def test_faster_rate_by_reload_is_in_force_at_once() -> None:
    """An arrival time made under one an hour binds for one interval of 20 a second, not for days."""
    table = SourceTable.create()
    for _ in range(100):
        table.arrive(source(1), NOW, 3600 * SECOND, 100)
    assert not table.arrive(source(1), NOW, SECOND // 20, 20)
    assert table.arrive(source(1), NOW + SECOND // 20, SECOND // 20, 20)


def test_older_clock_readings_give_no_credit_back() -> None:
    """Workers that were preempted for 100 ms between the clock and the table find the credit spent, and leave it so."""
    table = SourceTable.create()
    assert sum(table.arrive(source(1), NOW, SECOND // 20, 20) for _ in range(30)) == 20
    for after in range(1, 1000):
        now = NOW + after * SECOND // 1000
        assert not table.arrive(source(1), now - SECOND // 10, SECOND // 20, 20) or after > 100
        table.arrive(source(1), now, SECOND // 20, 20)
    passed = sum(table.arrive(source(1), NOW + SECOND, SECOND // 20, 20) for _ in range(30))
    assert passed <= 1


def struck(table: SourceTable, times: int, now: int, *, is_rehearsal: bool = False) -> list[bool]:
    return [table.strike(source(1), now, 3, 60 * SECOND, 10 * SECOND, is_rehearsal=is_rehearsal) for _ in range(times)]


def test_strikes_within_the_window_earn_a_ban_that_ends() -> None:
    """The third strike bans, for as long as it says; then counting starts again."""
    table = SourceTable.create()
    assert struck(table, 3, NOW) == [False, False, True]
    assert table.banned(source(1), NOW)
    assert table.banned(source(1), NOW + 10 * SECOND - 2)
    assert not table.banned(source(1), NOW + 10 * SECOND)
    assert not table.banned(source(2), NOW)
    assert struck(table, 2, NOW + 11 * SECOND) == [False, False]


def test_strikes_of_an_earlier_window_are_forgotten() -> None:
    """Two now and two a minute later earn nothing."""
    table = SourceTable.create()
    assert struck(table, 2, NOW) + struck(table, 2, NOW + 60 * SECOND) == [False] * 4


def test_strike_with_an_older_clock_reading_counts() -> None:
    """Workers' clock readings need not come in order."""
    table = SourceTable.create()
    assert struck(table, 2, NOW) + struck(table, 1, NOW - SECOND) == [False, False, True]


def test_rehearsed_ban_is_seen_only_by_who_heeds_it() -> None:
    """dry_run earns bans that refuse nobody, after the reload that ends it, too."""
    table = SourceTable.create()
    assert struck(table, 3, NOW, is_rehearsal=True)[-1]
    assert table.banned(source(1), NOW, heeds_rehearsal=True)
    assert not table.banned(source(1), NOW)
    assert table.bans(NOW) == []


def test_rehearsed_ban_does_not_lift_a_real_one() -> None:
    """A reload to dry_run and back leaves the ban in force."""
    table = SourceTable.create()
    struck(table, 3, NOW)
    struck(table, 3, NOW + SECOND, is_rehearsal=True)
    assert table.banned(source(1), NOW + SECOND)
    assert [round(left) for _, left in table.bans(NOW + SECOND)] == [9]


def test_bans_are_carried_over() -> None:
    """What one master lists, the next one puts in force."""
    table, successor = SourceTable.create(), SourceTable.create()
    struck(table, 3, NOW)
    ((key, left),) = table.bans(NOW)
    assert key == source(1).key
    assert left == pytest.approx(10, abs=0.01)
    successor.ban(key, NOW, NOW + int(left * SECOND))
    assert successor.banned(source(1), NOW + SECOND)
    assert table.bans(NOW + 10 * SECOND) == []


def test_ban_is_not_shortened_and_never_endless() -> None:
    """The later of two ends counts; the longest is what the configuration can say."""
    table = SourceTable.create()
    table.ban(source(1).key, NOW, NOW + 100 * SECOND)
    table.ban(source(1).key, NOW, NOW + SECOND)
    table.ban(source(2).key, NOW, NOW + 2 * FARTHEST_NS)
    assert table.banned(source(1), NOW + 99 * SECOND)
    assert table.banned(source(2), NOW + FARTHEST_NS - 2)
    assert not table.banned(source(2), NOW + FARTHEST_NS)


def test_worst_sources_come_first() -> None:
    """Ever, and since an earlier look."""
    table = SourceTable.create()
    for number in range(1, 6):
        for _ in range(number):
            table.refuse(source(number), NOW)
    assert table.worst(2) == [(source(5).key, 5), (source(4).key, 4)]
    before = table.refusals()
    assert table.worst(2, before) == []
    table.refuse(source(1), NOW)
    assert table.worst(2, before) == [(source(1).key, 1)]


def test_full_bucket_gives_up_the_source_longest_out_of_use() -> None:
    """A ninth source of a bucket replaces the first of those that say nothing any more."""
    table = SourceTable.create()
    crowd = neighbours(WAYS + 1)
    for after, each in enumerate(crowd[:WAYS]):
        table.refuse(each, NOW + after)
    table.refuse(crowd[0], NOW + 100)
    table.refuse(crowd[WAYS], NOW + 101)
    known = {key for key, _ in table.worst(WAYS + 1)}
    assert known == {each.key for each in crowd} - {crowd[1].key}


def test_banned_and_indebted_sources_are_not_given_up() -> None:
    """With a bucket full of them a newcomer is let in untracked; once they are free of it, it gets a place."""
    table = SourceTable.create()
    crowd = neighbours(WAYS + 1)
    newcomer = crowd[WAYS]
    for each in crowd[:4]:
        table.ban(each.key, NOW, NOW + 50 * SECOND)
    for each in crowd[4:WAYS]:
        assert table.arrive(each, NOW, 100 * SECOND, 1)
    assert all(table.arrive(newcomer, NOW, 100 * SECOND, 1) for _ in range(3))
    assert not table.strike(newcomer, NOW, 1, SECOND, SECOND)
    table.ban(newcomer.key, NOW, NOW + SECOND)
    assert not table.banned(newcomer, NOW)
    assert all(table.banned(each, NOW) for each in crowd[:4])
    assert not any(table.arrive(each, NOW, 100 * SECOND, 1) for each in crowd[4:WAYS])
    later = NOW + 51 * SECOND
    assert table.arrive(newcomer, later, 100 * SECOND, 1)
    assert not table.arrive(newcomer, later, 100 * SECOND, 1)


def test_late_store_means_nothing_to_the_new_owner() -> None:
    """A worker that was stopped between look-up and store writes into an entry that is another's by now."""
    table = SourceTable.create()
    crowd = neighbours(WAYS + 1)
    late, owner = crowd[0], crowd[WAYS]
    table.refuse(late, NOW)
    entry = table._find(late)
    for after, each in enumerate(crowd[1:]):
        table.refuse(each, NOW + 1 + after)
    assert table._find(owner) == entry
    for words, place in (
        (table._words, entry + sources._ARRIVAL),
        (table._words, entry + sources._BAN),
        (table._strikes, sources._cold(entry)),
    ):
        words[place] = (NOW + 1000 * SECOND) ^ late.number
    assert not table.banned(owner, NOW)
    assert table.bans(NOW) == []
    assert not table.strike(owner, NOW, 2, 60 * SECOND, SECOND)
    assert table.arrive(owner, NOW, SECOND, 1)


def test_mixed_up_key_is_not_listed() -> None:
    """Two processes that take one entry at once may leave halves of two keys: no ban is carried over by such a one."""
    table = SourceTable.create()
    table.ban(source(1).key, NOW, NOW + SECOND)
    table.refuse(source(1), NOW)
    table._low[sources._cold(table._find(source(1)))] ^= 1
    assert table.banned(source(1), NOW)
    assert (table.bans(NOW), table.worst(1)) == ([], [])


def test_process_killed_while_taking_an_entry_leaves_a_free_one() -> None:
    """The digest is stored last."""
    table = SourceTable.create()
    table.refuse(source(1), NOW)
    table._words[table._find(source(1))] = 0
    assert not table.banned(source(1), NOW)
    assert table.arrive(source(1), NOW, SECOND, 1)
    assert not table.arrive(source(1), NOW, SECOND, 1)


def test_a_million_sources_never_break_the_table() -> None:
    """R37: the memory stays what it was, what is listed is sound, and one that floods among them is still refused."""
    table = SourceTable.create()
    rng = random.Random(3)
    flooder = source(1)
    passed = 0
    for number in range(1_000_000):
        now = NOW + number * 20_000  # 50,000 a second for 20 s
        table.arrive(random_source(rng), now, SECOND // 20, 20)
        if number % 100 == 0:  # 500 a second
            passed += table.arrive(flooder, now, SECOND // 20, 20)
    assert len(table._memory) == 8 * ENTRIES * 8 <= 16 * 2**20
    assert passed <= 421
    assert table.bans(NOW) == []


def test_sources_beyond_the_table_are_let_in() -> None:
    """R37: more banned sources than there is room for: permissive, and nothing raises."""
    table = SourceTable.create()
    rng = random.Random(4)
    earned = sum(table.strike(random_source(rng), NOW, 1, SECOND, SECOND) for _ in range(ENTRIES + 50_000))
    assert earned == len(table.bans(NOW)) <= ENTRIES
