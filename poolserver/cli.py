"""The command line: options in, lines and exit codes out. The only place that prints and exits."""

import contextlib
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poolserver import __version__, rendezvous
from poolserver.errors import ConfigError, PoolserverError, SystemRefusedError, UsageError
from poolserver.remote import PATIENCE, Server, located
from poolserver.usage import EXIT_CODES, FIRST_STEPS, SIGNALS
from poolserver.variables import environment, is_setting


class _Late:
    """A module of ours that is imported when a command first needs something of it: pydantic and all that serves take
    five times as long to import as ``status`` or ``stop`` to do."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(f"poolserver.{self._name}"), attribute)


if TYPE_CHECKING:
    from poolserver import check, config, sections, service, tables, unit, whereabouts
else:
    check, config, sections, service = map(_Late, ("check", "config", "sections", "service"))
    tables, unit, whereabouts = map(_Late, ("tables", "unit", "whereabouts"))

_FILE = click.Path(path_type=Path, readable=False)
"""Whoever reads it says what is wrong with it, whether it is not there or not to be read: 78."""


def main() -> None:
    """Entry point of the console script and of ``python -m poolserver``."""
    try:
        cli(prog_name="poolserver", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(0)  # Ctrl-C before handlers stand: nothing was served yet
    except PoolserverError as error:
        _explain(error)
        sys.exit(error.exit_code)


def _explain(error: PoolserverError) -> None:
    for line in str(error).splitlines():
        click.echo(f"poolserver: {line}", err=True)
    if isinstance(error, ConfigError) and error.details:
        click.echo(error.details.rstrip(), err=True)


def _print(text: str, *, nl: bool = True) -> None:
    """On standard output. Who has closed the pipe is told nothing more, by click.

    Raises:
        SystemRefusedError: it cannot be written, on a full disk for one.
    """
    try:
        click.echo(text, nl=nl)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SystemRefusedError(f"cannot write to standard output: {error.strerror}") from error


class _InOrder(click.Group):
    """Lists its commands in the order in which somebody meets them, which is that of this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]}, epilog=FIRST_STEPS)
@click.version_option(__version__, message="poolserver %(version)s")
def cli() -> None:
    """The production server for Python's socketserver: a pre-forked, pre-threaded worker pool."""


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """The options that ``run`` and ``check`` share."""
    urls = (
        "tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:/PATH, unix:@NAME, unixgram:/PATH, fd://N,"
        " systemd:[NAME]"
    )
    helps = {
        "config": "TOML file with the configuration.",
        "bind": f"Where to listen; may repeat. {urls}.  [default: tcp://127.0.0.1:20000]",
        "workers": "Worker processes; auto = cores, 0 = everything in this process.  [default: auto]",
        "threads": "Lanes (threads) in each worker, each with one connection at a time.  [default: 8]",
        "daemon": "Leave the shell once the pool serves; see server.pidfile.",
        "set": "Set any key of the configuration; may repeat.",
    }
    for decorate in (
        click.option("--daemon", "is_daemon", is_flag=True, help=helps["daemon"]),
        click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help=helps["set"]),
        click.option("-t", "--threads", metavar="N", help=helps["threads"]),
        click.option("-w", "--workers", metavar="N", help=helps["workers"]),
        click.option("-b", "--bind", multiple=True, metavar="URL", help=helps["bind"]),
        click.option("-c", "--config", "path", type=_FILE, help=helps["config"]),
        click.argument("handler", required=False),
    ):
        command = decorate(command)
    return command


@cli.command(epilog=SIGNALS + EXIT_CODES, short_help="Serve a handler until a signal ends it.")
@_settings
def run(**given: Any) -> None:
    """Serve HANDLER, named as package.module:attribute, until a signal ends it.

    HANDLER is a subclass of socketserver.BaseRequestHandler, a plain function f(sock, address), a coroutine function
    f(reader, writer), an asyncio protocol class, or a socketserver server class that has its own RequestHandlerClass.
    The current directory is importable.

    \b
    For one:
      poolserver run poolserver.examples.echo:EchoHandler -b tcp://127.0.0.1:20000 -w 4 -t 8
      poolserver run -c hello.toml --set timeouts.graceful=5s
    """
    service.run(functools.partial(_loaded, **given), is_whole_process=True)


@cli.command("check", epilog=EXIT_CODES, short_help="Try what run would need, without serving.")
@_settings
def check_command(**given: Any) -> None:
    """Validate everything that run would need, without serving; print each value and where it comes from."""
    loaded = _loaded(**given)
    report = check.examine(loaded)
    width = max(len(f"{key} = {value}") for key, value, _ in report.values)
    for key, value, origin in report.values:
        _print(f"{key} = {value}".ljust(min(width, 60)) + f"  # {origin}")
    for hazard in report.hazards:
        _print(f"hazard: {hazard}")
    if report.problems:
        raise ConfigError("\n".join(report.problems), report.details)
    _print("ok")


def _loaded(
    handler: str | None,
    path: Path | None,
    bind: Sequence[str],
    workers: str | None,
    threads: str | None,
    sets: Sequence[str],
    is_daemon: bool,
) -> "config.Loaded":
    options: dict[str, config.Option] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"--set {text}: want SECTION.KEY=VALUE, as in --set pool.threads=4")
        options[key.strip()] = config.Option(value.strip(), "--set")
    if is_daemon:
        options["server.daemonize"] = config.Option("true", "--daemon")
    if bind:
        options["server.bind"] = config.Option(tuple(bind), "--bind")
    named = {
        "server.handler": (handler, "HANDLER"),
        "pool.workers": (workers, "--workers"),
        "pool.threads": (threads, "--threads"),
    }
    options |= {key: config.Option(value, origin) for key, (value, origin) in named.items() if value is not None}
    loaded = config.load(path, environment(), options)
    if not (loaded.config.server.handler or loaded.config.server.server_class):
        wanted = "package.module:attribute (try poolserver.examples.echo:EchoHandler)"
        raise UsageError(f"no handler: name one as {wanted}, or as server.handler in -c FILE")
    return loaded


def _asking(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which running server is asked."""
    control = "Its control socket. Else: that of the configuration, or of the only server there is."
    for decorate in (
        click.option("--control", type=_FILE, metavar="PATH", help=control),
        click.option("-c", "--config", "path", type=_FILE, help="Its configuration, a TOML file."),
    ):
        command = decorate(command)
    return command


@contextlib.contextmanager
def _asked(control: Path | None, path: Path | None) -> Iterator[Server]:
    """The server that is meant, for the block."""
    with Server.at(control or _where(path)) as server:
        yield server


def _where(path: Path | None) -> Path:
    environ = environment()
    name = ""
    if path or any(map(is_setting, environ)):
        settings = config.load(path, environ, {}).config
        if settings.control.socket:
            return Path(settings.control.socket)
        is_named = path or settings.server.name or settings.server.handler or settings.server.server_class
        name = settings.server.service_name if is_named else ""
    return located(rendezvous.candidates(name, environ, os.geteuid()), name)


@cli.command(epilog=EXIT_CODES, short_help="Show how a running server is.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
@_asking
def status(is_json: bool, **where: Any) -> None:
    """Show how a running server is: its listeners, workers, counters, refusals."""
    with _asked(**where) as server:
        snapshot = server.ask("status", patience=PATIENCE)["status"]
    _print(json.dumps(snapshot) if is_json else tables.status_text(snapshot))


@cli.command("top", epilog=EXIT_CODES, short_help="The same, live.")
@_asking
def top_command(**where: Any) -> None:
    """Show a running server live: courses, workers, worst sources, longest conversations. q quits."""
    try:
        top = importlib.import_module("poolserver.top")
    except ModuleNotFoundError as error:
        raise PoolserverError(f"top needs {error.name}: pip install 'poolserver[top]'") from None
    with _asked(**where) as server:
        path = server.path
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise PoolserverError("top needs a terminal; `poolserver status` does not")
    top.watch(lambda: _snapshot(path))


def _snapshot(path: Path) -> Any:
    """None while nobody answers: it may be back in a moment."""
    try:
        with Server.at(path) as server:
            return server.ask("status", patience=PATIENCE)["status"]
    except PoolserverError:
        return None


@cli.command(epilog=EXIT_CODES, short_help="Stop a running server.")
@click.option("--now", "is_now", is_flag=True, help="Cut open connections.")
@_asking
def stop(is_now: bool, **where: Any) -> None:
    """Stop a running server, after saying which one (without --control or -c: the only one there is, whoever started
    it), and wait until it is gone. Open connections have timeouts.graceful to finish."""
    with _asked(**where) as server:
        with contextlib.suppress(OSError):  # where nobody reads it, or the disk is full, it is stopped all the same
            click.echo(tables.plain(": ".join(filter(None, [f"stopping {server}", server.service]))))
        server.ask("stop --now" if is_now else "stop")
        server.wait_for_end()
        _print(f"{server} has stopped")


@cli.command(epilog=EXIT_CODES, short_help="Change the number of worker processes.")
@click.argument("workers", type=click.IntRange(1), metavar="N")
@_asking
def scale(workers: int, **where: Any) -> None:
    """Change the number of worker processes to N, until the next reload; wait until that many accept."""
    with _asked(**where) as server:
        server.ask("scale", workers)
        _print(f"{server}: {workers} workers accept")


@cli.command(epilog=EXIT_CODES, short_help="Apply configuration and code as they are now.")
@_asking
def reload(**where: Any) -> None:
    """Apply the configuration and the handler's code as they are now; wait until the old generation has left.

    Where they cannot be used nothing is changed.
    """
    _order("reload", "reloaded", **where)


@cli.command(epilog=EXIT_CODES, short_help="Put a new master in the place of the running one.")
@_asking
def upgrade(**where: Any) -> None:
    """Start a new master on the same listeners, with whatever interpreter, poolserver, code and configuration the same
    command line means by now; wait until it has taken over. The old one finishes its open connections.

    Where it cannot serve nothing is changed.
    """
    _order("upgrade", "a new master has taken over", **where)


@cli.command(epilog=EXIT_CODES)
@_asking
def reopen(**where: Any) -> None:
    """Open the log file anew, after a rotation."""
    _order("reopen", "log reopened", **where)


def _order(command: str, outcome: str, **where: Any) -> None:
    with _asked(**where) as server:
        server.ask(command)
        _print(f"{server}: {outcome}")


@cli.command(epilog=EXIT_CODES, short_help="Show where every thread is, and whom it serves.")
@_asking
def stacks(**where: Any) -> None:
    """Show where every thread of every worker is, and whom each lane serves."""
    with _asked(**where) as server:
        told = server.ask("stacks", patience=2 * PATIENCE)
    _print(whereabouts.stacks_text(told["stacks"], told["status"]))


@cli.command("unit", epilog=EXIT_CODES, short_help="Print systemd units for a configuration.")
@click.option("-c", "--config", "path", type=_FILE, help="TOML file with the configuration.")
def unit_command(path: Path | None) -> None:
    """Print a hardened systemd service for this configuration, then, after a line `# --- NAME.socket`, its socket unit.

    With the socket unit, which may be left out, systemd binds the listeners: then no restart refuses anybody, and a low
    port needs no privilege.
    """
    loaded = _loaded(None, path, (), None, None, (), is_daemon=False)
    program = Path(sys.argv[0]).absolute()
    command = [str(program)] if program.name == "poolserver" else [sys.executable, "-m", "poolserver"]
    environ = environment()
    searched = [Path(folder) for folder in environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    units = unit.Units(
        loaded, unit.Installation(command, [Path(sys.prefix), Path(sys.base_prefix), *searched], environ)
    )
    _print(f"# {units.name}.service\n{units.service()}\n# --- {units.name}.socket\n{units.socket()}", nl=False)


@cli.command(short_help="Print the JSON Schema of the configuration.")
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors that complete and check TOML."""
    _print(json.dumps(sections.json_schema(), indent=2))
