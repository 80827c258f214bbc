"""gunicorn with threads: `python -m bench.contestants.gunicorn_gthread MODULE:APPLICATION WORKERS THREADS`."""

import pkgutil
import sys
from typing import Any

from gunicorn.app.base import BaseApplication

from bench.contestants import say_ready


class Service(BaseApplication):
    """Defaults but for its shape: no access log, a backlog of 2048."""

    def load_config(self) -> None:
        """What its command line would say."""
        settings: dict[str, Any] = {
            "bind": "127.0.0.1:0",
            "worker_class": "gthread",
            "workers": int(sys.argv[2]),
            "threads": int(sys.argv[3]),
            "loglevel": "error",
            "when_ready": self.say_ready,
        }
        if "control_socket_disable" in self.cfg.settings:  # since 25.1: the file could be another service's
            settings["control_socket_disable"] = True
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Called in each worker."""
        return pkgutil.resolve_name(sys.argv[1])

    def say_ready(self, arbiter: Any) -> None:
        """It listens; its workers come after."""
        say_ready("gunicorn", arbiter.LISTENERS[0].sock.getsockname()[1])


if __name__ == "__main__":
    Service().run()
