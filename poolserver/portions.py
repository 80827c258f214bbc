"""The narrow values that each part needs of the configuration: nobody is handed the whole."""

from poolserver import aio, tls
from poolserver.admission import Limits
from poolserver.listener import Options
from poolserver.networks import Networks
from poolserver.privileges import Account
from poolserver.recycling import Allowance
from poolserver.scoreboard import MAX_LANES, MAX_WORKERS
from poolserver.sections import Config
from poolserver.states import Policy
from poolserver.station import Terms

SIGNS = 4
LONGEST_TICK = 1.0
SHORTEST_TICK = 0.05
"""A worker gives at least so many signs of life within ``timeouts.worker``, and so many seconds apart."""


def policy_of(settings: Config) -> Policy:
    """The narrow values that the pool needs."""
    workers, timeouts = settings.pool.worker_count, settings.timeouts
    return Policy(
        max(1, workers),
        timeouts.boot,
        timeouts.graceful,
        lame_duck_timeout=timeouts.lame_duck,
        resident=workers == 0,
        lanes=settings.pool.threads,
        most_workers=min(MAX_WORKERS, MAX_LANES // settings.pool.threads),
    )


def allowance_of(settings: Config) -> Allowance:
    """The narrow values that recycling needs."""
    section = settings.recycle
    return Allowance(section.connections, section.jitter, section.rss, section.age)


def listener_options(settings: Config) -> Options:
    """The narrow values that a listener needs."""
    section = settings.socket
    return Options(
        backlog=section.backlog,
        reuse_address=section.reuse_address,
        nodelay=section.nodelay,
        keepalive=section.keepalive,
        user_timeout=section.user_timeout,
        ipv6_only=section.ipv6_only,
        defer_accept=section.defer_accept,
        receive_buffer=section.receive_buffer,
        unix_mode=section.unix_mode,
        idle_timeout=settings.timeouts.idle,
        owner=Account.named(settings.server.user, settings.server.group),
    )


def terms_of(settings: Config, backlog: int, service_interval: float = 0.5) -> Terms:
    """The narrow values that a crew needs. Raises ConfigError where certificate or event loop cannot be used."""
    aio.refuse_missing(settings.pool.event_loop)
    timeouts, parking, proxy = settings.timeouts, settings.parking, settings.proxy_protocol
    return Terms(
        limits=Limits.parse(**settings.limits.model_dump()),
        backlog=backlog,
        graceful_timeout=timeouts.graceful,
        handler_timeout=timeouts.handler,
        first_byte_timeout=timeouts.first_byte,
        head_timeout=timeouts.head,
        keep_alive=parking.keep_alive,
        wait_for=parking.wait_for,
        max_head=parking.max_head,
        max_parked=parking.max_parked,
        proxy_mode=proxy.mode,
        proxy_trusted=Networks.parse(proxy.trusted),
        proxy_timeout=proxy.timeout,
        tls=tls.context_for(settings.server.bind, **settings.tls.model_dump(exclude={"handshake_timeout"})),
        handshake_timeout=settings.tls.handshake_timeout,
        event_loop=settings.pool.event_loop,
        service_interval=service_interval,
        has_access_log=bool(settings.log.access),
        tick=max(SHORTEST_TICK, min(LONGEST_TICK, timeouts.worker / SIGNS)) if timeouts.worker else LONGEST_TICK,
    )
