"""docs/proxies.md: what it tells HAProxy and nginx is what they take, and what comes of it is what it says.

They come with Debian's haproxy, nginx-light and libnginx-mod-stream; a missing one fails its test.
"""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from clients import own_port, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "proxies.md"

GLOBAL = """\
user root;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
"""
"""What stands around the page's blocks in a configuration of nginx. Its workers may write to the service's socket."""


def blocks(kind: str) -> list[str]:
    """The page's blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def needed(program: str) -> str:
    """Its path."""
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.fail(f"{program} is missing: apt-get install haproxy nginx-light libnginx-mod-stream")
    return found


def test_haproxy_takes_both_backends(tmp_path):
    """The whole configuration, and the one with the other backend in the place of the first."""
    whole, backend = blocks("haproxy")
    head, _, _ = whole.partition("\nbackend hello")
    for number, text in enumerate((whole, f"{head}\n{backend}")):
        path = tmp_path / f"{number}.cfg"
        path.write_text(text)
        done = subprocess.run(
            [needed("haproxy"), "-c", "-f", str(path)], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "WARNING" not in done.stderr, done.stderr


def test_nginx_passes_clients_on_as_themselves(daemon, tmp_path):
    """Both blocks are run; through the first, by TCP and by the Unix socket, the handler knows the client."""
    path = tmp_path / "hello.sock"
    options = ("--set", "proxy_protocol.mode=v1", "--set", "proxy_protocol.trusted=127.0.0.1")
    served = daemon("proxy_handlers:Whoami", *options, bind=["tcp://127.0.0.1:0", f"unix:{path}"], workers=1)
    front = own_port()
    text = "".join(blocks("nginx")).replace("/run/hello.sock", str(path)).replace("20000", str(served.port))
    text = text.replace("listen 20080", f"listen 127.0.0.1:{front}").replace(
        "listen 20081", f"listen unix:{tmp_path}/web"
    )
    (tmp_path / "nginx.conf").write_text(GLOBAL.format(folder=tmp_path) + text)
    command = [needed("nginx"), "-p", str(tmp_path), "-c", "nginx.conf", "-e", str(tmp_path / "error.log")]
    proxy = subprocess.Popen(command)
    try:
        for host in ("127.0.0.31", "127.0.0.32", "127.0.0.31", "127.0.0.32"):
            wait_for(lambda: proxy.poll() is not None or answers(front), 20, "nginx")
            with socket.create_connection(("127.0.0.1", front), timeout=20, source_address=(host, 0)) as client:
                assert client.makefile("rb").readline() == f"{client.getsockname()!r}\n".encode()
    finally:
        proxy.terminate()
        proxy.wait(20)
    assert not re.search(r"\[(crit|alert|emerg)\]", (tmp_path / "error.log").read_text())


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
