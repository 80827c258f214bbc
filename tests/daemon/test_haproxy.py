"""Real proxies before poolserver: HAProxy with both versions of the PROXY protocol, curl with the first (R38).

They come with Debian's haproxy and curl; a missing one fails its test.
"""

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Counts, connect, read_line, verdict, wait_for

ON = ("--set", "proxy_protocol.mode=any", "--set", "proxy_protocol.trusted=127.0.0.1")

CONFIGURATION = """
global
    maxconn 500
    stats socket {socket} mode 600 level admin

defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option redispatch

frontend front
    bind fd@{fd}
    default_backend back

backend back
    balance roundrobin
    default-server check inter 500ms fastinter 500ms
{servers}
"""


class Balancer:
    """A running HAProxy. ``port`` is where its clients connect."""

    def __init__(self, port: int, admin: Path) -> None:
        self.port = port
        self.admin = admin

    def states(self) -> list[tuple[str, str]]:
        """What it thinks of its servers, and how its latest health checks went."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10)
            asking.connect(str(self.admin))
            asking.sendall(b"show stat\n")
            with asking.makefile() as reply:
                rows = [line.split(",") for line in reply if line.strip()]
        status, check = map(rows[0].index, ("status", "check_status"))
        return [(row[status], row[check]) for row in rows[1:] if row[1] not in ("FRONTEND", "BACKEND")]

    def is_up(self) -> bool:
        """Whether it answers, and has found all of its servers well."""
        try:
            return set(self.states()) == {("UP", "L4OK")}
        except (FileNotFoundError, ConnectionRefusedError):
            return False


@contextlib.contextmanager
def haproxy(tmp_path: Path, *ports: int, send: str) -> Iterator[Balancer]:
    """HAProxy before these ports, once its health checks like all of them."""
    if shutil.which("haproxy") is None:
        pytest.fail("haproxy is missing: apt-get install haproxy")
    admin, path = tmp_path / "admin.sock", tmp_path / "haproxy.cfg"
    with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
        servers = "\n".join(f"    server s{port} 127.0.0.1:{port} {send}" for port in ports)
        path.write_text(CONFIGURATION.format(socket=admin, fd=listener.fileno(), servers=servers))
        process = subprocess.Popen(["haproxy", "-f", str(path), "-db", "-q"], pass_fds=[listener.fileno()])
        balancer = Balancer(listener.getsockname()[1], admin)
    try:
        wait_for(balancer.is_up, 20, "HAProxy, and its servers to be up")
        yield balancer
    finally:
        process.kill()
        process.wait()


def client_of(balancer: Balancer, host: str) -> socket.socket:
    """A client with an address of its own."""
    client = socket.create_connection(("127.0.0.1", balancer.port), timeout=10, source_address=(host, 0))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
def test_clients_of_haproxy_are_known_and_limited_as_themselves(daemon, tmp_path, send):
    """Its health checks are answered; of three connections of one client the third is refused."""
    limits = ("--set", "limits.per_source=2", "--set", "limits.exempt=127.0.0.1")  # whence health checks come
    served = daemon("proxy_handlers:Whoami", *ON, *limits, workers=1, threads=8)
    with haproxy(tmp_path, served.port, send=send) as balancer, contextlib.ExitStack() as stack:
        for host in ("127.0.0.21", "127.0.0.21", "127.0.0.22"):
            client = stack.enter_context(client_of(balancer, host))
            assert read_line(client) == f"{client.getsockname()!r}\n".encode()
        third = stack.enter_context(client_of(balancer, "127.0.0.21"))
        with contextlib.suppress(ConnectionResetError):
            assert third.recv(1) == b""
        served.counted(per_source=1)
        wait_for(balancer.is_up, 10, "the health checks to go well")


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_storm_through_haproxy_over_upgrades_is_lossless(daemon, tmp_path, send):
    """Two instances, each upgraded in turn under load; nobody is mistaken for another."""
    instances = [daemon("proxy_handlers:Whoami", *ON, workers=2, threads=4) for _ in range(2)]
    total, lock, is_over = Counts(), threading.Lock(), threading.Event()

    def talk(host: str) -> None:
        counts = Counts()
        while not is_over.is_set():
            outcome = one_exchange(balancer, host)
            counts.note(outcome)
        with lock:
            total.add(counts)

    with haproxy(tmp_path, *(each.port for each in instances), send=send) as balancer:
        clients = [threading.Thread(target=talk, args=(f"127.0.0.{21 + number}",)) for number in range(8)]
        for client in clients:
            client.start()
        for each in instances:
            done = each.cli("upgrade")
            assert done.returncode == 0, done.stderr
        is_over.set()
        for client in clients:
            client.join(30)
    assert total.is_lossless, total
    served = [each.status()["totals"]["served"] for each in instances]
    assert min(served) > 0


def one_exchange(balancer: Balancer, host: str) -> str:
    """Connect, be told who one is, send a line and have it back; the name of its count."""
    try:
        with client_of(balancer, host) as client, client.makefile("rb") as reply:
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
            right = f"{client.getsockname()!r}\n".encode() + b"hello\n"
            return "ok" if reply.read() == right else "truncated"
    except OSError as problem:
        return verdict(problem)


def test_curl_speaks_to_it(daemon):
    """Version 1, before an HTTP request."""
    served = daemon("proxy_handlers:WebWhoami", *ON)
    words = ["curl", "--silent", "--show-error", "--fail", "--max-time", "20", "--haproxy-protocol"]
    urls = [f"http://127.0.0.1:{served.port}/"] * 3
    done = subprocess.run([*words, *urls], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("('127.0.0.1', ") == 3
    with connect(served) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(1) == b""
