"""One set of behaviours × {PreFork, PreThread, daemon}: ``serve`` starts each kind with the same words."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DAEMON_TESTS = HERE.parent / "daemon"

sys.path.insert(0, str(DAEMON_TESTS))  # clients.py, for this folder too

# by its path: "conftest" is the name of every folder's
_spec = importlib.util.spec_from_file_location("daemon_conftest", DAEMON_TESTS / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
daemon_conftest = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(daemon_conftest)

daemon = daemon_conftest.daemon

PROGRAMS = {
    "prefork": [sys.executable, str(HERE / "library.py"), "prefork"],
    "prethread": [sys.executable, str(HERE / "library.py"), "prethread"],
    "daemon": [sys.executable, "-m", "poolserver", "run"],
}


@pytest.fixture(params=PROGRAMS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def serve(kind, daemon) -> Callable:
    """The ``daemon`` fixture for each kind in turn; ``redirect`` is the shell's, for its standard error."""

    def start(handler: str, *options: str, redirect: str = "", **more):
        program = PROGRAMS[kind]
        if redirect:
            program = ["bash", "-c", f'exec "$@" {redirect}', "bash", *program]
        return daemon(handler, *options, program=program, **more)

    return start
