"""Plain asyncio: `python -m bench.contestants.asyncio_server MODULE:COROUTINE PROCESSES [uvloop]`.

`asyncio.start_server` in each of the processes, on one listener, and nothing else; on SIGTERM they are killed.
"""

import asyncio
import importlib
import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

BACKLOG = 1024  # poolserver's default


async def serve(listener: socket.socket, handler: Callable[..., Any]) -> None:
    """Serve for ever; runs in a child."""
    server = await asyncio.start_server(handler, sock=listener, backlog=BACKLOG)
    await server.serve_forever()


def forked(listener: socket.socket, handler: Callable[..., Any], library: Any) -> int:
    """A child that serves; its pid."""
    pid = os.fork()
    if pid == 0:
        library.run(serve(listener, handler))
    return pid


def main() -> None:
    """Bind, fork, say that it is ready, and wait for SIGTERM."""
    handler, processes = pkgutil.resolve_name(sys.argv[1]), int(sys.argv[2])
    library = importlib.import_module(sys.argv[3] if sys.argv[3:] else "asyncio")
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    children = [forked(listener, handler, library) for _ in range(processes)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    print(f"asyncio: ready on {url} (pid {os.getpid()}, {processes} processes)", file=sys.stderr, flush=True)
    try:
        signal.pause()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
