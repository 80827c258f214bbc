"""``shutdown()`` of the library classes, from wherever it may be called: ``scenarios.py`` in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DAEMON_TESTS = HERE.parent / "daemon"


@pytest.mark.parametrize("kind", ["prefork", "prethread"])
@pytest.mark.parametrize(
    "scenario",
    [
        "shutdown_stops_all",
        "shutdown_twice",
        "shutdown_before_serving",
        "shutdown_in_a_signal_handler",
        "shutdown_in_a_signal_handler_at_any_moment",
        "served_again_and_again",
        "shutdown_is_not_polled_for",
        "second_serve_forever_is_refused",
        "unusable_attributes_are_refused",
        "tls_wrapped_listener_is_refused",
    ],
)
def test_library_service_survives(scenario, kind):
    """S02, S03, S04, S05: shutdown() ends all of the service, always returns, and is not remembered."""
    done = subprocess.run(
        [sys.executable, str(HERE / "scenarios.py"), scenario, kind],
        env={**os.environ, "PYTHONPATH": str(DAEMON_TESTS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        timeout=80,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout
