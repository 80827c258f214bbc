"""A handler that tries to be root again; found through PYTHONPATH. It imports only what is loaded already: the Python
under test may be in a folder of root's."""

import ctypes
import os
import socketserver


def attempt(call, *args):
    """What came of it."""
    try:
        return f"got {call(*args)}"
    except OSError as error:
        return type(error).__name__


class EscapeHandler(socketserver.StreamRequestHandler):
    """One line for each way back to root that was tried, and what came of it."""

    def handle(self):
        self.rfile.readline(100)
        attempts = {
            "setuid": attempt(os.setuid, 0),
            "setresuid": attempt(os.setresuid, 0, 0, 0),
            "setgid": attempt(os.setgid, 0),
            "setgroups": attempt(os.setgroups, [0]),
            "shadow": attempt(open, "/etc/shadow"),
            "setuid program": os.system("su -c id </dev/null >/dev/null 2>&1") != 0,
            "ptrace of PID 1": ctypes.CDLL(None).ptrace(16, 1, 0, 0) == -1,
        }
        self.wfile.write("".join(f"{name}: {outcome}\n" for name, outcome in attempts.items()).encode())
