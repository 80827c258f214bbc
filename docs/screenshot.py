"""Makes docs/top.svg: a service under a little load, through the same ``screen`` that ``poolserver top`` shows.

python docs/screenshot.py
"""

import io
import math
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from poolserver.remote import Server
from poolserver.top import screen
from poolserver.trends import Trends

HERE = Path(__file__).parent
SECONDS = 60
SIZE = (80, 24)
ENDED = threading.Event()
RANDOM = random.Random(20000)


def main() -> None:
    """Start it, load it, look at it once a second, draw the last moment."""
    with tempfile.TemporaryDirectory(prefix="shot-") as scratch:
        control = Path(scratch, "c")
        options = ["-b", "tcp://127.0.0.1:0", "-b", "unix:@hello", "-w", "4", "-t", "8"]
        options += ["--set", "limits.per_source=3", "--set", "server.name=hello", "--set", f"control.socket={control}"]
        command = [sys.executable, "-m", "poolserver", "run", "poolserver.examples.keyvalue:KeyValueHandler", *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
            assert service.stderr is not None
            line = service.stderr.readline()
            port = int(line.partition("tcp://127.0.0.1:")[2].partition(",")[0])
            clients = [threading.Thread(target=client, args=(port, number)) for number in range(24)]
            for each in clients:
                each.start()
            trends = watched(control)
            ENDED.set()
            for each in clients:
                each.join()
            service.terminate()
    console = Console(record=True, width=SIZE[0], height=SIZE[1], file=io.StringIO(), force_terminal=True)
    console.print(screen(trends, *SIZE))
    console.save_svg(str(HERE / "top.svg"), title="poolserver top")


def watched(control: Path) -> Trends:
    with Server.at(control) as server:
        trends = Trends.beginning(server.ask("status")["status"], time.monotonic())
        for _ in range(SECONDS):
            time.sleep(1)
            trends.add(server.ask("status")["status"], time.monotonic())
    return trends


def client(port: int, number: int) -> None:
    """Some stay for long, most come and go, in waves; three share one address, and meet its limit."""
    source = f"127.0.0.{2 if number < 5 else number}"
    while not ENDED.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as sock:
                sock.sendall(b"PING\r\n")
                sock.recv(64)
                ENDED.wait(RANDOM.expovariate(1 / 20) if number % 4 == 0 else 0.02)
        except OSError:
            ENDED.wait(0.2)
        ENDED.wait(RANDOM.random() * 0.3 * (1.1 + math.sin(time.monotonic() / 5)))


if __name__ == "__main__":
    main()
