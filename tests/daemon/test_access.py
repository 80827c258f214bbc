"""The access log: one line for each connection, when it is over; what is in it, and that nobody waits for it."""

import json
import re
import socket
import ssl
from signal import SIGHUP, SIGTERM, SIGUSR1

import pytest
from clients import Storm, ask, connect, read_line, storm, wait_for
from test_proxy import ON, v2
from test_tls_service import secure

LINE = re.compile(
    r"\S+ INFO (?P<role>worker \d+|master) \[\d+\]: access: peer=(?P<peer>\S+) listener=(?P<listener>\S+)"
    r" worker=(?P<worker>\d+) lane=(?P<lane>\S+) duration=(?P<duration>[\d.e-]+)"
    r" bytes_in=(?P<in>\S+) bytes_out=(?P<out>\S+) outcome=(?P<outcome>ok|error|timeout|cut)"
)


def lines(path) -> list[dict[str, str]]:
    """Those of the access log; every line of the file is one."""
    found = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
    assert all(found), path.read_text()
    return [match.groupdict() for match in found if match]


def the_line(path) -> dict[str, str]:
    """The one that there is, waited for."""
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"), 10, "a line")
    (line,) = lines(path)
    return line


@pytest.fixture
def path(tmp_path):
    return tmp_path / "access"


@pytest.mark.parametrize("workers", [0, 1])
def test_served_connection_is_told_with_what_it_moved(daemon, path, workers):
    """Who, where, by which lane, for how long, how much in and out as the kernel counts it, and how it ended."""
    served = daemon("handlers:OrderHandler", "--set", f"log.access={path}", workers=workers)
    with connect(served) as client:
        peer = f"127.0.0.1:{client.getsockname()[1]}"
        client.sendall(b"sleep 0.3\n")
        assert read_line(client) == b"slept\n"
    line = the_line(path)
    assert (line["peer"], line["listener"], line["outcome"]) == (peer, served.urls[0], "ok")
    assert (line["in"], line["out"]) == ("10", "6")
    assert 0.3 <= float(line["duration"]) < 20
    assert 0 <= int(line["lane"]) < 4
    assert "access:" not in served.log()


@pytest.mark.parametrize(
    ("order", "options", "outcome"),
    [
        (b"raise\n", [], "error"),
        (b"hold\n", ["timeouts.handler=0.5"], "timeout"),
        (b"hold\n", ["timeouts.idle=0.5"], "timeout"),
        (b"", ["timeouts.first_byte=0.5"], "timeout"),
    ],
    ids=["raises", "handler", "idle", "first byte"],
)
def test_end_is_told_for_what_it_was(daemon, path, order, options, outcome):
    """An exception; a deadline, also of one that no lane ever had."""
    words = [word for option in (*options, f"log.access={path}") for word in ("--set", option)]
    served = daemon("handlers:OrderHandler", *words, workers=1)
    with connect(served) as client:
        client.sendall(order)
        line = the_line(path)
    assert line["outcome"] == outcome
    assert (line["lane"] == "-") == (order == b"")


def test_connection_that_a_stop_cuts_is_told(daemon, path):
    """It had its time."""
    options = ["--set", f"log.access={path}", "--set", "timeouts.graceful=0.2"]
    served = daemon("handlers:OrderHandler", *options, workers=1)
    with connect(served) as client:
        client.sendall(b"hold\n")
        assert read_line(client) == b"holding\n"
        assert served.stop(SIGTERM) == 0
    assert the_line(path)["outcome"] == "cut"


def test_every_connection_of_a_storm_has_its_line(daemon, path):
    """No more, no fewer, none torn, though several workers write to one file (F02)."""
    served = daemon("handlers:LineHandler", "--set", f"log.access={path}", workers=3)
    counts = storm(served, clients=8, requests=50)
    assert counts.is_lossless, counts
    assert served.stop() == 0
    told = lines(path)
    assert len(told) == 400
    assert {line["outcome"] for line in told} == {"ok"}
    assert len({line["peer"] for line in told}) == 400


def test_conversation_is_one_connection(daemon, path):
    """However often it was parked: one line, for its whole time and all of its bytes."""
    served = daemon("poolserver.examples.web:HelloHandler", "--set", f"log.access={path}", workers=1)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(served) as client:
        for _ in range(3):
            client.sendall(request)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
            wait_for(lambda: served.status()["pool"]["parked"] == 1, 10, "the conversation to be parked")
    assert int(the_line(path)["in"]) == 3 * len(request)


def test_true_puts_it_into_the_log_whatever_the_logs_level(daemon):
    """It was asked for."""
    served = daemon("handlers:LineHandler", "--set", "log.access=true", "--set", "log.level=error")
    assert ask(served, b"hello\n") == b"hello\n"
    wait_for(lambda: " access: peer=127.0.0.1:" in served.log(), 10, "the line")


def test_json_has_the_fields_by_name(daemon, path):
    """As ``log.format`` says."""
    served = daemon("handlers:LineHandler", "--set", f"log.access={path}", "--set", "log.format=json", workers=1)
    assert ask(served, b"hello\n") == b"hello\n"
    wait_for(lambda: path.read_text().endswith("\n"), 10, "the line")
    record = json.loads(path.read_text())
    assert (record["worker"], record["bytes_in"], record["bytes_out"], record["outcome"]) == (0, 6, 6, "ok")


def test_unix_peers_and_datagrams_are_told_as_far_as_they_go(daemon, path, tmp_path):
    """Nobody counts a Unix socket's bytes, nor what answers a datagram."""
    url = f"unix:{tmp_path}/socket"
    served = daemon("handlers:LineHandler", "--set", f"log.access={path}", bind=url, workers=1)
    assert ask(served, b"hello\n") == b"hello\n"
    line = the_line(path)
    assert (line["in"], line["out"], line["listener"]) == ("-", "-", url)
    assert line["peer"].startswith("unix:uid=")
    path.unlink()
    served = daemon("datagram_handlers:Upper", "--set", f"log.access={path}", bind="udp://127.0.0.1:0", workers=1)
    with connect(served) as client:
        client.send(b"hello")
        assert client.recv(100) == b"HELLO"
        line = the_line(path)
        assert line["peer"] == f"127.0.0.1:{client.getsockname()[1]}"
    assert (line["in"], line["out"], line["outcome"]) == ("5", "-", "ok")


def test_tls_is_told_under_the_proxy_headers_name(daemon, path, pki):
    """The listener's URL, the true client, and what went over the wire: more than what was said."""
    words = [*pki.server_options(), *ON, "--set", f"log.access={path}"]
    served = daemon("handlers:LineHandler", *words, bind="tls://127.0.0.1:0", workers=1)
    with secure(served, ssl.create_default_context(cafile=pki.ca), before=v2("192.0.2.7")) as client:
        client.sendall(b"hello\n")
        assert read_line(client) == b"hello\n"
    line = the_line(path)
    assert (line["peer"], line["listener"], line["outcome"]) == ("192.0.2.7:4711", served.urls[0], "ok")
    assert int(line["in"]) > 100
    assert int(line["out"]) > 100


def test_refused_has_no_line(daemon, path):
    """Whoever floods us is not to fill the disk; it is counted."""
    words = ("--set", f"log.access={path}", "--set", "limits.deny=127.0.0.2")
    served = daemon("handlers:LineHandler", *words, workers=1)
    with socket.socket() as client:
        client.bind(("127.0.0.2", 0))
        client.connect(("127.0.0.1", served.port))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert served.status()["totals"]["refused"]["denied"] == 1
    assert ask(served, b"hello\n") == b"hello\n"
    assert the_line(path)["peer"].startswith("127.0.0.1:")


def test_rotation_and_reload_lose_no_line(daemon, path, tmp_path):
    """USR1 opens the file anew, in every process; a reload moves on to another."""
    config = tmp_path / "pool.toml"
    text = '[server]\nhandler = "handlers:LineHandler"\nbind = ["tcp://127.0.0.1:0"]\n[log]\naccess = "access"\n'
    config.write_text(text)
    served = daemon(None, "-c", str(config), bind=())
    with Storm(served, clients=4) as blowing:
        blowing.wait_for_more(100)
        path.rename(tmp_path / "access.1")
        served.signal(SIGUSR1)
        wait_for(lambda: path.exists() and path.stat().st_size, 20, "a line in the new file")
        config.write_text(text.replace('"access"', '"other"'))
        served.signal(SIGHUP)
        wait_for(lambda: "reload done" in served.log(), 20, "the reload")
        wait_for(lambda: (tmp_path / "other").stat().st_size, 20, "a line in the other file")
    assert blowing.counts.is_lossless, blowing.counts
    assert served.stop() == 0
    files = [tmp_path / name for name in ("access.1", "access", "other")]
    assert all(lines(file) for file in files)
    assert sum(len(lines(file)) for file in files) == blowing.counts.ok


def test_path_that_cannot_be_opened_is_78(daemon, tmp_path):
    """By its own key; nonsense likewise."""
    refused = daemon("handlers:LineHandler", "--set", f"log.access={tmp_path}/none/access", ready=False)
    assert refused.wait() == 78
    assert f"log.access: cannot open '{tmp_path}/none/access': No such file or directory" in refused.log()
