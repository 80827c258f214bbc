"""Programs that others wrote, against the examples: what they report, not one failure, is the test.

They come with Debian's redis-tools, apache2-utils, curl, dnsperf and swaks; a missing one fails its test.
"""

import re
import shutil
import subprocess
import threading
import xmlrpc.client
from pathlib import Path

import pytest
from clients import PATIENCE

CLIENT_TIMEOUT = 60
"""Seconds until a client that hangs is killed; each needs about two."""

LANES = {"workers": 2, "threads": 32}
"""A keep-alive connection holds a lane, so 64 of them need 64."""

PACKAGES = {
    "redis-benchmark": "redis-tools",
    "ab": "apache2-utils",
    "curl": "curl",
    "dnsperf": "dnsperf",
    "swaks": "swaks",
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
        # At most 40 under way, which any receive buffer has room for; 5 s until one counts as lost.
        report = run("dnsperf", "-s", "127.0.0.1", "-p", port, "-d", queries, "-n", 500, "-c", 8, "-q", 40, "-t", 5)
        assert number(r"Queries sent: +(\d+)", report) == 2000
        assert number(r"Queries completed: +(\d+)", report) == 2000
        assert number(r"Queries lost: +(\d+)", report) == 0
        assert "NOERROR 1500 (75.00%), NXDOMAIN 500 (25.00%)" in report
        assert "[Warning]" not in report


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
