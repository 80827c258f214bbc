"""``poolserver unit``: the systemd units of a configuration, as hardened as it allows.

Pure text: nothing is looked up but what the configuration and the caller say. Source: systemd.service(5),
systemd.exec(5), systemd.socket(5), and ``systemd-analyze security``, which rates what is written here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from poolserver.address import Address, parse
from poolserver.config import Loaded
from poolserver.listener import KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES
from poolserver.sections import Config

LEAST_DESCRIPTORS = 65536

LEAST_STORE = 16
"""Descriptors that systemd keeps for us: every listener, and those of a reload."""

LEAST_WATCHDOG = 30.0
"""Seconds; and three times as long as a worker may give no sign of life, so that its master has time to replace it."""

STOP_GRACE = 5.0
"""Seconds that a stop takes beyond its drain."""

SPARE_DESCRIPTORS = 256

_FIRST_UNPRIVILEGED_PORT = 1024

_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - what the sandbox hides of them
"""What ProtectHome= and PrivateTmp= put out of sight."""

_MADE = {"RuntimeDirectory": "/run", "LogsDirectory": "/var/log", "StateDirectory": "/var/lib"}
"""Folders that systemd makes for the service, and where."""

_SANDBOX = """\
NoNewPrivileges=yes
RemoveIPC=yes
KeyringMode=private
ProtectSystem=strict
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
DevicePolicy=closed
ProtectProc=invisible
ProcSubset=pid
ProtectHostname=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM"""


@dataclass(frozen=True)
class Installation:
    """How poolserver is started on this machine."""

    command: Sequence[str]
    """The program and its first words: what ``run`` and ``check`` are added to."""
    folders: Sequence[Path]
    """What Python needs to read."""
    environ: Mapping[str, str]


class Units:
    """The service and the socket unit of one configuration."""

    def __init__(self, loaded: Loaded, installation: Installation) -> None:
        self.name = loaded.config.server.service_name
        self._loaded = loaded
        self._settings: Config = loaded.config
        self._installation = installation
        self._addresses = [address for url in self._settings.server.bind for address in parse(url)]

    def service(self) -> str:
        """NAME.service."""
        is_passed = all(address.is_passed for address in self._addresses)
        sections = (self._unit(is_passed=is_passed), self._service(), ["[Install]", "WantedBy=multi-user.target"])
        return "\n\n".join("\n".join(lines) for lines in sections) + "\n"

    def socket(self) -> str:
        """NAME.socket: the listeners, which systemd then binds, and keeps through every restart."""
        unit = ["[Unit]", f"Description=Sockets of {self.name} (poolserver)"]
        sections = (unit, list(self._socket()), ["[Install]", "WantedBy=sockets.target"])
        return "\n\n".join("\n".join(lines) for lines in sections) + "\n"

    def _unit(self, *, is_passed: bool) -> list[str]:
        socket = f"{self.name}.socket"
        return [
            "[Unit]",
            f"Description={self.name} (poolserver)",
            *([f"Requires={socket}", f"After={socket}"] if is_passed else ["After=network.target"]),
            "# Beside RestartSec: five failed starts in ten seconds would end the unit, and its socket unit too.",
            "StartLimitIntervalSec=0",
        ]

    def _service(self) -> list[str]:
        timeouts = self._settings.timeouts
        stop = timeouts.graceful + timeouts.lame_duck + STOP_GRACE
        store = max(LEAST_STORE, 2 * len(self._addresses))
        return [
            "[Service]",
            "Type=notify",
            "NotifyAccess=main",
            *self._environment(),
            f"ExecStartPre={self._check()}",
            f"ExecStart={self._command('run')}",
            f"ExecReload={self._check()}",
            f"ExecReload={self._command('reload')}",
            "# TERM for the master, which drains its workers; KILL for what is left after that.",
            "KillMode=mixed",
            f"TimeoutStopSec={stop:g}",
            "Restart=on-failure",
            "RestartSec=3s",
            "# What check finds to be wrong is tried again, in case somebody mends it; what run cannot use is not.",
            "RestartPreventExitStatus=78",
            f"WatchdogSec={max(LEAST_WATCHDOG, 3 * timeouts.worker):g}",
            "# A start must not make the listeners blocking under workers that still drain.",
            "NonBlocking=yes",
            "# A worker that is killed for memory is replaced; the service goes on.",
            "OOMPolicy=continue",
            f"LimitNOFILE={self._descriptors()}",
            "# Listeners are kept through restarts and crashes. systemd 254 sets $FDSTORE itself.",
            f"FileDescriptorStoreMax={store}",
            f"Environment=FDSTORE={store}",
            *self._user(),
            *self._places(),
            *self._network(),
            _SANDBOX,
        ]

    def _environment(self) -> Iterator[str]:
        """What the configuration was read with, where it was not the file."""
        environ = self._installation.environ
        wanted = {origin[1:] for origin in self._loaded.origins.values() if origin.startswith("$")}
        for name in sorted(wanted | ({"PYTHONPATH"} & set(environ))):
            yield f"Environment={_quoted(f'{name}={environ[name]}')}"

    def _command(self, word: str) -> str:
        options = ["-c", str(self._loaded.path.absolute())] if self._loaded.path is not None else []
        is_serving = word in ("run", "check") and self._settings.server.daemonize
        detached = ["--set", "server.daemonize=false"] if is_serving else []
        words = [*self._installation.command, word, *options, *detached]
        return " ".join(_quoted(each).replace("$", "$$") for each in words)

    def _check(self) -> str:
        """Its problems go into the journal, the values that it prints do not."""
        return f"""/bin/sh -c 'exec "$$0" "$$@" >/dev/null' {self._command("check")}"""

    def _descriptors(self) -> int:
        needed = self._settings.pool.threads + self._settings.parking.max_parked + SPARE_DESCRIPTORS
        return max(LEAST_DESCRIPTORS, needed)

    def _user(self) -> list[str]:
        section = self._settings.server
        lines = [f"User={section.user}" if section.user else "DynamicUser=yes"]
        lines += [f"Group={section.group}"] if section.group else []
        if any(_is_low(address) for address in self._addresses):
            capability = "CAP_NET_BIND_SERVICE"
            low = "# For a port below 1024. Not needed where the socket unit binds it: then leave these out."
            lines += [low, f"AmbientCapabilities={capability}", f"CapabilityBoundingSet={capability}"]
        else:
            lines += ["CapabilityBoundingSet=", "AmbientCapabilities=", "PrivateUsers=yes"]
        return [*lines, f"UMask={section.umask:04o}"]

    def _places(self) -> list[str]:
        """Folders to write in, and those to read in spite of the sandbox."""
        # The first runtime directory is where the control socket is.
        written = list(dict.fromkeys([Path("/run/poolserver", self.name), *sorted(self._written())]))
        made = {name: _below(root, written) for name, root in _MADE.items()}
        others = sorted(folder for folder in written if not any(_below(root, [folder]) for root in _MADE.values()))
        hidden = sorted({folder for folder in self._read() if _is_hidden(folder)} - {*others})
        return [
            "# The control socket is /run/poolserver/NAME/control.sock.",
            *[f"{name}={' '.join(map(_quoted, folders))}" for name, folders in made.items() if folders],
            *[f"{'BindPaths' if _is_hidden(each) else 'ReadWritePaths'}={_quoted(str(each))}" for each in others],
            "ProtectHome=tmpfs" if any(map(_is_hidden, [*hidden, *others])) else "ProtectHome=yes",
            *[f"BindReadOnlyPaths={_quoted(str(each))}" for each in hidden],
        ]

    def _written(self) -> Iterator[Path]:
        """Folders in which the service makes files, which systemd is to make or let it write to."""
        settings = self._settings
        access = settings.log.access if isinstance(settings.log.access, str) else ""
        files = [settings.log.file, access, settings.server.pidfile, settings.control.socket]
        files += [str(address.sockaddr) for address in self._addresses if address.has_file]
        return (Path(file).parent for file in files if file)

    def _read(self) -> Iterator[Path]:
        section, tls = self._settings.server, self._settings.tls
        yield from self._installation.folders
        yield from (Path(file).parent for file in (tls.certificate, tls.key, tls.client_ca) if file)
        yield from (Path(folder) for folder in (*section.pythonpath, section.chdir) if folder)
        if self._loaded.path is not None:
            yield self._loaded.path.absolute().parent

    def _network(self) -> list[str]:
        metrics = self._settings.metrics.bind
        needs_inet = metrics.startswith("tcp") or any(isinstance(each.sockaddr, tuple) for each in self._addresses)
        is_abstract = any(str(address.sockaddr).startswith("\0") for address in self._addresses)
        if needs_inet:
            return ["RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"]
        return [
            "# No network of its own: clients come by the sockets that systemd binds. For handlers that connect to",
            "# others, leave out PrivateNetwork= and IPAddressDeny=, and allow AF_INET and AF_INET6.",
            *([] if is_abstract else ["PrivateNetwork=yes"]),
            "IPAddressDeny=any",
            "RestrictAddressFamilies=AF_UNIX",
        ]

    def _socket(self) -> Iterator[str]:
        section = self._settings.socket
        yield "[Socket]"
        listens = [line for address in self._addresses if (line := _listen(address))]
        names = [
            str(address.sockaddr) for address in self._addresses if address.scheme == "systemd" and address.sockaddr
        ]
        if not listens:
            yield "# server.bind leaves it to this unit where to listen: say it here."
        yield from listens or ["ListenStream=127.0.0.1:20000"]
        if names:
            yield f"FileDescriptorName={names[0]}"
        yield from (f"# {name}: another socket unit, with Service={self.name}.service" for name in names[1:])
        yield f"BindIPv6Only={'ipv6-only' if section.ipv6_only else 'both'}"
        yield f"Backlog={section.backlog}"
        yield f"NoDelay={_yes(section.nodelay)}"
        yield f"KeepAlive={_yes(section.keepalive)}"
        yield f"KeepAliveTimeSec={KEEPALIVE_IDLE}"
        yield f"KeepAliveIntervalSec={KEEPALIVE_INTERVAL}"
        yield f"KeepAliveProbes={KEEPALIVE_PROBES}"
        if section.receive_buffer:
            yield f"ReceiveBuffer={section.receive_buffer}"
        yield "# Of the files of Unix sockets, which by default everybody may connect to:"
        yield f"SocketMode={section.unix_mode:04o}"
        yield from (f"Socket{word}={name}" for word, name in self._owner())
        yield "RemoveOnStop=yes"

    def _owner(self) -> Iterator[tuple[str, str]]:
        server = self._settings.server
        return ((word, name) for word, name in (("User", server.user), ("Group", server.group)) if name)


def _listen(address: Address) -> str:
    """Empty where only the service itself can bind it: a port that the kernel chooses, a passed descriptor."""
    if address.is_passed:
        return ""
    kind = "ListenStream" if address.is_stream else "ListenDatagram"
    if isinstance(address.sockaddr, str):
        return f"{kind}={_escaped(address.sockaddr.replace(chr(0), '@', 1))}"
    host, port = address.sockaddr[:2]
    if port == 0:
        return f"# {address.url}: choose a port, so that it is the same after each start"
    return f"{kind}=[{host}]:{port}" if ":" in host else f"{kind}={host}:{port}"


def _below(root: str, folders: Iterable[Path]) -> list[str]:
    """Those that systemd can make below ``root``, by their names there."""
    below = [folder for folder in folders if folder.is_relative_to(root) and not _is_hidden(folder)]
    return [str(folder.relative_to(root)) for folder in below if folder != Path(root)]


def _is_low(address: Address) -> bool:
    return isinstance(address.sockaddr, tuple) and 0 < address.sockaddr[1] < _FIRST_UNPRIVILEGED_PORT


def _is_hidden(folder: Path) -> bool:
    return any(folder.is_relative_to(hidden) for hidden in _HIDDEN)


def _quoted(text: str) -> str:
    """As systemd reads it: quoted where it must be, with specifiers taken literally."""
    text = _escaped(text)
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
