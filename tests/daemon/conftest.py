"""What the tests of the daemon share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import Daemon
from sites import Site


@pytest.fixture
def site(tmp_path: Path, daemon: Callable[..., Daemon]) -> Site:
    """A handler and a configuration in a folder, to be started, and changed."""
    return Site(tmp_path, daemon)
