"""The well-known recipe for a bounded server: sixteen threads on one `serve_forever`.

`python -m bench.contestants.sixteen_threads MODULE:HANDLER [THREADS]`
"""

import pkgutil
import socketserver
import sys
import threading

from bench.contestants import say_ready


class Server(socketserver.TCPServer):
    """Stock but for the backlog: five is too few for any load, and a dropped SYN waits a second."""

    request_queue_size = 1024


def main() -> None:
    """Serve until killed: `shutdown` ends one of the threads only."""
    handler, threads = pkgutil.resolve_name(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 16
    with Server(("127.0.0.1", 0), handler) as server:
        for _ in range(threads - 1):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        say_ready("threads", server.server_address[1], f"{threads} threads")
        server.serve_forever()


if __name__ == "__main__":
    main()
