"""Admission: who may come in. Every rule with counts and clock in hand, and all of them against a simple model."""

import ipaddress
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from poolserver.admission import ADMITTED, EXEMPT, Admission, Limits, Reason, Verdict, most_burst, parse_rate
from poolserver.claims import Claims
from poolserver.networks import Networks, source_of
from poolserver.sources import ENTRIES, SourceTable

SECOND = 10**9
NOW = 1_000_000 * SECOND


class Door:
    """An admission with its tables, clock and claims in hand: one lane for each connection that is served."""

    def __init__(self, **section: object) -> None:
        self.now = NOW
        self.claims = Claims.create()
        self.claims.use(64, 1)
        self.table = SourceTable.create()
        self.datagrams = SourceTable.create()
        self.lanes = 0
        self.reload(**section)

    def reload(self, **section: object) -> None:
        self.limits = Limits.parse(**section)  # type: ignore[arg-type]
        self.admission = Admission(self.limits, self.claims.active, self.table, self.datagrams)

    def connect(self, host: str, after: float = 0.0) -> Verdict:
        self.now += int(after * SECOND)
        source = source_of((host, 1), self.limits.source_prefix_v4, self.limits.source_prefix_v6)
        verdict = self.admission.admit(source, self.admission.standing(source), self.now)
        if verdict.is_counted:
            self.claims.claim(self.lanes, source)
            self.lanes += 1
        return verdict

    def send(self, host: str) -> Verdict:
        source = source_of((host, 1), 32, 64)
        return self.admission.admit_datagram(source, self.admission.standing(source), self.now)

    def reasons(self, host: str, times: int) -> list[Reason | None]:
        return [self.connect(host).reason for _ in range(times)]


@pytest.mark.parametrize(
    ("text", "rate"), [("20/s", 20), ("600/m", 10), ("5/h", 5 / 3600), ("0.5/s", 0.5), ("1000000/s", 1e6), ("", 0)]
)
def test_rate_is_read_as_arrivals_a_second(text: str, rate: float) -> None:
    """Each unit; empty is off."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["20", "0/s", "-1/s", "20/d", "20 /s", "1/s\n", "1000001/s", "0.5/h", "/s", "1e3/s"])
def test_what_is_no_rate_is_refused_with_the_form_that_would_be(text: str) -> None:
    """A clause for the configuration's error line."""
    with pytest.raises(ValueError, match='must be a rate such as "20/s"'):
        parse_rate(text)


def test_burst_is_one_seconds_worth_unless_given() -> None:
    """At least one."""
    assert [Limits.parse(rate_per_source=rate).rate_burst for rate in ("20/s", "600/m", "5/h")] == [20, 10, 1]
    assert Limits.parse(rate_per_source="20/s", burst=3).rate_burst == 3
    assert most_burst(1 / 3600) == 596


def test_limits_are_off_unless_somebody_can_be_refused() -> None:
    """Exempt networks and bans alone refuse nobody."""
    assert Limits().is_off
    assert Door(exempt=["10.0.0.0/8"], ban_after=3).limits.is_off
    for section in ({"per_source": 1}, {"rate_per_source": "1/s"}, {"allow": ["::1"]}, {"deny": ["::1"]}):
        assert not Door(**section).limits.is_off


def test_connections_at_once_are_counted_by_source() -> None:
    """The third of one source is refused, another source's first is not."""
    door = Door(per_source=2)
    assert door.reasons("192.0.2.1", 3) == [None, None, Reason.PER_SOURCE]
    assert door.connect("192.0.2.2") is ADMITTED
    door.claims.give_back(0)
    assert door.connect("192.0.2.1") is ADMITTED


def test_source_is_the_network_of_its_prefix() -> None:
    """IPv4-mapped IPv6 counts as IPv4."""
    door = Door(per_source=2, source_prefix_v4=24, source_prefix_v6=48)
    hosts = ["192.0.2.1", "::ffff:192.0.2.2", "192.0.2.3", "2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1"]
    assert [door.connect(host).reason for host in hosts] == [None, None, Reason.PER_SOURCE] * 2


def addresses_of(network: str, count: int) -> Iterator[str]:
    """So many addresses, spread over the network."""
    found = ipaddress.IPv6Network(network)
    step = found.num_addresses // count
    return (str(found[number * step]) for number in range(count))


def test_hundred_thousand_addresses_of_one_network_are_one_source() -> None:
    """R37: as many as a single customer has, and more: one count, one rate, one entry, one ban."""
    door = Door(per_source=8, rate_per_source="20/s", burst=20, ban_after=1000)
    reasons = Counter(door.connect(host).reason for host in addresses_of("2001:db8:0:1::/64", 100_000))
    assert reasons[None] == 8
    assert reasons[Reason.PER_SOURCE] == 20 - 8
    assert reasons[Reason.BANNED] == 100_000 - 20 - (1000 - 12)
    assert [found for _, found in door.table.worst(10)] == [100_000 - 8]
    assert len(door.table.bans(door.now)) == 1


def test_hundred_thousand_networks_neither_break_the_table_nor_shut_anyone_out() -> None:
    """R37: at most 65,536 entries and 16 MB; who finds no room is let in, and who floods is refused all the same."""
    door = Door(rate_per_source="1/h", ban_after=2, ban_for=3600)

    def reasons(network: str, count: int, times: int) -> Counter[Reason | None]:
        sources = [source_of((host, 1), 32, 64) for host in addresses_of(network, count)]
        return Counter(door.admission.admit(source, None, NOW).reason for source in sources for _ in range(times))

    assert reasons("2001:db8::/32", 100_000, 1) == {None: 100_000}
    assert 0.9 * ENTRIES < sum(high != 0 for high in door.table._high.tolist()) <= ENTRIES
    assert len(door.table._memory) <= 16 * 2**20
    # every entry is behind its rate, so none gives way: most newcomers go untracked, and come in
    assert reasons("2001:db9::/32", 1000, 3)[None] > 2000
    # the first has its entry, is held to its rate, and banned
    assert reasons("2001:db8::/64", 1, 10) == {Reason.RATE: 2, Reason.BANNED: 8}


def test_rate_is_kept_over_ten_seconds() -> None:
    """20/s, burst 20, pushed at 500/s: 220 come in."""
    door = Door(rate_per_source="20/s", burst=20)
    source = source_of(("192.0.2.1", 1), 32, 64)
    times = range(NOW, NOW + 10 * SECOND, SECOND // 500)
    assert sum(door.admission.admit(source, None, now).reason is None for now in times) in (219, 220, 221)


def test_deny_wins_over_allow_and_allow_over_exempt() -> None:
    """An exempt address outside a given allow list is refused; so is a denied one inside it."""
    door = Door(allow=["10.0.0.0/8"], deny=["10.9.0.0/16"], exempt=["10.9.0.0/16", "10.1.0.0/16", "172.16.0.0/12"])
    verdicts = [door.connect(host) for host in ("10.9.0.1", "172.16.0.1", "10.1.0.1", "10.2.0.1", "2001:db8::1")]
    assert [verdict.reason for verdict in verdicts] == [Reason.DENIED, Reason.DENIED, None, None, Reason.DENIED]
    assert verdicts[2:4] == [EXEMPT, ADMITTED]


def test_exempt_address_is_not_counted_against_its_source() -> None:
    """It neither is refused, nor takes a neighbour's place, nor earns the neighbour a ban."""
    door = Door(per_source=1, source_prefix_v4=24, exempt=["192.0.2.1"], ban_after=1, rate_per_source="1/h")
    assert [door.connect("192.0.2.1") for _ in range(5)] == [EXEMPT] * 5
    assert door.connect("192.0.2.2") is ADMITTED
    door = Door(per_source=1, source_prefix_v4=24, exempt=["192.0.2.1"], deny=["192.0.2.1"], ban_after=1)
    assert door.reasons("192.0.2.1", 3) == [Reason.DENIED] * 3
    assert door.connect("192.0.2.2") is ADMITTED


def test_networks_do_not_apply_to_unix_peers() -> None:
    """Their socket's permissions say who may; limits count them by uid."""
    door = Door(allow=["10.0.0.0/8"], deny=["::/0", "0.0.0.0/0"], per_source=1)
    assert door.reasons("unix:uid=1000,pid=5", 2) == [None, Reason.PER_SOURCE]
    assert door.reasons("unix:uid=1000,pid=6", 1) == [Reason.PER_SOURCE]
    assert door.reasons("unix:uid=1001,pid=7", 1) == [None]


def test_refusals_earn_a_ban_and_bans_no_more_strikes() -> None:
    """It ends while the source still pushes, since refusals by a ban do not count towards the next."""
    door = Door(per_source=1, ban_after=2, ban_for=10.0)
    assert door.reasons("192.0.2.1", 5) == [None, *[Reason.PER_SOURCE] * 2, *[Reason.BANNED] * 2]
    door.claims.clear(0, 64, 0)
    assert door.connect("192.0.2.1", after=9.9).reason is Reason.BANNED
    assert door.connect("192.0.2.1", after=0.2) is ADMITTED


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"rate_per_source": "1/h", "burst": 1}, Reason.RATE),
        ({"deny": ["192.0.2.1"]}, Reason.DENIED),
        ({"per_source": 1}, Reason.PER_SOURCE),
    ],
)
def test_each_kind_of_refusal_is_a_strike(section: dict[str, object], reason: Reason) -> None:
    """After enough of them the source is banned, which a reload keeps."""
    door = Door(ban_after=3, **section)
    assert reason in door.reasons("192.0.2.1", 4)
    door.reload(ban_after=3, per_source=100)
    assert door.connect("192.0.2.1").reason is Reason.BANNED
    door.reload(per_source=100)
    assert door.connect("192.0.2.1") is ADMITTED  # ban_after off: bans are lifted


def test_dry_run_counts_and_refuses_nobody() -> None:
    """Reasons are told but not enforced, those of a ban included, and the ban is void once dry_run ends."""
    door = Door(dry_run=True, per_source=1, ban_after=2)
    verdicts = [door.connect("192.0.2.1") for _ in range(4)]
    reasons = [verdict.reason for verdict in verdicts]
    assert reasons == [None, Reason.PER_SOURCE, Reason.PER_SOURCE, Reason.BANNED]
    assert not any(verdict.is_enforced for verdict in verdicts)
    assert all(verdict.is_counted for verdict in verdicts)
    assert door.table.worst(1)[0][1] == 3
    door.reload(per_source=10, ban_after=2)
    assert door.connect("192.0.2.1") is ADMITTED


def test_real_ban_is_only_told_under_dry_run() -> None:
    """A reload to dry_run refuses nobody, whatever was before."""
    door = Door(per_source=1, ban_after=1)
    door.reasons("192.0.2.1", 2)
    door.reload(per_source=1, ban_after=1, dry_run=True)
    verdict = door.connect("192.0.2.1")
    assert (verdict.reason, verdict.is_enforced) == (Reason.BANNED, False)


def test_datagrams_have_a_rate_of_their_own_and_earn_no_ban() -> None:
    """A forged source cannot get its victim's connections refused."""
    door = Door(rate_per_source="1/h", burst=2, ban_after=1, per_source=5)
    verdicts = [door.send("192.0.2.1") for _ in range(100)]
    assert [verdict.reason for verdict in verdicts] == [None] * 2 + [Reason.RATE] * 98
    assert verdicts[-1].is_enforced
    assert door.connect("192.0.2.1") is ADMITTED
    assert door.datagrams.worst(1)[0][1] == 98


def test_datagrams_obey_networks() -> None:
    """deny, allow, exempt, in this order; and dry_run."""
    section = {"deny": ["10.9.0.0/16"], "allow": ["10.0.0.0/8"], "exempt": ["10.1.0.0/16"], "rate_per_source": "1/h"}
    door = Door(**section)
    assert [door.send(host).reason for host in ("10.9.0.1", "11.0.0.1", "10.2.0.1")] == [Reason.DENIED] * 2 + [None]
    assert [door.send("10.1.0.1") for _ in range(3)] == [EXEMPT] * 3
    door.reload(dry_run=True, **section)
    assert door.send("10.9.0.1") == Verdict(Reason.DENIED, is_enforced=False, is_counted=True)


HOSTS = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "::ffff:10.0.1.2", "10.9.0.1", "172.16.0.1", "2001:db8::1", "2001:db8::2"]
HOSTS += ["unix:uid=1,pid=1", "unix:uid=1,pid=2"]
NETWORKS = ["10.0.0.1/32", "10.9.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "2001:db8::/32", "2001:db8::2/128"]
WORKERS, LANES = 3, 4

SECTIONS = st.fixed_dictionaries(
    {
        "per_source": st.integers(0, 4),
        "source_prefix_v4": st.sampled_from([16, 24, 32]),
        "source_prefix_v6": st.sampled_from([64, 128]),
        "rate_per_source": st.sampled_from(["", "1/s", "30/m", "2/s"]),
        "burst": st.integers(0, 3),
        "allow": st.one_of(st.just([]), st.lists(st.sampled_from(NETWORKS), max_size=3)),
        "deny": st.lists(st.sampled_from(NETWORKS), max_size=1),
        "exempt": st.lists(st.sampled_from(NETWORKS), max_size=1),
        "ban_after": st.integers(0, 4),
        "ban_for": st.sampled_from([1.0, 30.0, 100.0]),
        "dry_run": st.booleans(),
    }
)


class Model:
    """The rules once more: texts, dicts and a bucket of tokens, on ipaddress, with no thought of speed."""

    def __init__(self, section: dict[str, object]) -> None:
        self.section = section
        self.held: dict[tuple[int, int], str] = {}  # (worker, lane) -> source
        self.tokens: dict[str, tuple[int, int]] = {}  # source -> (ns of credit, when)
        self.strikes: dict[str, tuple[int, int]] = {}
        self.bans: dict[str, int] = {}

    def source(self, host: str) -> str:
        if host.startswith("unix:"):
            return host.partition(",")[0]
        address = self.address(host)
        prefix = self.section["source_prefix_v4" if address.version == 4 else "source_prefix_v6"]
        return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))

    def address(self, host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return ipaddress.ip_address(host.removeprefix("::ffff:"))

    def is_in(self, host: str, name: str) -> bool:
        if host.startswith("unix:"):
            return False
        address = self.address(host)
        return any(address in ipaddress.ip_network(text) for text in self.section[name])  # type: ignore[attr-defined]

    def reason(self, host: str, now: int) -> tuple[str, bool]:
        """Why ``host`` is refused, "" when it is not; and whether it counts."""
        section, source = self.section, self.source(host)
        is_exempt = self.is_in(host, "exempt")
        is_outside = bool(section["allow"]) and not self.is_in(host, "allow") and not host.startswith("unix:")
        if self.is_in(host, "deny") or is_outside:
            reason = "denied"
        elif is_exempt:
            return "", False
        elif section["ban_after"] and self.bans.get(source, 0) > now:
            return "banned", bool(section["dry_run"])
        elif not self.has_credit(source, now):
            reason = "rate"
        elif section["per_source"] and list(self.held.values()).count(source) >= section["per_source"]:  # type: ignore[operator]
            reason = "per_source"
        else:
            return "", True
        if section["ban_after"] and not is_exempt:
            self.strike(source, now)
        return reason, bool(section["dry_run"])

    def has_credit(self, source: str, now: int) -> bool:
        per_second = {"": 0.0, "1/s": 1.0, "30/m": 0.5, "2/s": 2.0}[str(self.section["rate_per_source"])]
        if not per_second:
            return True
        cost = int(SECOND / per_second)
        full = cost * (int(self.section["burst"]) or max(1, int(per_second)))  # type: ignore[call-overload]
        credit, when = self.tokens.get(source, (full, now))
        credit = min(full, credit + now - when)
        has_credit = credit >= cost
        self.tokens[source] = (credit - cost if has_credit else credit, now)
        return bool(has_credit)

    def strike(self, source: str, now: int) -> None:
        start, count = self.strikes.get(source, (now, 0))
        if now - start >= 60 * SECOND:
            start, count = now, 0
        self.strikes[source] = (start, count + 1)
        if count + 1 >= self.section["ban_after"]:  # type: ignore[operator]
            del self.strikes[source]
            until = now + int(self.section["ban_for"] * SECOND)  # type: ignore[operator]
            self.bans[source] = max(self.bans.get(source, 0), until)


class AdmissionMachine(RuleBasedStateMachine):
    """Connections, closings, deaths, and time, in any order: the admission and the model agree on each verdict."""

    @initialize(section=SECTIONS)
    def start(self, section: dict[str, object]) -> None:
        self.model = Model(section)
        self.limits = Limits.parse(**section)  # type: ignore[arg-type]
        self.claims = Claims.create()
        self.claims.use(WORKERS * LANES, WORKERS)
        self.table = SourceTable.create()
        # A table and an admission for each worker, as after a fork: what they share is the memory alone.
        self.doors = [self.door() for _ in range(WORKERS)]
        self.now = NOW

    def door(self) -> Admission:
        table = SourceTable(self.table._memory)
        return Admission(self.limits, self.claims.active, table, table)

    @rule(host=st.sampled_from(HOSTS), worker=st.integers(0, WORKERS - 1), lane=st.integers(0, LANES - 1))
    def connect(self, host: str, worker: int, lane: int) -> None:
        if (worker, lane) in self.model.held:
            self.close(worker, lane)
        source = source_of((host, 1), self.limits.source_prefix_v4, self.limits.source_prefix_v6)
        door = self.doors[worker]
        verdict = door.admit(source, door.standing(source), self.now)
        reason, is_counted = self.model.reason(host, self.now)
        assert (verdict.reason.value if verdict.reason else "") == reason
        assert verdict.is_counted == is_counted
        assert verdict.is_enforced == (bool(reason) and not self.limits.dry_run)
        if is_counted:
            self.claims.claim(worker * LANES + lane, source)
            self.model.held[worker, lane] = self.model.source(host)

    @rule(worker=st.integers(0, WORKERS - 1), lane=st.integers(0, LANES - 1))
    def close(self, worker: int, lane: int) -> None:
        self.claims.give_back(worker * LANES + lane)
        self.model.held.pop((worker, lane), None)

    @rule(worker=st.integers(0, WORKERS - 1))
    def die(self, worker: int) -> None:
        self.claims.clear(worker * LANES, LANES, worker)
        self.doors[worker] = self.door()
        self.model.held = {place: source for place, source in self.model.held.items() if place[0] != worker}

    @rule(seconds=st.sampled_from([0.001, 0.1, 0.5, 1.0, 1.001, 7.0, 59.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += int(seconds * 1000) * 10**6

    @rule(section=SECTIONS)
    def reload(self, section: dict[str, object]) -> None:
        """Limits but the prefixes and the rate change under open connections; bans and counts stay."""
        kept = ("source_prefix_v4", "source_prefix_v6", "rate_per_source", "burst", "dry_run")
        self.model.section = {**section, **{name: self.model.section[name] for name in kept}}
        self.limits = Limits.parse(**self.model.section)  # type: ignore[arg-type]
        self.doors = [self.door() for _ in range(WORKERS)]

    @invariant()
    def counts_are_those_of_open_connections(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.claims.standing().total() == len(self.model.held)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            for worker in range(WORKERS):
                self.die(worker)
            assert not self.claims.standing()


TestAdmissionAgreesWithTheModel = AdmissionMachine.TestCase


def test_limits_hold_networks_that_were_parsed() -> None:
    """A network that is none is named."""
    assert isinstance(Limits.parse(deny=["10.0.0.0/8"]).deny, Networks)
    with pytest.raises(ValueError, match="'bad'"):
        Limits.parse(deny=["bad"])
