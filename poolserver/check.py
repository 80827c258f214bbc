"""``poolserver check``: everything that ``run`` would need, tried without serving, and hazards worth knowing."""

import ipaddress
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from poolserver import aio, handlers, signals, tls
from poolserver.address import Address, parse
from poolserver.config import Loaded, effective
from poolserver.console import check_metrics
from poolserver.errors import ConfigError, PoolserverError
from poolserver.lines import formatter
from poolserver.networks import Networks, source_of
from poolserver.privileges import Account
from poolserver.sections import Config, Tls
from poolserver.shortage import most_descriptors
from poolserver.surroundings import refuse_daemon

OTHER_DESCRIPTORS = 64
"""What a worker has open beside its connections, and its handlers' own files, at a guess."""

SYSTEMD_STOP_TIMEOUT = 90
"""Seconds. Source: systemd-system.conf(5), DefaultTimeoutStopSec."""


@dataclass
class Report:
    """What ``check`` found. ``problems`` make it fail; ``details`` is a traceback to print below them."""

    values: list[tuple[str, str, str]]
    problems: list[str] = field(default_factory=list)
    hazards: list[str] = field(default_factory=list)
    details: str = ""


def examine(loaded: Loaded) -> Report:
    """Try what can be tried: addresses parse, folders are there, the handler imports and fits the addresses.

    The handler is tried as the user that it is to run as, who this process then is."""
    settings = loaded.config
    report = Report(effective(loaded))
    account = _account(settings, report)
    addresses = [address for url in settings.server.bind for address in _parsed(url, report)]
    checks: list[Callable[[], object]] = [lambda: check_metrics(settings), lambda: formatter(settings.log.format)]
    checks += [lambda: aio.refuse_missing(settings.pool.event_loop)]
    checks += [refuse_daemon] if settings.server.daemonize else []
    for is_usable in checks:
        try:
            is_usable()
        except ConfigError as error:
            report.problems.append(str(error))
    _try_certificate(settings, report)
    report.problems += _misplaced(settings, addresses)
    report.hazards = list(_hazards(settings, addresses))
    if account is not None:
        report.hazards += _account_hazards(settings, addresses, account)
        report.hazards += _renewal_hazards(loaded.path, account) if account.uid != 0 else []
        account.become()  # for good: what root could import says nothing
    _try_handler(settings, addresses, report)
    return report


def _misplaced(settings: Config, addresses: Iterable[Address]) -> Iterator[str]:
    """Files that cannot be where they are to be."""
    access = settings.log.access
    files = {"control.socket": settings.control.socket, "log.file": settings.log.file}
    files |= {"log.access": access if isinstance(access, str) else "", "server.pidfile": settings.server.pidfile}
    files |= {address.url: str(address.sockaddr) for address in addresses if address.has_file}
    for what, path in files.items():
        if path and not _is_folder(Path(path).parent):
            yield f"{what}: the folder of {path} does not exist"
        elif what.startswith("log.") and os.access(path, os.F_OK) and not os.access(path, os.W_OK):
            yield f"{what}: {path} may not be written"
    if settings.server.chdir and not _is_folder(Path(settings.server.chdir)):
        yield f"server.chdir: {settings.server.chdir} is not a directory"


def _account(settings: Config, report: Report) -> Account | None:
    """Whom ``run`` would become, where it could."""
    try:
        account = Account.named(settings.server.user, settings.server.group)
        if account is not None:
            account.refuse_unreachable()
        return account
    except PoolserverError as error:
        report.problems.append(str(error))
        return None


def _account_hazards(settings: Config, addresses: list[Address], account: Account) -> Iterator[str]:
    """What only root can do, and nobody is root any more once it serves."""
    if account.uid == 0:
        yield "server.user: without one, processes that start as root stay root, whatever server.group is"
        return
    library = Path(os.__file__).parent
    if not account.may_read(library):
        yield f"server.user: {account.name} may not read {library}: handlers can import only what is loaded already"
    first = _sysctl("/proc/sys/net/ipv4/ip_unprivileged_port_start") or 0
    low = [address.url for address in addresses if isinstance(address.sockaddr, tuple) and address.sockaddr[1] < first]
    if low:
        yield f"{low[0]}: only root can bind it: after a reload or upgrade that moves it, a restart is needed"
    section = settings.tls
    for key, path in (("certificate", section.certificate), ("key", section.key), ("client_ca", section.client_ca)):
        if path and not account.may_read(Path(path)):
            yield f"tls.{key}: {account.name} may not read {path}: a reload will fail, and only a restart renews it"
    files = {"log.file": settings.log.file, "server.pidfile": settings.server.pidfile}
    files |= {address.url: str(address.sockaddr) for address in addresses if address.has_file}
    for what, path in files.items():
        if path and not account.may_write(Path(path).parent):
            verb = "make it anew after a rotation" if what == "log.file" else "remove it at the end"
            yield f"{what}: {account.name} may not write in {Path(path).parent}, and so cannot {verb}"


def _renewal_hazards(path: Path | None, account: Account) -> Iterator[str]:
    """Files that a reload or an upgrade needs again."""
    if path is not None and not account.may_read(path):
        yield f"{path}: {account.name} may not read it: reloads and upgrades will fail, and only a restart applies it"
    if not account.may_read(Path(sys.executable)):
        yield f"server.user: {account.name} may not run {sys.executable}: upgrades will fail; restart instead"


def _parsed(url: str, report: Report) -> list[Address]:
    try:
        return parse(url)
    except ConfigError as error:
        report.problems.append(str(error))
        return []


def _try_handler(settings: Config, addresses: list[Address], report: Report) -> None:
    section, limit = settings.server, settings.timeouts.boot
    try:
        with signals.limited(limit, f"has not ended within timeouts.boot = {limit:g} s"):
            found = handlers.load(section.handler, section.server_class, [Path(path) for path in section.pythonpath])
        for address in addresses:
            if not address.is_passed:
                handlers.fitting(found, address)
        handlers.refuse_missing(section.worker_start, "server.worker_start")
        handlers.refuse_missing(section.worker_stop, "server.worker_stop")
    except TimeoutError as error:
        report.problems.append(f"server.handler: what loads it {error}")
    except ConfigError as error:
        report.problems.append(str(error))
        report.details = error.details


def _try_certificate(settings: Config, report: Report) -> None:
    section = settings.tls
    try:
        tls.context_for(settings.server.bind, **section.model_dump(exclude={"handshake_timeout"}))
    except ConfigError as error:
        report.problems.append(str(error))


def _hazards(settings: Config, addresses: list[Address]) -> Iterator[str]:
    limit = _sysctl("/proc/sys/net/core/somaxconn")
    if limit is not None and settings.socket.backlog > limit:
        yield f"socket.backlog = {settings.socket.backlog} is cut to {limit} by net.core.somaxconn"
    if not settings.timeouts.idle:
        yield "timeouts.idle is off: a client that falls silent holds its lane for ever"
    drain = settings.timeouts.graceful + settings.timeouts.lame_duck
    if drain > SYSTEMD_STOP_TIMEOUT:
        yield (
            f"timeouts.graceful: a stop may take {drain:g} s, and systemd's stop time-out, TimeoutStopSec=, is"
            f" {SYSTEMD_STOP_TIMEOUT} s by default: use what `poolserver unit` prints (Type=notify extends it)"
        )
    if settings.server.daemonize and not settings.log.file:
        yield "server.daemonize without log.file: a daemon has no standard error, and its log is lost"
    yield from _limit_hazards(settings, addresses)
    yield from _tls_hazards(settings.tls, addresses)
    if settings.proxy_protocol.mode != "off":
        yield from _proxy_hazards(settings.proxy_protocol.trusted, addresses)
    yield from _parking_hazards(settings)
    if settings.socket.receive_buffer:
        most = _sysctl("/proc/sys/net/core/rmem_max")
        if most is not None and settings.socket.receive_buffer > most:
            yield f"socket.receive_buffer is above net.core.rmem_max = {most}: granted to root only"
    if settings.socket.defer_accept and not any(address.is_tcp for address in addresses):
        yield "socket.defer_accept is set, but nothing listens on TCP"
    if any(address.is_tcp for address in addresses) and _sysctl("/proc/sys/net/ipv4/tcp_syncookies") == 0:
        yield "net.ipv4.tcp_syncookies = 0: a flood of SYNs fills the queue of half-open connections"


def _limit_hazards(settings: Config, addresses: list[Address]) -> Iterator[str]:
    limits = settings.limits
    lanes = max(1, settings.pool.worker_count) * settings.pool.threads
    if not (limits.per_source or limits.allow) and any(_is_public(address) for address in addresses):
        yield "limits.per_source is off on a public address: one client can hold every lane"
    if limits.per_source >= lanes:
        yield f"limits.per_source = {limits.per_source} is not below the number of lanes, {lanes}: it shields nobody"
    by_source = [name for name in ("per_source", "rate_per_source") if getattr(limits, name)]
    knows_clients = settings.proxy_protocol.mode != "off"
    if by_source and not knows_clients and _sees_proxies_only(addresses, limits.exempt):
        yield (
            f"limits.{by_source[0]}: every listener is local, and all clients of a local proxy count as one source: "
            "have it say who they are ([proxy_protocol]), or limit them there, and exempt the proxy here "
            "(limits.exempt) where it connects by TCP"
        )


def _parking_hazards(settings: Config) -> Iterator[str]:
    """One worker may have most of the parked: EPOLLEXCLUSIVE wakes the first that is idle."""
    needed = settings.pool.threads + settings.parking.max_parked + OTHER_DESCRIPTORS
    if needed > (most := most_descriptors()):
        yield (
            f"parking.max_parked = {settings.parking.max_parked}: a worker may need {needed} descriptors and has at "
            f"most {most}: raise LimitNOFILE, or accepting will pause"
        )


def _tls_hazards(section: Tls, addresses: list[Address]) -> Iterator[str]:
    if section.certificate and not any(address.scheme == "tls" for address in addresses):
        yield "tls.certificate is given, but nothing listens on tls://"
    if section.client_ca and section.client_auth == "none":
        yield "tls.client_ca is given, but tls.client_auth = none asks nobody for a certificate"
    key = section.key or section.certificate
    if key and _mode(key) & 0o004:
        yield f"tls: everybody on this machine can read the key in {key}"


def _proxy_hazards(trusted: Iterable[str], addresses: list[Address]) -> Iterator[str]:
    for network in trusted:
        if network.endswith("/0"):
            yield f"proxy_protocol.trusted: {network} is everybody: whoever connects can claim any address"
    for address in addresses:
        if not (address.is_stream or address.fd >= 0):
            yield f"proxy_protocol: {address.url} takes datagrams as they are: their senders may be proxies"


def _sees_proxies_only(addresses: list[Address], exempt: Iterable[str]) -> bool:
    """Whether all who connect are of this machine, and some of them are counted. Of a passed descriptor nobody can
    tell."""
    networks = Networks.parse(exempt)
    streams = [address for address in addresses if address.is_stream or address.is_passed]
    sources = [source_of(address.sockaddr, 32, 128) for address in streams]
    are_local = not any(_is_public(address) or address.is_passed for address in streams)
    return are_local and any(not networks.contains(source.address, source.version) for source in sources)


def _is_public(address: Address) -> bool:
    """Whether strangers can reach it: neither a Unix socket nor a loopback address."""
    return isinstance(address.sockaddr, tuple) and not ipaddress.ip_address(address.sockaddr[0]).is_loopback


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except OSError:
        return 0  # a problem that is reported as one


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # ENAMETOOLONG, for one


def _sysctl(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None  # another kernel, or no /proc: nothing to warn of
