"""The log in a real journal: priorities and fields, and that a journal that stands still or is gone stops nobody."""

import json
import time
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from socket import socket

import pytest
from clients import read_line, wait_for
from test_notify import URL, service

JOURNALD = "systemd-journald.service"


def unit(handler: str, *more: str) -> str:
    """Its standard error is the journal's, as it is by default."""
    text = service(f"{handler} -b {URL} -w 2", "\n".join(more))
    return text.replace("StandardError=append:/run/share/service.log", "StandardError=journal")


def entries(sandbox) -> list[dict[str, str]]:
    """Those of the service, oldest first."""
    said = sandbox.run("journalctl", "--quiet", "--no-pager", "--output=json", "_SYSTEMD_UNIT=pool.service")
    return [json.loads(line) for line in said.splitlines()]


def hide_the_extra(sandbox) -> str:
    """For a unit: as if logging-journald were not installed."""
    Path(sandbox.share / "sitecustomize.py").write_text("import sys\nsys.modules['logging_journald'] = None\n")
    return "Environment=PYTHONPATH=/run/share:/run/repo:/run/repo/tests/daemon"


@pytest.mark.parametrize("has_extra", [True, False])
def test_every_entry_has_its_priority(sandbox_with_journal, has_extra):
    """A traceback is one entry with the extra, and without it one for each line, all of the same severity."""
    sandbox = sandbox_with_journal
    sandbox.unit("pool.service", unit("handlers:OrderHandler", "" if has_extra else hide_the_extra(sandbox)))
    sandbox.systemctl("start", "pool")
    assert sandbox.ask(URL, b"raise\n") == b""
    sandbox.systemctl("stop", "pool")
    (stopped,) = wait_for(
        lambda: [each for each in entries(sandbox) if "stopped: " in each["MESSAGE"]], 20, "the last entry"
    )
    assert stopped["PRIORITY"] == "6"
    found = [each for each in entries(sandbox) if "RuntimeError: ordered to raise" in each["MESSAGE"]]
    assert found
    assert all(each["PRIORITY"] == "3" for each in found)
    if has_extra:
        (failure,) = found
        assert failure["MESSAGE"].startswith("worker ")
        assert "Traceback (most recent call last)" in failure["MESSAGE"]
        assert failure["POOLSERVER_ROLE"] in ("worker 0", "worker 1")
        assert (failure["POOLSERVER_SERVICE"], failure["SYSLOG_IDENTIFIER"]) == ("handlers", "poolserver")


@pytest.mark.parametrize("has_extra", [True, False])
def test_journal_that_is_stopped_or_gone_stops_nobody(sandbox_with_journal, has_extra):
    """Ten megabytes of log find nobody to read them; what is lost is counted, and told when it is back (R23, R65)."""
    sandbox = sandbox_with_journal
    sandbox.unit("pool.service", unit("trap_handlers:VerboseHandler", "" if has_extra else hide_the_extra(sandbox)))
    sandbox.systemctl("start", "pool")
    with sandbox.storm(URL, clients=8) as storm:
        storm.wait_for_more(50)
        journald = sandbox.main_pid(JOURNALD)
        sandbox.kill(journald, SIGSTOP)
        storm.wait_for_more(500)
        sandbox.kill(journald, SIGCONT)
        wait_for(lambda: any("earlier lines lost)" in each["MESSAGE"] for each in entries(sandbox)), 30, "the count")
        sandbox.systemctl("stop", "systemd-journald.socket", JOURNALD)
        storm.wait_for_more(200)
        sandbox.systemctl("start", "systemd-journald.socket", JOURNALD)
        storm.wait_for_more(50)
    assert storm.counts.is_lossless, storm.counts
    assert sandbox.show("pool", "NRestarts") == "0"
    assert sandbox.show("pool", "SubState") == "running"


@pytest.mark.soak
@pytest.mark.timeout(180)
@pytest.mark.parametrize("has_extra", [True, False])
def test_journal_that_is_stopped_for_a_minute_keeps_no_line_waiting(sandbox_with_journal, has_extra):
    """A thousand lines a second and more, none of which takes its handler a tenth of a second (R23)."""
    sandbox = sandbox_with_journal
    more = "" if has_extra else hide_the_extra(sandbox)
    # One lane for each worker: lanes also wait for each other, which is none of the log's doing.
    sandbox.unit("pool.service", unit("trap_handlers:TimedHandler -t 1", more))
    sandbox.systemctl("start", "pool")
    waits: list[float] = []

    def timed(client: socket, line: bytes) -> bool:
        client.sendall(line)
        waits.append(float(read_line(client)))
        return True

    with sandbox.storm(URL, clients=4, exchange=timed) as storm:
        storm.wait_for_more(50)
        journald = sandbox.main_pid(JOURNALD)
        sandbox.kill(journald, SIGSTOP)
        began, answered = time.monotonic(), storm.counts.ok
        wait_for(lambda: time.monotonic() > began + 60, 90, "a minute")
        lines = 20 * (storm.counts.ok - answered)
        sandbox.kill(journald, SIGCONT)
        storm.wait_for_more(50)
    assert storm.counts.is_lossless, storm.counts
    assert lines > 60_000
    print(f"{lines} lines, the longest waited {max(waits):.6f} s")
    assert max(waits) < 0.1
    wait_for(lambda: any("earlier lines lost)" in each["MESSAGE"] for each in entries(sandbox)), 30, "the count")
