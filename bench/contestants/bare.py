"""The bare pre-fork loop: `python -m bench.contestants.bare MODULE:HANDLER PROCESSES`.

Blocking `accept` on the shared listener, handler, `shutdown`, `close`, nothing else. It has no admission, no
deadlines, no drain and no status; on SIGTERM the children are killed.
"""

import os
import pkgutil
import signal
import socket
import socketserver
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bench.contestants import say_ready

BACKLOG = 1024  # poolserver's default


def serve(listener: socket.socket, handler: type[socketserver.BaseRequestHandler]) -> NoReturn:
    """Serve for ever; runs in a child."""
    server: socketserver.BaseServer = None  # type: ignore[assignment] # no server object: no handler here asks
    while True:
        connection, address = listener.accept()
        try:
            handler(connection, address, server)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the client was gone first
            pass
        connection.close()


def forked(serve: Callable[[socket.socket, Any], object], listener: socket.socket, handler: Any) -> int:
    """A child that serves; its pid."""
    pid = os.fork()
    if pid == 0:
        serve(listener, handler)
    return pid


def run(name: str, serve: Callable[[socket.socket, Any], object]) -> None:
    """Bind, fork, say that it is ready, and wait for SIGTERM."""
    handler, processes = pkgutil.resolve_name(sys.argv[1]), int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    children = [forked(serve, listener, handler) for _ in range(processes)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    say_ready(name, listener.getsockname()[1], f"{processes} processes")
    try:
        signal.pause()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    run("bare", serve)
