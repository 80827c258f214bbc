"""The units in systemd/ are what ``poolserver unit`` prints for a configuration in /etc/poolserver; written by hand
they would drift. Run as a program it writes them.
"""

import sys
from pathlib import Path

from poolserver import config
from poolserver.unit import Installation, Units

FOLDER = Path(__file__).parents[1] / "systemd"

SINGLE_HEAD = """\
# The service of /etc/poolserver/poolserver.toml, which binds its listeners itself. Written by `poolserver unit`, which
# prints this for any configuration; edit that, or add what differs with `systemctl edit poolserver.service`.
"""

MANY_HEAD = """\
# One service for each configuration: `systemctl enable --now poolserver@hello.socket` serves /etc/poolserver/hello.toml
# at the sockets of poolserver@hello.socket; there, server.bind is ["systemd:"]. Written by `poolserver unit`.
"""

SOCKET_HEAD = """\
# The sockets of poolserver@.service. Say where by `systemctl edit poolserver@hello.socket`, for one:
#     [Socket]
#     ListenStream=
#     ListenStream=0.0.0.0:20000
"""


def units(name: str, bind: list[str]) -> Units:
    """Those of a service that is installed for the whole machine."""
    loaded = config.from_sections(
        {"server": {"handler": "a:B", "name": name, "bind": bind, "pythonpath": ["/etc/poolserver"]}}
    )
    loaded = config.Loaded(loaded.config, loaded.origins, Path(f"/etc/poolserver/{name}.toml"))
    return Units(loaded, Installation(["/usr/bin/env", "poolserver"], [Path("/usr")], {}))


def shipped() -> dict[str, str]:
    """The texts by file name."""
    single, many = units("poolserver", ["tcp://127.0.0.1:20000"]), units("INSTANCE", ["systemd:"])
    socket = many.socket().replace(
        "# server.bind leaves it to this unit where to listen: say it here.\nListenStream=127.0.0.1:20000",
        "ListenStream=/run/poolserver-INSTANCE.sock",
    )
    return {
        "poolserver.service": SINGLE_HEAD + single.service(),
        "poolserver@.service": MANY_HEAD + _as_template(many.service()),
        "poolserver@.socket": SOCKET_HEAD + _as_template(socket),
    }


def _as_template(text: str) -> str:
    text = text.replace("INSTANCE.socket", "poolserver@%i.socket")
    return text.replace("INSTANCE (poolserver)", "poolserver %i").replace("INSTANCE", "%i")


if __name__ == "__main__":
    for name, text in shipped().items():
        (FOLDER / name).write_text(text)
    sys.exit(0)
