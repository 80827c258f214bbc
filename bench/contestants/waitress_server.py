"""waitress, one process: `python -m bench.contestants.waitress_server MODULE:APPLICATION THREADS`."""

import pkgutil
import sys

import waitress

from bench.contestants import say_ready

CONNECTIONS = 5000  # its default of 100 would be the limit that is measured


def main() -> None:
    """Serve until killed."""
    application, threads = pkgutil.resolve_name(sys.argv[1]), int(sys.argv[2])
    wide = {"connection_limit": CONNECTIONS, "asyncore_use_poll": True}  # select ends the service at 1,024
    server = waitress.create_server(application, host="127.0.0.1", port=0, threads=threads, **wide)
    say_ready("waitress", server.effective_port)
    server.run()


if __name__ == "__main__":
    main()
