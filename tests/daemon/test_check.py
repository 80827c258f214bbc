"""``poolserver check``: what it prints, what it finds, and its exit codes."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def check(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "poolserver", "check", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_every_value_is_shown_with_its_origin(tmp_path: Path) -> None:
    """Default, file and line, environment, option."""
    (tmp_path / "my.toml").write_text('[server]\nhandler = "handlers:LineHandler"\n\n[pool]\nthreads = 3\n')
    done = check(tmp_path, "-c", "my.toml", "-w", "2", POOLSERVER_TIMEOUTS__GRACEFUL="5s")
    lines = dict(line.split("  # ") for line in done.stdout.splitlines() if "  # " in line)
    origins = {key.split(" = ")[0]: (key.split(" = ")[1].strip(), origin) for key, origin in lines.items()}
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ok\n")
    assert origins["pool.threads"] == ("3", "my.toml:5")
    assert origins["pool.workers"] == ("2", "--workers")
    assert origins["timeouts.graceful"] == ("5", "$POOLSERVER_TIMEOUTS__GRACEFUL")
    assert origins["socket.backlog"] == ("1024", "default")


def test_handler_that_does_not_import_fails_with_its_traceback(tmp_path: Path) -> None:
    """One line that names the cause, the traceback below it."""
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    done = check(tmp_path, "broken:Handler")
    assert done.returncode == 78
    first, *rest = done.stderr.splitlines()
    assert "cannot import broken: ModuleNotFoundError" in first
    assert any("Traceback" in line for line in rest)


def test_module_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """A traceback would show nothing of the user's."""
    for name in ("no_such", "handlers.no_such", "no_such.handlers"):
        done = check(tmp_path, f"{name}:Handler")
        assert done.returncode == 78
        assert done.stderr.startswith(f"poolserver: server.handler: cannot import {name}: ModuleNotFoundError: ")
        assert len(done.stderr.splitlines()) == 1


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    """Two wrong addresses and a folder that is not there."""
    done = check(
        tmp_path, "handlers:LineHandler", "-b", "tcp://x", "-b", "http://y", "--set", "server.chdir=/no/such/folder"
    )
    assert done.returncode == 78
    assert all(text in done.stderr for text in ("tcp://x", "http://y", "/no/such/folder"))


def test_hazards_are_named_and_do_not_fail(tmp_path: Path) -> None:
    """A public address without a limit, a limit that shields nobody, idle off."""
    public = ("handlers:LineHandler", "-b", "tcp://0.0.0.0:20000", "-w", "2", "-t", "2")
    done = check(tmp_path, *public, "--set", "timeouts.idle=0")
    assert done.returncode == 0
    assert "hazard: limits.per_source is off on a public address" in done.stdout
    assert "hazard: timeouts.idle is off" in done.stdout
    done = check(tmp_path, *public, "--set", "limits.per_source=4")
    assert "is not below the number of lanes, 4" in done.stdout


def test_limits_by_source_behind_a_proxy_are_a_hazard(tmp_path: Path) -> None:
    """What to do about it is in the line; ``tests/unit/test_hazards.py`` says when."""
    done = check(tmp_path, "handlers:LineHandler", "-b", "unix:s.sock", "--set", "limits.rate_per_source=20/s")
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if "all clients of a local proxy count as one source" in line]
    assert line.startswith("hazard: limits.rate_per_source: every listener is local")
    assert "limits.exempt" in line


def test_handler_unfit_for_its_address_is_refused(tmp_path: Path) -> None:
    """A stream handler cannot serve datagrams."""
    done = check(tmp_path, "handlers:LineHandler", "-b", "udp://127.0.0.1:0")
    assert done.returncode == 78
    assert "cannot serve udp://127.0.0.1:0" in done.stderr
