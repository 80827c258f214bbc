"""What every test shares: property tests are judged by what they find, not by how long a busy machine takes."""

import pytest
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
