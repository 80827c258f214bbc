"""Whether a processor is to spare: a guess at what /proc says, which never fails."""

import pytest

from poolserver.processors import has_spare, is_spare


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (b"0.5 0.4 0.3 1/300 4711\n", True),
        (b"9.9 9.9 9.9 2/300 4711\n", True),
        (b"0.0 0.0 0.0 3/300 4711\n", False),
        (b"", True),
        (b"nonsense", True),
        (b"a b c d/e f", True),
    ],
)
def test_processor_is_spare_while_no_more_want_to_run_than_there_are(told: bytes, expected: bool) -> None:
    """The caller is one of them; where nobody can tell there is one."""
    assert is_spare(told, 2) is expected


def test_has_spare_says_something_here() -> None:
    """Whatever runs beside it."""
    assert has_spare() in (True, False)
