"""Lines that a disk takes a part of, or nothing."""

import subprocess
import sys
from pathlib import Path

LOGS = """
import logging, resource, sys
from poolserver import log

def allow(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

log.introduce("master", "test")
log.use(log.opened(sys.argv[1]), "info", None)
say = logging.getLogger("test").info
say("a" * 1000)
allow(1500)
say("b" * 1000)
say("c" * 1000)
allow(resource.RLIM_INFINITY)
say("d")
say("e")
"""


def test_line_that_was_torn_is_counted_and_ended_before_the_next(tmp_path: Path) -> None:
    """A disk that is full in the middle of a line spoils that one alone."""
    path = tmp_path / "log"
    subprocess.run([sys.executable, "-c", LOGS, path], check=True, timeout=30)
    whole, torn, *rest = [line.partition("]: ")[2] for line in path.read_text().splitlines()]
    assert whole == "a" * 1000
    assert torn == "b" * len(torn)
    assert 0 < len(torn) < 1000
    assert rest == ["d (2 earlier lines lost)", "e"]
