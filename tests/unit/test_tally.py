"""Refusals are said at most once a second for each reason, however many there are."""

from poolserver.tally import Tally


def test_growth_is_said_once_with_its_count() -> None:
    """A line for what is new, none for what was said."""
    tally = Tally()
    assert tally.lines({"refused_rate": 5}, 10.0) == ["5 refused: above limits.rate_per_source"]
    assert tally.lines({"refused_rate": 5}, 11.0) == []
    assert tally.lines({"refused_rate": 7}, tally.deadline()) == ["2 refused: above limits.rate_per_source"]


def test_nothing_is_said_before_the_interval_is_over() -> None:
    """What grows meanwhile is in the next line."""
    tally = Tally()
    tally.lines({"refused_rate": 1}, 10.0)
    assert tally.lines({"refused_rate": 1000}, 10.9) == []
    assert tally.lines({"refused_rate": 1001}, tally.deadline()) == ["1000 refused: above limits.rate_per_source"]


def test_worst_sources_are_named() -> None:
    """Whom to look at, in the same line."""
    tally = Tally(lambda count: [("192.0.2.1", 9), ("192.0.2.2", 4)][:count])
    (line,) = tally.lines({"refused_per_source": 13}, 0.0)
    assert line.endswith("most refused so far: 192.0.2.1 (9), 192.0.2.2 (4)")


def test_a_million_refusals_stay_below_a_hundred_kilobytes() -> None:
    """R30, R36: 20,000 refusals a second, asked ten times a second, for four reasons at once."""
    tally = Tally(lambda count: [("ffff:ffff:ffff:ffff::/64", 10**6)] * count)
    written = 0
    for step in range(500):
        refused = (step + 1) * 2000
        totals = dict.fromkeys(("refused_per_source", "refused_rate", "refused_banned", "refused_denied"), refused)
        written += sum(len(line) + 80 for line in tally.lines(totals, step / 10))
    assert refused == 1_000_000
    assert 0 < written < 100_000
