"""Which versions of everything take part."""

import importlib.metadata
import platform
import re
import subprocess

LIBRARIES = ("poolserver", "uvloop", "gevent", "gunicorn", "waitress", "cheroot")
COMMANDS = {
    "redis-benchmark": ("redis-benchmark", "--version"),
    "wrk": ("wrk", "-v"),
    "cc": ("cc", "--version"),
    "perl": ("perl", "-e", "print $^V"),
    "Net::Server": ("perl", "-MNet::Server", "-e", "print $Net::Server::VERSION"),
}
VERSION = re.compile(r"\d+\.\d[\w.]*")


def versions() -> dict[str, dict[str, str]]:
    """By name; what is not here has none."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass  # it is in the tables as one that cannot run
    for name, command in COMMANDS.items():
        if version := said(command):
            found[name] = version
    return {"versions": found}


def said(command: tuple[str, ...]) -> str:
    """The number in what a command says; empty where there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError:
        return ""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if VERSION.search(line)]
    match = VERSION.findall(lines[0]) if lines else []
    return match[-1] if match else ""
