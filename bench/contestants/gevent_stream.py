"""gevent's `StreamServer`, one process, with the same handler class on its sockets: `python -m … MODULE:HANDLER`."""

import pkgutil
import socketserver
import sys

from gevent.server import StreamServer

from bench.contestants import say_ready

BACKLOG = 1024  # as everyone's: its default is 256


def main() -> None:
    """Serve until killed. A greenlet for each connection; the server closes it when the handler returns."""
    handler = pkgutil.resolve_name(sys.argv[1])
    nobody: socketserver.BaseServer = None  # type: ignore[assignment] # no server object: no handler here asks
    server = StreamServer(
        ("127.0.0.1", 0), lambda connection, address: handler(connection, address, nobody), backlog=BACKLOG
    )
    server.start()
    say_ready("gevent", server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    main()
