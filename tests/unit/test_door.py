"""The door's register: what all processes know of sources, in words."""

from poolserver.admission import Limits
from poolserver.door import Register
from poolserver.networks import source_of
from poolserver.sources import _cold

NOW = 10**18


def test_worst_source_is_named_once_with_all_its_refusals() -> None:
    """Connections and datagrams together, and the entries of workers that raced for the first one."""
    register = Register.create()
    sources = [source_of((f"192.0.2.{number}", 1), 32, 64) for number in range(4)]
    for number, source in enumerate(sources):
        for _ in range(number + 1):
            register.connections.refuse(source, NOW)
    for _ in range(5):
        register.datagrams.refuse(sources[0], NOW)
    first = register.connections._find(sources[3])
    twin = first ^ 1  # another way of its bucket
    table = register.connections
    for field, place in ((table._words, first), (table._high, _cold(first)), (table._low, _cold(first))):
        field[place ^ 1] = field[place]
    table._refused[_cold(twin)] = 1
    assert register.worst(Limits(), 3)[:2] == [("192.0.2.0", 6), ("192.0.2.3", 5)]
