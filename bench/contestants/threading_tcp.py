"""The stdlib's `ThreadingTCPServer`, as its documentation shows it: `python -m … MODULE:HANDLER`."""

import pkgutil
import socketserver
import sys

from bench.contestants import say_ready

BACKLOG = 1024


def run(base: type[socketserver.TCPServer]) -> None:
    """Serve until killed. Stock but for the backlog: five is too few for any load, and a dropped SYN waits a second."""
    handler = pkgutil.resolve_name(sys.argv[1])
    with type("Server", (base,), {"request_queue_size": BACKLOG})(("127.0.0.1", 0), handler) as server:
        say_ready(base.__name__, server.server_address[1])
        server.serve_forever()


if __name__ == "__main__":
    run(socketserver.ThreadingTCPServer)
