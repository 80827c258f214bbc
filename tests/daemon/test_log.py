"""Where the log's lines go: JSON, the journal's priorities, and rotation by the real logrotate under load."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from clients import Storm, ask, wait_for
from test_access import LINE as ACCESS

SAMPLE = Path(__file__).parents[2] / "config" / "logrotate"


def test_json_lines_are_objects_and_clients_cannot_break_them(daemon, tmp_path) -> None:
    """Who speaks, how severely, and what; a traceback is one field."""
    log = tmp_path / "log"
    served = daemon("handlers:OrderHandler", "--set", f"log.file={log}", "--set", "log.format=json", workers=1)
    ask(served, b"raise\n")
    wait_for(lambda: "ordered to raise" in log.read_text(), 10, "the error to be logged")
    assert served.stop() == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    (failure,) = [record for record in records if record["level"] == "ERROR"]
    assert (failure["service"], failure["role"]) == ("handlers", "worker 0")
    assert failure["message"].startswith("handler failed for 127.0.0.1:")
    assert "RuntimeError: ordered to raise" in failure["exc_info"]
    assert {record["role"] for record in records} == {"master", "worker 0"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", record["time"]) for record in records)


def test_json_without_the_extra_says_how_to_get_it(daemon, tmp_path) -> None:
    """78 at the start; check says so, too."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pythonjsonlogger'] = None\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    for program in ("run", "check"):
        served = daemon(
            "handlers:LineHandler",
            *("--set", "log.format=json"),
            program=(sys.executable, "-m", "poolserver", program),
            ready=False,
            env={"PYTHONPATH": path},
        )
        assert served.wait() == 78
        assert "pip install 'poolserver[json]'" in served.log()


def test_journal_gets_the_priority_of_every_line(daemon, tmp_path) -> None:
    """Where standard error is what JOURNAL_STREAM names; of a traceback, each line."""
    log = tmp_path / "journal"
    log.touch()
    found = log.stat()
    program = ("bash", "-c", f'exec "$@" 2>{log}', "bash", sys.executable, "-m", "poolserver", "run")
    env = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    served = daemon("handlers:OrderHandler", program=program, env=env, ready=False)
    wait_for(lambda: "ready on" in log.read_text(), 20, "readiness")
    port = int(re.findall(r"tcp://127.0.0.1:(\d+)", log.read_text())[0])
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"raise\n")
        client.recv(1)
    wait_for(lambda: "ordered to raise" in log.read_text(), 10, "the error to be logged")
    assert served.stop() == 0
    lines = [line for line in log.read_text().splitlines() if not line.startswith("poolserver: ready")]
    assert all(re.match(r"<[3-6]>", line) for line in lines)
    assert any(line.startswith("<3>") and "RuntimeError" in line for line in lines)
    assert any(line.startswith("<6>") and "stopped: " in line for line in lines)


@pytest.mark.parametrize("how", ["reopen", "USR1"])
def test_rotation_under_load_loses_and_tears_no_line(daemon, tmp_path, how: str) -> None:
    """The sample in config/, with the real logrotate: each line is in one of the files, once, and whole."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log, state, rules = folder / "hello.log", tmp_path / "state", tmp_path / "rules"
    paths = ("--set", f"log.file={log}", "--set", f"log.access={folder / 'hello.access'}")
    served = daemon("trap_handlers:TalkativeHandler", *paths, workers=2, threads=4)
    command = f"{sys.executable} -m poolserver reopen --control {served.control_path}"
    if how == "USR1":
        command = f"kill -USR1 {served.pid}"
    sample = SAMPLE.read_text().replace("/var/log/poolserver", str(folder))
    rules.write_text(re.sub(r"poolserver reopen .*", command, sample).replace("    compress\n    delaycompress\n", ""))
    rules.chmod(0o600)
    logrotate = shutil.which("logrotate", path=os.environ["PATH"] + ":/usr/sbin")
    assert logrotate, "logrotate is not installed: see .ci/run"
    with Storm(served, clients=8) as storm:
        for _ in range(4):
            storm.wait_for_more(100)
            subprocess.run([logrotate, "--force", "--state", state, rules], check=True, timeout=60)
            wait_for(lambda: log.exists() and log.stat().st_size, 20, "lines in the new file")
    assert served.stop() == 0
    assert storm.counts.is_lossless, storm.counts
    files = sorted(folder.glob("hello.log*"))
    assert len(files) == 5
    told = [line for file in files for line in file.read_text().splitlines() if "served client" in line]
    whole = re.compile(r"\S+ INFO worker [01] \[\d+\]: served client \d+ request \d+ x{5000}")
    assert all(whole.fullmatch(line) for line in told)
    assert len(told) == len({line.partition("]: ")[2] for line in told}) == storm.counts.ok
    accesses = [line for file in folder.glob("hello.access*") for line in file.read_text().splitlines()]
    assert all(ACCESS.fullmatch(line) for line in accesses)
    assert len(accesses) == len(set(accesses)) == storm.counts.ok
