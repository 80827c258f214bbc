"""Programs that others wrote, against the examples: what they report, not one failure, is the test.

They come with Debian's redis-tools, apache2-utils, wrk, curl, dnsperf, swaks, bsdutils; a missing one fails its test.
"""

import concurrent.futures
import contextlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import PATIENCE, wait_for

CLIENT_TIMEOUT = 80
"""Seconds until a client that hangs is killed; each needs about two."""

LANES = {"workers": 2, "threads": 32}
"""A keep-alive connection holds a lane, so 64 of them need 64."""

PACKAGES = {
    "redis-benchmark": "redis-tools",
    "ab": "apache2-utils",
    "curl": "curl",
    "dnsperf": "dnsperf",
    "swaks": "swaks",
    "logger": "bsdutils",
    "wrk": "wrk",
}


def run(program: str, *words: object) -> str:
    """Run a client to its end; all that it printed. It fails the test by its absence or its exit code."""
    if shutil.which(program) is None:
        pytest.fail(f"{program} is missing: apt-get install {PACKAGES[program]}")
    done = subprocess.run(
        [program, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=CLIENT_TIMEOUT,
        check=False,
        text=True,
    )
    print(done.stdout)  # pytest shows it when the test fails
    assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def number(pattern: str, report: str) -> float:
    """The one number that ``pattern`` finds in a report."""
    found = re.findall(pattern, report)
    assert len(found) == 1, f"{pattern!r} is there {len(found)} times in:\n{report}"
    return float(found[0])


@contextlib.contextmanager
def beside(program: str, *words: object) -> Iterator[concurrent.futures.Future[str]]:
    """The same while the block runs."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        yield thread.submit(run, program, *words)


def reload_often(served, times: int) -> None:
    """One after the other."""
    for number in range(times):
        served.signal(signal.SIGHUP)
        done = number + 1
        wait_for(lambda n=done: served.status()["totals"]["reloads"] == n, 4 * PATIENCE, "the end of a reload")


reloads = pytest.mark.parametrize(
    ("seconds", "times"), [(4, 2), pytest.param(50, 20, marks=[pytest.mark.soak, pytest.mark.timeout(150)])]
)
"""How long a client runs, and how many reloads there are meanwhile."""


class TestRedisBenchmark:
    """keyvalue.KeyValueHandler"""

    @pytest.fixture
    def port(self, daemon) -> int:
        return daemon("poolserver.examples.keyvalue:KeyValueHandler", **LANES).port

    @pytest.mark.parametrize("clients", [16, 64])
    @pytest.mark.parametrize(("keep_alive", "requests"), [(1, 10_000), (0, 3_000)])
    def test_every_ping_is_answered(self, port, clients, keep_alive, requests):
        """On connections that stay, and on a new one for each request."""
        words = [
            "-h",
            "127.0.0.1",
            "-p",
            port,
            "-t",
            "ping_inline",
            "-c",
            clients,
            "-n",
            requests,
            "-k",
            keep_alive,
        ]
        report = run("redis-benchmark", *words)
        assert number(r"(\d+) requests completed in", report) == requests
        assert number(r"(\d+) parallel clients", report) == clients
        assert number(r"keep alive: (\d)", report) == keep_alive
        assert 'host configuration "save"' in report
        assert "error" not in report.lower()
        assert [line for line in report.splitlines() if "WARNING" in line and "Keepalive disabled" not in line] == []

    def test_pipelined_arrays_are_answered(self, port):
        """Sixteen commands at once on each connection."""
        words = ["-h", "127.0.0.1", "-p", port, "-t", "ping_mbulk,set,get", "-c", 16, "-n", 8_000, "-P", 16]
        report = run("redis-benchmark", *words)
        assert re.findall(r"(\d+) requests completed in", report) == ["8000"] * 3
        assert "error" not in report.lower()


class TestWebClients:
    """web.HelloHandler and web.FilesHandler"""

    @pytest.fixture
    def url(self, daemon) -> str:
        return f"http://127.0.0.1:{daemon('poolserver.examples.web:HelloHandler', **LANES).port}/"

    @pytest.mark.parametrize("clients", [16, 64])
    @pytest.mark.parametrize(("options", "requests"), [(["-k"], 5_000), ([], 2_000)], ids=["keep-alive", "close"])
    def test_ab_completes_every_request(self, url, clients, options, requests):
        """None failed, none of another length, and with -k all on connections that stayed."""
        report = run("ab", *options, "-q", "-s", 20, "-c", clients, "-n", requests, url)
        assert number(r"Complete requests: +(\d+)", report) == requests
        assert number(r"Failed requests: +(\d+)", report) == 0
        assert "Non-2xx" not in report
        assert "Write errors" not in report
        if options:
            assert number(r"Keep-Alive requests: +(\d+)", report) == requests

    def test_curl_asks_five_times_on_one_connection(self, url):
        """The first request connects, no other does."""
        form = "%{http_code} %{http_version} %{num_connects} %{size_download}\\n"
        report = run("curl", "-sS", "--max-time", 20, "-w", form, *["-o", "/dev/null", url] * 5)
        assert report.splitlines() == ["200 1.1 1 14"] + ["200 1.1 0 14"] * 4

    def test_curl_gets_the_head(self, url):
        """Without waiting for a body that does not come."""
        report = run("curl", "-sS", "--max-time", 20, "--head", url)
        assert report.startswith("HTTP/1.1 200 OK")
        assert "Content-Length: 14" in report

    def test_curl_fetches_a_large_file_whole(self, daemon, tmp_path: Path):
        """Byte for byte, from the daemon's current directory."""
        content = bytes(range(256)) * 32 * 1024  # 8 MiB
        (tmp_path / "large").write_bytes(content)
        port = daemon("poolserver.examples.web:FilesHandler", cwd=tmp_path).port
        run(
            "curl",
            "-sS",
            "--fail",
            "--max-time",
            20,
            "-o",
            tmp_path / "got",
            f"http://127.0.0.1:{port}/large",
        )
        assert (tmp_path / "got").read_bytes() == content

    @reloads
    @pytest.mark.parametrize("program", ["ab", "wrk"])
    def test_reloads_lose_no_request_of_kept_connections(self, daemon, program, seconds, times):
        """``Connection: close`` tells clients of a worker that leaves."""
        served = daemon("poolserver.examples.web:HelloHandler", **LANES)
        url = f"http://127.0.0.1:{served.port}/"
        words = {
            "ab": ["-k", "-q", "-s", 20, "-c", 16, "-t", seconds, "-n", 10_000_000, url],
            "wrk": ["-c", 16, "-t", 1, "-d", f"{seconds}s", "--timeout", "20s", url],
        }
        with beside(program, *words[program]) as client:
            reload_often(served, times)
        report = client.result()
        if program == "ab":
            assert number(r"Failed requests: +(\d+)", report) == 0
            assert number(r"Complete requests: +(\d+)", report) > 100
        else:
            assert number(r"(\d+) requests in", report) > 100
        assert not re.search("Socket errors|Non-2xx|Write errors", report)
        assert served.stop() == 0


class TestWSGI:
    """wsgi.WSGIService: a server class with an application"""

    def test_curl_and_ab_are_answered(self, daemon):
        """Queries, bodies, refusals; and many at once."""
        served = daemon("poolserver.examples.wsgi:WSGIService", **LANES)
        url = f"http://127.0.0.1:{served.port}/"
        curl = ("curl", "--silent", "--show-error", "--max-time", 20)
        assert run(*curl, f"{url}?name=world") == "hello world\n"
        assert run(*curl, "--data", "x" * 5000, url) == "5000 bytes\n"
        assert "405" in run(*curl, "--include", "--request", "DELETE", url).splitlines()[0]
        assert "411" in run(*curl, "--include", "--request", "POST", url).splitlines()[0]
        report = run("ab", "-q", "-s", 20, "-c", 16, "-n", 500, url)
        assert number(r"Failed requests: +(\d+)", report) == 0
        assert served.status()["totals"]["errors"] == 0


class TestXMLRPC:
    """rpc.RPCServer: a server class on the command line"""

    def test_client_calls_and_gets_faults(self, daemon):
        """Results, introspection, an error of its own, and the next result."""
        port = daemon("poolserver.examples.rpc:RPCServer").port
        with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}") as proxy:
            assert proxy.pow(2, 10) == 1024
            assert "pow" in proxy.system.listMethods()
            with pytest.raises(xmlrpc.client.Fault, match="ZeroDivisionError"):
                proxy.pow(0, -1)
            assert proxy.add(1, 2) == 3

    def test_many_clients_at_once_get_their_own_results(self, daemon):
        """One server object serves all lanes of a worker: no client sees another's sum."""
        port = daemon("poolserver.examples.rpc:RPCServer").port
        right = []

        def call(client):
            with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}") as proxy:
                right.extend(proxy.add(client, call) == client + call for call in range(50))

        threads = [threading.Thread(target=call, args=(1000 * client,), daemon=True) for client in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
        assert right == [True] * 16 * 50


class TestDnsperf:
    """dns.DNSHandler"""

    def test_every_query_is_answered(self, daemon, tmp_path: Path):
        """None lost, and the codes that the names deserve."""
        port = daemon("poolserver.examples.dns:DNSHandler", bind="udp://127.0.0.1:0").port
        queries = tmp_path / "queries"
        queries.write_text("www.example A\nmail.example AAAA\nnobody.invalid A\nexample ANY\n")
        # At most 40 under way, which any receive buffer has room for; 20 s until one counts as lost.
        report = run("dnsperf", "-s", "127.0.0.1", "-p", port, "-d", queries, "-n", 500, "-c", 8, "-q", 40, "-t", 20)
        assert number(r"Queries sent: +(\d+)", report) == 2000
        assert number(r"Queries completed: +(\d+)", report) == 2000
        assert number(r"Queries lost: +(\d+)", report) == 0
        assert "NOERROR 1500 (75.00%), NXDOMAIN 500 (25.00%)" in report
        assert "[Warning]" not in report

    @reloads
    def test_reloads_lose_no_query(self, daemon, tmp_path: Path, seconds, times):
        """What is queued is read by the new workers."""
        served = daemon("poolserver.examples.dns:DNSHandler", bind="udp://127.0.0.1:0")
        queries = tmp_path / "queries"
        queries.write_text("www.example A\n")
        words = ["-s", "127.0.0.1", "-p", served.port, "-d", queries, "-l", seconds, "-Q", 1000, "-q", 40, "-t", 20]
        with beside("dnsperf", *words) as client:
            reload_often(served, times)
        report = client.result()
        assert number(r"Queries completed: +(\d+)", report) > 100
        assert number(r"Queries lost: +(\d+)", report) == 0
        assert served.stop() == 0


class TestLogger:
    """syslog.SyslogHandler"""

    def test_messages_come_with_priority_and_sender(self, daemon):
        """Of either RFC, over UDP and a Unix socket."""
        with tempfile.TemporaryDirectory(prefix="pool-") as folder:
            path = f"{folder}/log"
            served = daemon("poolserver.examples.syslog:SyslogHandler", bind=["udp://127.0.0.1:0", f"unixgram:{path}"])
            there = ("--server", "127.0.0.1", "--port", served.port, "--udp")
            run("logger", *there, "--priority", "daemon.warning", "--tag", "me", "first")
            run("logger", *there, "--rfc3164", "--priority", "local3.err", "second")
            run("logger", "--socket", path, "--priority", "mail.info", "third")
            for line in (r"daemon\.warning 127\.0\.0\.1: .*first", r"local3\.err 127\.0\.0\.1: .*second",
                         r"mail\.info local: .*third"):  # fmt: skip
                wait_for(lambda text=line: re.search(text, served.log()), PATIENCE, line)
            assert served.stop() == 0


class TestSwaks:
    """smtp.SMTPHandler: the server speaks first"""

    @pytest.mark.parametrize("options", [[], ["--pipeline"]], ids=["one-by-one", "pipelined"])
    def test_mail_is_taken(self, daemon, options):
        """The whole session, and the line in the daemon's log."""
        served = daemon("poolserver.examples.smtp:SMTPHandler")
        words = [
            "--server",
            "127.0.0.1",
            "--port",
            served.port,
            "--from",
            "you@example",
            "--to",
            "me@example",
        ]
        report = run("swaks", *words, "--helo", "client.example", "--timeout", 20, "--body", "x" * 5000, *options)
        assert "<-  250 discarded" in report
        assert "<-  221 bye" in report
        assert "<** " not in report  # swaks marks replies that it did not want
        assert "*** " not in report  # and errors of its own
        assert served.stop() == 0
        assert re.search(r"mail from '<you@example>' to 1, 5\d\d\d bytes: discarded", served.log())
