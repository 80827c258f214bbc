"""Prometheus metrics: the helper process that serves ``/metrics`` and ``/healthz``, and what it makes of a snapshot.

A process of its own, forked by the master, so that the master stays single-threaded and a slow scraper is nobody's
concern. It asks the master for snapshots over a socket that it was given, and knows nothing else of the service. Needs
the extra ``metrics`` (prometheus-client).
"""

import http.server
import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from poolserver import process, signals
from poolserver.errors import PoolserverError
from poolserver.remote import PATIENCE, Server
from poolserver.server import PreThreadHTTPServer
from poolserver.snapshot import Durations, Snapshot

THREADS = 4
"""Scrapes and probes that are served at once."""

HEALTHY = ("serving", "reloading")

WORKER_STATES = ("starting", "ready", "retiring", "hung", "stopped")


class Source:
    """Snapshots from the master, one at a time: requests that wait meanwhile share the next."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._asked = -math.inf
        self._snapshot: Snapshot | None = None

    def __call__(self) -> Snapshot:
        """The service, no earlier than now.

        Raises:
            PoolserverError: the master does not answer, or is gone.
        """
        came = time.monotonic()
        with self._lock:
            if self._snapshot is None or self._asked < came:
                self._asked = time.monotonic()
                self._snapshot = self._server.ask("status", patience=PATIENCE)["status"]
            return self._snapshot


class ServiceCollector(Collector):
    """A snapshot as Prometheus has it. Nothing is kept here: counters go on whoever dies or is restarted."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Every metric of the service."""
        snapshot = self._snapshot
        yield InfoMetricFamily(
            "poolserver_service", "Which service.", {"name": snapshot["name"], "version": snapshot["version"]}
        )
        yield from _connections(snapshot)
        yield from _lanes(snapshot)
        yield from _workers(snapshot)
        yield from _listeners(snapshot)


def _connections(snapshot: Snapshot) -> Iterator[Metric]:
    totals = snapshot["totals"]
    yield _counter("connections_accepted", "Connections and datagrams accepted.", totals["accepted"])
    yield _counter("connections_served", "Connections whose handler returned.", totals["served"])
    yield _counter("connections_cut", "Connections cut at a stop or reload.", totals["cut"])
    yield _counter("handler_errors", "Handlers that raised.", totals["errors"])
    yield _labelled("connections_refused", "Connections turned away.", "reason", totals["refused"])
    yield _labelled("connections_rehearsed", "Connections that a dry run would refuse.", "reason", totals["rehearsed"])
    yield _labelled("timeouts", "Connections that met a deadline.", "kind", totals["timeouts"])
    yield _handler_duration(snapshot["durations"])
    yield _counter("respawns", "Workers replaced after a death.", totals["respawns"])
    reloads = {"ok": totals["reloads"], "failed": totals["reloads_failed"]}
    yield _labelled("reloads", "Reloads.", "result", reloads)


def _handler_duration(durations: Durations) -> Metric:
    cumulated = itertools.accumulate(durations["counts"])
    bounds = [*(str(bound) for bound in durations["bounds"]), "+Inf"]
    text = "How long connections, or exchanges on them, were in a handler."
    family = HistogramMetricFamily("poolserver_handler_duration_seconds", text)
    family.add_metric([], list(zip(bounds, cumulated, strict=True)), durations["sum"])
    return family


def _lanes(snapshot: Snapshot) -> Iterator[Metric]:
    pool = snapshot["pool"]
    yield _gauge("lanes", "Lanes that the pool is to have.", pool["lanes"])
    yield _gauge("lanes_busy", "Lanes inside a handler.", pool["busy"])
    yield _gauge("lanes_idle", "Lanes that wait for a connection.", pool["idle"])
    yield _gauge("connections_parked", "Connections that hold no lane.", pool["parked"])
    yield _gauge("uptime_seconds", "Since the service started.", snapshot["uptime"])
    yield _gauge("generation", "Raised by each reload.", snapshot["generation"])
    yield _gauge("healthy", "Whether /healthz answers 200.", float(snapshot["state"] in HEALTHY))


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    states = GaugeMetricFamily("poolserver_workers", "Workers by state.", labels=["state"])
    for state in WORKER_STATES:
        states.add_metric([state], sum(worker["state"] == state for worker in snapshot["workers"]))
    yield states
    memory = GaugeMetricFamily("poolserver_worker_resident_memory_bytes", "Of each worker.", labels=["slot", "pid"])
    cpu = GaugeMetricFamily("poolserver_worker_cpu_seconds", "Of each worker.", labels=["slot", "pid"])
    for worker in snapshot["workers"]:
        labels = [str(worker["slot"]), str(worker["pid"])]
        for family, value in ((memory, worker["rss"]), (cpu, worker["cpu"])):
            if value is not None:
                family.add_metric(labels, value)
    yield memory
    yield cpu


def _listeners(snapshot: Snapshot) -> Iterator[Metric]:
    label = ["listener"]
    queued = GaugeMetricFamily("poolserver_accept_queue_length", "Connections that wait to be accepted.", labels=label)
    limit = GaugeMetricFamily("poolserver_accept_queue_limit", "How many connections may wait.", labels=label)
    octets = GaugeMetricFamily("poolserver_receive_queue_bytes", "Datagrams that wait.", labels=label)
    drops = CounterMetricFamily("poolserver_datagrams_dropped", "Datagrams for which there was no room.", labels=label)
    for listener in snapshot["listeners"]:
        is_stream = listener["drops"] is None
        for family, value in (
            (queued if is_stream else octets, listener["queued"]),
            (limit, listener["backlog"]),
            (drops, listener["drops"]),
        ):
            if value is not None:
                family.add_metric([listener["url"]], value)
    yield from (queued, limit, octets, drops)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"poolserver_{name}", text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"poolserver_{name}", text, value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"poolserver_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class MetricsHandler(http.server.BaseHTTPRequestHandler):
    """Two paths. ``/healthz`` is 200 while the service serves, 503 while it drains, is degraded, or does not answer."""

    server: "MetricsServer"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in ("/metrics", "/healthz"):
            self._answer(404, "text/plain", b"there are /metrics and /healthz\n")
            return
        try:
            snapshot = self.server.source()
        except PoolserverError as error:
            self._answer(503, "text/plain", f"{error}\n".encode())
            return
        if path == "/healthz":
            self._answer(200 if snapshot["state"] in HEALTHY else 503, "text/plain", f"{snapshot['state']}\n".encode())
        else:
            self._answer(200, CONTENT_TYPE_LATEST, exposition(snapshot))

    def do_HEAD(self) -> None:
        self.do_GET()

    def version_string(self) -> str:
        """Who answers; not which Python."""
        return "poolserver"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each scrape is noise."""

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def exposition(snapshot: Snapshot) -> bytes:
    """What a scrape gets."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(snapshot))
    return generate_latest(registry)


class MetricsServer(PreThreadHTTPServer):
    """Our own lanes: a client that is slow, or silent, holds one of them for as long as the deadlines say."""

    threads = THREADS
    timeouts: ClassVar[Mapping[str, object]] = {"first_byte": 5, "idle": 5, "handler": 10, "graceful": 1}

    def __init__(self, listener: socket.socket, source: Source) -> None:
        super().__init__(("", 0), MetricsHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.source = source


def run(master_pid: int, listener: socket.socket, master: socket.socket) -> int:
    """The whole life of the process, from its fork: serve on ``listener`` what the other end of ``master`` tells.

    Its own process group, since what a terminal sends is for the master; nothing of the service's is held open.
    """
    signals.reset_in_child()
    process.die_with(master_pid)
    os.setpgid(0, 0)
    signals.unblock_all()
    with MetricsServer(listener, Source(Server(master, Path("the master")))) as server:
        server.serve_forever()
    return 0
