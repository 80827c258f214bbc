"""The stdlib's `ThreadingTCPServer`, as its documentation shows it: `python -m … MODULE:HANDLER`."""

import os
import pkgutil
import socketserver
import sys

BACKLOG = 1024


def run(base: type[socketserver.TCPServer]) -> None:
    """Serve until killed. Stock but for the backlog: five is too few for any load, and a dropped SYN waits a second."""
    handler = pkgutil.resolve_name(sys.argv[1])
    with type("Server", (base,), {"request_queue_size": BACKLOG})(("127.0.0.1", 0), handler) as server:
        url = f"tcp://127.0.0.1:{server.server_address[1]}"
        print(f"{base.__name__}: ready on {url} (pid {os.getpid()})", file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run(socketserver.ThreadingTCPServer)
