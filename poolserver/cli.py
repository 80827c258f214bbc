"""The command line: options in, lines and exit codes out. The only place that prints and exits."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from poolserver import __version__, check, service
from poolserver.config import Loaded, Option, environment, load
from poolserver.errors import ConfigError, PoolserverError, UsageError

_EXIT_CODES = """
\b
Exit codes:
   0  done; also after TERM, INT and QUIT
   1  it failed while running
   2  wrong command line
  71  the system refused (bind, fork, permission)
  78  the configuration or the handler cannot be used
"""

_SIGNALS = """
\b
Signals to the master:
  TERM        stop gracefully: open connections have timeouts.graceful to finish
  INT, QUIT   stop now
  USR1        reopen the log file
  TTIN, TTOU  one worker more, one less
"""


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="poolserver %(version)s")
def cli() -> None:
    """The production server for Python's socketserver: a pre-forked, pre-threaded worker pool."""


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """The options that ``run`` and ``check`` share."""
    urls = "tcp://HOST:PORT, udp://HOST:PORT, unix:/PATH, unix:@NAME, unixgram:/PATH, fd://N"
    helps = {
        "config": "TOML file with the configuration.",
        "bind": f"Where to listen; may repeat. {urls}.  [default: tcp://127.0.0.1:20000]",
        "workers": "Worker processes; auto = cores, 0 = everything in this process.  [default: auto]",
        "threads": "Lanes (threads) in each worker, each with one connection at a time.  [default: 8]",
        "set": "Set any key of the configuration; may repeat.",
    }
    for decorate in (
        click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help=helps["set"]),
        click.option("-t", "--threads", metavar="N", help=helps["threads"]),
        click.option("-w", "--workers", metavar="N", help=helps["workers"]),
        click.option("-b", "--bind", multiple=True, metavar="URL", help=helps["bind"]),
        click.option("-c", "--config", "path", type=click.Path(path_type=Path), help=helps["config"]),
        click.argument("handler", required=False),
    ):
        command = decorate(command)
    return command


@cli.command(epilog=_SIGNALS + _EXIT_CODES)
@_settings
def run(**given: Any) -> None:
    """Serve HANDLER, named as package.module:attribute, until a signal ends it.

    HANDLER is a subclass of socketserver.BaseRequestHandler, or a socketserver server class that has its own
    RequestHandlerClass. The current directory is importable. Try: poolserver run poolserver.examples.echo:EchoHandler
    """
    service.run(functools.partial(_loaded, **given), is_whole_process=True)


@cli.command("check", epilog=_EXIT_CODES)
@_settings
def check_command(**given: Any) -> None:
    """Validate everything that run would need, without serving; print each value and where it comes from."""
    loaded = _loaded(**given)
    report = check.examine(loaded)
    width = max(len(f"{key} = {value}") for key, value, _ in report.values)
    for key, value, origin in report.values:
        click.echo(f"{key} = {value}".ljust(min(width, 60)) + f"  # {origin}")
    for hazard in report.hazards:
        click.echo(f"hazard: {hazard}")
    if report.problems:
        raise ConfigError("\n".join(report.problems), report.details)
    click.echo("ok")


def _loaded(
    handler: str | None,
    path: Path | None,
    bind: Sequence[str],
    workers: str | None,
    threads: str | None,
    sets: Sequence[str],
) -> Loaded:
    options: dict[str, Option] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"--set {text}: want SECTION.KEY=VALUE, as in --set pool.threads=4")
        options[key.strip()] = Option(value.strip(), "--set")
    if bind:
        options["server.bind"] = Option(tuple(bind), "--bind")
    named = {
        "server.handler": (handler, "HANDLER"),
        "pool.workers": (workers, "--workers"),
        "pool.threads": (threads, "--threads"),
    }
    options |= {key: Option(value, origin) for key, (value, origin) in named.items() if value is not None}
    loaded = load(path, environment(), options)
    if not (loaded.config.server.handler or loaded.config.server.server_class):
        raise UsageError("no handler: name one as package.module:attribute (try poolserver.examples.echo:EchoHandler)")
    return loaded
