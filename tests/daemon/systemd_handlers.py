"""Handlers that tell what they were left of their master's surroundings; found through PYTHONPATH."""

import socketserver
import subprocess
import sys

LOOK = """
import os
names = ("NOTIFY_SOCKET", "FDSTORE")
print(sorted(name for name in os.environ if name in names or name.startswith(("LISTEN_", "WATCHDOG_"))), end=" ")
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")))
"""


class SurroundingsHandler(socketserver.StreamRequestHandler):
    """Tells what a program that it starts finds: systemd's variables, and descriptors beyond the standard ones."""

    def handle(self):
        self.rfile.readline(100)
        done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, check=True, close_fds=False)
        self.wfile.write(done.stdout)
