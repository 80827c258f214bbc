"""What every test shares: property tests are judged by what they find, not by how long a busy machine takes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon, starting
from hypothesis import HealthCheck, settings
from pki import Pki

settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in each run: no landing fails by luck. For others: pytest --hypothesis-profile=search
settings.register_profile("poolserver", settings.get_profile("search"), derandomize=True)
settings.load_profile("poolserver")


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates and keys."""
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons, and ends them with the test::

        served = daemon("handlers:LineHandler", "--set", "limits.per_source=4", workers=2, threads=4)
        assert ask(served, b"hello\\n") == b"hello\\n"
        assert served.stop() == 0

    A process that outlives its master fails the test. The logs are printed; pytest shows them if it fails.
    """
    with starting(tmp_path) as start:
        yield start
