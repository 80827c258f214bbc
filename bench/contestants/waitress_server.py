"""waitress, one process: `python -m bench.contestants.waitress_server MODULE:APPLICATION THREADS`."""

import os
import pkgutil
import sys

import waitress

CONNECTIONS = 5000  # its default of 100 would be the limit that is measured


def main() -> None:
    """Serve until killed."""
    application, threads = pkgutil.resolve_name(sys.argv[1]), int(sys.argv[2])
    wide = {"connection_limit": CONNECTIONS, "asyncore_use_poll": True}  # select ends the service at 1,024
    server = waitress.create_server(application, host="127.0.0.1", port=0, threads=threads, **wide)
    url = f"tcp://127.0.0.1:{server.effective_port}"
    print(f"waitress: ready on {url} (pid {os.getpid()})", file=sys.stderr, flush=True)
    server.run()


if __name__ == "__main__":
    main()
