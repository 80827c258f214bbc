"""Plain asyncio: `python -m bench.contestants.asyncio_server MODULE:COROUTINE PROCESSES [uvloop]`.

`asyncio.start_server` in each of the processes, on one listener, and nothing else; on SIGTERM they are killed.
"""

import asyncio
import importlib
import socket
import sys
from collections.abc import Callable
from typing import Any

from bench.contestants.bare import BACKLOG, run


async def serve(listener: socket.socket, handler: Callable[..., Any]) -> None:
    """Serve for ever; runs in a child."""
    server = await asyncio.start_server(handler, sock=listener, backlog=BACKLOG)
    await server.serve_forever()


def main() -> None:
    """As the bare loop does, with a loop of the library that is named."""
    library = importlib.import_module(sys.argv[3] if sys.argv[3:] else "asyncio")
    run("asyncio", lambda listener, handler: library.run(serve(listener, handler)))


if __name__ == "__main__":
    main()
