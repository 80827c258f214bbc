"""The stdlib's `ThreadingTCPServer`, as its documentation shows it: `python -m … MODULE:HANDLER`."""

import os
import pkgutil
import socketserver
import sys


class Server(socketserver.ThreadingTCPServer):
    """Stock but for the backlog: five is too few for any load, and a dropped SYN waits a second."""

    request_queue_size = 1024


def main() -> None:
    """Serve until killed."""
    handler = pkgutil.resolve_name(sys.argv[1])
    with Server(("127.0.0.1", 0), handler) as server:
        url = f"tcp://127.0.0.1:{server.server_address[1]}"
        print(f"threading: ready on {url} (pid {os.getpid()})", file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
