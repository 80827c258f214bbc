"""Where a server and its operator meet: the path of a control socket that nobody configured.

Read by both sides, so that neither needs to be told. Owns the rules and the folder; opens no socket.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from poolserver.errors import SystemRefusedError


def folders(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Where sockets without a configured path may be: the first is where a server of ours would put its own."""
    found = []
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime, "poolserver"))
    if uid == 0:
        found.append(Path("/run/poolserver"))
    return [*found, Path(f"/tmp/poolserver-{uid}")]  # noqa: S108 - made 0700, and refused if it is another's


def default_path(name: str, environ: Mapping[str, str], uid: int) -> Path:
    """The path of the server with this name, where none is configured."""
    if directories := environ.get("RUNTIME_DIRECTORY"):  # several are separated by colons: systemd.exec(5)
        return Path(directories.partition(":")[0]).resolve() / "control.sock"  # with DynamicUser= it may be a link
    return folders(environ, uid)[0] / f"{name}.sock"


def make_folder(folder: Path, *, for_another: bool = False) -> None:
    """Make the folder of a default path, for us alone to write in, and to look into unless a server ``for_another``
    user has its socket there; one that is another's is never used.

    Raises:
        OSError: it cannot be made.
        SystemRefusedError: it is not ours, or others may write to it.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o40022 != 0o40000:
        raise SystemRefusedError(f"{folder} is not a folder of ours alone to write to")
    if for_another:
        folder.chmod(0o755)  # each server's socket there is its own user's, who must reach it


def candidates(name: str, environ: Mapping[str, str], uid: int) -> list[Path]:
    """Where a server may be that was started from another environment, by systemd for one; the likeliest first."""
    places = dict.fromkeys([*folders(environ, uid), Path("/run/poolserver")])
    files = [path for folder in places for pattern in ("*.sock", "*/*.sock") for path in sorted(folder.glob(pattern))]
    return [default_path(name or "*", environ, uid), *files]
