"""CPython's own tests of its servers pass with our classes in the place of the stock ones; see ``cpython.py``."""

import os
import re
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL

import pytest

DRIVER = Path(__file__).with_name("cpython.py")

NO_TESTS_STATUS = 78
"""The driver's exit status where the interpreter ships without its tests."""

TIMEOUT = 80.0
"""Seconds for one module. test_xmlrpc takes 27 s with the stock classes too: nine of its servers await a request that
never comes for 3 s each. The others take less than 3 s."""


@pytest.mark.parametrize(
    ("substitution", "at_least"),
    [
        # how many pass on 3.11 to 3.13, the fewest of them, less what CPython skips for root
        pytest.param("mixins", 25, id="Forking-and-Threading-by-ours"),
        pytest.param("prethread", 24, id="plain-by-PreThread"),
        pytest.param("prefork", 20, id="plain-by-PreFork"),
        pytest.param("httpservers", 47, id="HTTPServer-by-PreThread"),
        pytest.param("xmlrpc", 93, id="SimpleXMLRPCServer-by-PreThread"),
        pytest.param("docxmlrpc", 9, id="DocXMLRPCServer-by-PreThread"),
        pytest.param("wsgiref", 35, id="WSGIServer-by-PreThread"),
    ],
)
def test_cpythons_own_tests_pass_with_our_classes(substitution: str, at_least: int, tmp_path: Path) -> None:
    """All tests but the excluded pass, as many as there should be, and no thread or process outlives them."""
    driver = subprocess.Popen(
        [sys.executable, DRIVER, substitution],
        cwd=tmp_path,  # where the tests put their files
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        report, _ = driver.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(driver.pid, SIGKILL)
        report, _ = driver.communicate()
        pytest.fail(f"not over within {TIMEOUT:g} s:\n{report}")
    finally:
        is_anyone_left = _kill_group(driver.pid)
    if driver.returncode == NO_TESTS_STATUS:
        pytest.fail(report, pytrace=False)
    assert driver.returncode == 0, report
    assert not is_anyone_left, f"a process outlived the tests:\n{report}"
    assert passed(report) >= at_least, report


def passed(report: str) -> int:
    """How many tests passed, from unittest's summary: those that ran without those that skipped themselves."""
    ran = re.search(r"^Ran (\d+) tests? in ", report, re.MULTILINE)
    skipped = re.search(r"^OK \(.*skipped=(\d+)", report, re.MULTILINE)
    return int(ran[1] if ran else 0) - int(skipped[1] if skipped else 0)


def _kill_group(group: int) -> bool:
    """End whoever is left of a driver's process group; whether there was anyone."""
    try:
        os.killpg(group, SIGKILL)
    except ProcessLookupError:
        return False
    return True
