"""The configuration: sources and their order, origins, types and bounds, and how errors are told."""

import json
import os
import re
import string
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from poolserver.config import (
    MAX_FILE_BYTES,
    Loaded,
    Option,
    effective,
    from_sections,
    key_lines,
    load,
)
from poolserver.errors import ConfigError
from poolserver.sections import SECTIONS, Config
from poolserver.values import available_cores
from poolserver.variables import environment

SAMPLE = Path(__file__).parents[2] / "config" / "poolserver.toml"
KNOWN_KEYS = [f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys]


class Sources:
    """A directory with a configuration file, and loads of it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "poolserver.toml"

    def load(self, text: str | bytes, environ: Mapping[str, str] | None = None, **options: str) -> Loaded:
        """Load ``text`` with the environment and ``--set`` options, written ``section__key``."""
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        given_options = {key.replace("__", "."): Option(value, "--set") for key, value in options.items()}
        return load(self.path, environ or {}, given_options)

    def errors(self, text: str | bytes, environ: Mapping[str, str] | None = None, **options: str) -> list[str]:
        """Return the error lines that a load ends with, the directory cut from them."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, environ, **options)
        return str(caught.value).replace(f"{self.path.parent}/", "").split("\n")


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


def set_options(**options: str | tuple[str, ...]) -> Loaded:
    return load(None, {}, {key.replace("__", "."): Option(text, "--set") for key, text in options.items()})


def refusal(**options: str | tuple[str, ...]) -> str:
    with pytest.raises(ConfigError) as caught:
        set_options(**options)
    return str(caught.value)


# Sources and origins


def test_nothing_given_has_every_default() -> None:
    """Without any source the configuration is the model's defaults, all of that origin."""
    loaded = load(None, {}, {})
    assert loaded.config.server.bind == ("tcp://127.0.0.1:20000",)
    assert loaded.config.socket.unix_mode == 0o660
    assert loaded.config.pool.threads == 8
    assert set(loaded.origins) == set(KNOWN_KEYS)
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.path is None


def test_each_source_overrides_the_one_before(sources: Sources) -> None:
    """Defaults, file, environment and command line override one another in this order, and say so."""
    text = "[timeouts]\nboot = 1\nidle = 1\n\n[pool]\nthreads = 1\n"
    environ = {"POOLSERVER_TIMEOUTS__IDLE": "2", "POOLSERVER_POOL__THREADS": "2"}
    loaded = sources.load(text, environ, pool__threads="3")
    timeouts = loaded.config.timeouts
    assert (timeouts.graceful, timeouts.boot, timeouts.idle, loaded.config.pool.threads) == (30, 1, 2, 3)
    assert loaded.origins["timeouts.graceful"] == "default"
    assert loaded.origins["timeouts.boot"] == f"{sources.path}:2"
    assert loaded.origins["timeouts.idle"] == "$POOLSERVER_TIMEOUTS__IDLE"
    assert loaded.origins["pool.threads"] == "--set"


def test_overridden_bad_value_is_not_an_error(sources: Sources) -> None:
    """Only values in force are judged, so an option can repair a file."""
    assert sources.load("[pool]\nthreads = 0\n", pool__threads="2").config.pool.threads == 2


def test_variables_of_others_are_ignored() -> None:
    """Variables without our prefix, or without a double underscore, are not configuration."""
    environ = {"PATH": "/bin", "POOLSERVER_FD": "3", "POOLSERVERS__X": "1", "XPOOLSERVER_A__B": "1"}
    assert load(None, environ, {}).config == load(None, {}, {}).config


def test_library_sections_have_the_callers_origin() -> None:
    """Sections given as dicts are validated like TOML and carry the caller's name."""
    loaded = from_sections({"timeouts": {"graceful": 5}, "server": {"bind": ["tcp://:1"]}})
    assert loaded.config.timeouts.graceful == 5.0
    assert loaded.config.server.bind == ("tcp://:1",)
    assert loaded.origins["timeouts.graceful"] == "serve()"
    assert loaded.origins["timeouts.idle"] == "default"


def test_library_mistakes_name_the_caller() -> None:
    """A library caller's mistake is told with the origin it gave."""
    with pytest.raises(ConfigError, match=r'^Service\.limits: pool\.thread: unknown key \(did you mean "threads"'):
        from_sections({"pool": {"thread": 5}}, origin="Service.limits")


def test_loaded_configuration_is_frozen() -> None:
    """Nobody can change a configuration behind another's back."""
    config = load(None, {}, {}).config
    with pytest.raises(ValidationError):
        config.pool.threads = 3


def test_environment_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is read, not shared."""
    monkeypatch.setenv("POOLSERVER_POOL__THREADS", "3")
    before = environment()
    monkeypatch.delenv("POOLSERVER_POOL__THREADS")
    assert before["POOLSERVER_POOL__THREADS"] == "3"


def test_neither_handler_nor_server_class_is_accepted() -> None:
    """What is missing from a command line is the command line's to say."""
    assert load(None, {}, {}).config.server.handler == ""


# Paths


def test_paths_in_a_file_start_at_the_file(sources: Sources) -> None:
    """Relative paths do not depend on where the server is started."""
    loaded = sources.load('server.pythonpath = ["lib", "/opt"]\nserver.chdir = "run"\nlog.file = "x.log"\n')
    here = sources.path.parent
    assert loaded.config.server.pythonpath == (f"{here}/lib", "/opt")
    assert loaded.config.server.chdir == f"{here}/run"
    assert loaded.config.log.file == f"{here}/x.log"
    assert sources.load("").config.server.pythonpath == (str(here),)


def test_paths_without_a_file_start_at_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file the current directory is importable."""
    monkeypatch.chdir(tmp_path)
    server = set_options(server__chdir="run").config.server
    assert (server.pythonpath, server.chdir) == ((str(tmp_path),), f"{tmp_path}/run")


def test_relative_file_anchors_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file given relatively is named as given, and its paths outlive a later chdir."""
    monkeypatch.chdir(tmp_path)
    Path("etc").mkdir()
    Path("etc/p.toml").write_text("[pool]\nthreads = 2\n")
    loaded = load(Path("etc/p.toml"), {}, {})
    assert loaded.config.server.pythonpath == (f"{tmp_path}/etc",)
    assert loaded.origins["pool.threads"] == "etc/p.toml:2"


def test_removed_current_directory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory that is gone is told, not raised as OSError."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="current directory"):
        load(None, {}, {})


def test_empty_path_stays_off(sources: Sources) -> None:
    """Empty means absent; it never becomes the file's directory."""
    config = sources.load('[server]\nchdir = ""\n[log]\nfile = ""\n').config
    assert (config.server.chdir, config.log.file) == ("", "")


# Values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("24h", 86400),
        ("250ms", 0.25),
        ("2d", 172800),
        ("0", 0),
    ],
)
def test_duration_text_is_seconds(text: str, seconds: float) -> None:
    """Durations are numbers of seconds or text with a unit."""
    assert set_options(timeouts__graceful=text).config.timeouts.graceful == seconds
    assert from_sections({"timeouts": {"graceful": text}}).config.timeouts.graceful == seconds


@pytest.mark.parametrize("text", ["-1", "-5s", "nan", "inf", "1e3", "30 s", "s", "", "5M", "٣s", "9" * 5000, "99999h"])
def test_impossible_duration_is_refused(text: str) -> None:
    """Durations are finite, not negative, and of known units."""
    assert refusal(timeouts__idle=text).startswith("--set: timeouts.idle: must be a duration such as 30")


def test_zero_boot_is_refused() -> None:
    """A worker needs some time to start."""
    assert refusal(timeouts__boot="0s") == '--set: timeouts.boot: must be more than 0, not "0s"'


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("4096", 4096), ("16K", 16384), ("1m", 1 << 20), ("1G", 1 << 30)])
def test_size_text_is_bytes(text: str, size: int) -> None:
    """Sizes are bytes or text with a binary unit."""
    assert set_options(socket__receive_buffer=text).config.socket.receive_buffer == size


@pytest.mark.parametrize("text", ["-1", "2G", "1T", "1.5M", "M", "9" * 5000, "10MB"])
def test_impossible_size_is_refused(text: str) -> None:
    """A size that setsockopt cannot take, or that is none, is refused."""
    assert refusal(socket__receive_buffer=text).startswith("--set: socket.receive_buffer: must be")


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("600", 0o600), ("0o777", 0o777), ("0", 0)])
def test_mode_text_is_octal(text: str, mode: int) -> None:
    """Permissions are read as chmod reads them, with or without a leading zero."""
    assert set_options(socket__unix_mode=text).config.socket.unix_mode == mode


@pytest.mark.parametrize("value", [660, 0o660, "0888", "01777", "rw", "", True])
def test_mode_that_is_not_octal_text_is_refused(value: object) -> None:
    """A number is refused, because 660 in TOML is decimal."""
    with pytest.raises(ConfigError, match=r"socket\.unix_mode: must be permissions as octal text"):
        from_sections({"socket": {"unix_mode": value}})


@pytest.mark.parametrize("text", ["true", "YES", "1", "on", "True"])
def test_true_words_are_true(text: str) -> None:
    """Environment and command line say yes in the usual ways."""
    assert set_options(socket__nodelay=text).config.socket.nodelay is True


@pytest.mark.parametrize("text", ["false", "No", "0", "off"])
def test_false_words_are_false(text: str) -> None:
    """Environment and command line say no in the usual ways."""
    assert set_options(socket__nodelay=text).config.socket.nodelay is False


def test_other_words_are_no_truth() -> None:
    """A word that says neither yes nor no is refused."""
    assert refusal(socket__nodelay="maybe") == '--set: socket.nodelay: must be true or false, not "maybe"'


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("tcp://:1", ("tcp://:1",)),
        ("tcp://:1, unix:/x ,", ("tcp://:1", "unix:/x")),
        ('["unix:/a,b", "tcp://[::]:1"]', ("unix:/a,b", "tcp://[::]:1")),
        (("unix:/a,b", "tcp://:2"), ("unix:/a,b", "tcp://:2")),
    ],
)
def test_list_text_is_toml_or_comma_separated(text: str | tuple[str, ...], items: tuple[str, ...]) -> None:
    """Lists are TOML arrays or comma-separated; repeated options are taken as they are."""
    assert set_options(server__bind=text).config.server.bind == items


@pytest.mark.parametrize("text", ["[", '["a"', "[" * 20000, '["a"]\nx = 1', "[" + "9" * 5000 + "]", "[1]", '[""]'])
def test_broken_list_text_is_refused(text: str) -> None:
    """A broken array is one clean error."""
    line = refusal(server__bind=text)
    assert line.startswith("--set: server.bind: ")
    assert len(line) < 300


def test_empty_bind_is_refused() -> None:
    """A server listens somewhere."""
    assert refusal(server__bind="") == (
        '--set: server.bind: must name at least one address, such as ["tcp://127.0.0.1:20000"], not []'
    )


def test_list_item_of_wrong_type_is_counted(sources: Sources) -> None:
    """An error in a list says which item."""
    assert sources.errors('server.bind = ["a", 5, ""]') == [
        'poolserver.toml:1: server.bind: item 2 must be text such as "tcp://127.0.0.1:20000", not 5',
        'poolserver.toml:1: server.bind: item 3 must not be empty; want one such as "tcp://127.0.0.1:20000", not ""',
    ]


LISTS = ["server.bind", "server.pythonpath", "limits.allow", "limits.deny", "limits.exempt", "proxy_protocol.trusted"]


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize(("value", "shown"), [('""', '""'), ("7", "7"), ("true", "true"), ("{ a = 1 }", "a table")])
def test_what_is_no_list_is_refused_with_an_example_that_is_one(
    sources: Sources, key: str, value: str, shown: str
) -> None:
    """The example can be copied into the file."""
    (error,) = sources.errors(f"{key} = {value}")
    found = re.fullmatch(rf"poolserver\.toml:1: {key}: must be a list such as (\[.+\]), not {shown}", error)
    assert found is not None
    sources.load(f"{key} = {found[1]}")


def test_text_where_a_list_belongs_is_shown_as_a_list(sources: Sources) -> None:
    """With what it holds."""
    assert sources.errors("limits.allow = '10.0.0.0/8, 192.0.2.0/24'") == [
        'poolserver.toml:1: limits.allow: must be a list such as ["10.0.0.0/8", "192.0.2.0/24"], '
        'not "10.0.0.0/8, 192.0.2.0/24"'
    ]


def test_list_that_another_key_asks_for_is_missed_there(sources: Sources) -> None:
    """Nobody has written it: the line is that of the key that needs it."""
    text = 'must name the proxies\' networks, such as ["192.0.2.0/24"], with proxy_protocol.mode = "v1"'
    assert sources.errors("[proxy_protocol]\nmode = 'v1'") == [f"poolserver.toml:2: proxy_protocol.trusted: {text}"]
    assert sources.errors("[proxy_protocol]\nmode = 'v1'\ntrusted = []") == [
        f"poolserver.toml:3: proxy_protocol.trusted: {text}, not []"
    ]


@pytest.mark.parametrize(("text", "workers"), [("auto", "auto"), ("0", 0), ("1024", 1024)])
def test_workers_is_auto_or_a_count(text: str, workers: object) -> None:
    """Workers are counted, or one for each core."""
    assert set_options(pool__workers=text).config.pool.workers == workers


@pytest.mark.parametrize("value", ["1025", "-1", "two", "", "1.5"])
def test_other_workers_are_refused(value: str) -> None:
    """There are at most as many workers as the scoreboard has slots."""
    assert refusal(pool__workers=value).startswith(
        '--set: pool.workers: must be "auto" or a whole number from 0 to 1024, not '
    )


def test_auto_workers_are_the_available_cores() -> None:
    """``auto`` resolves to the cores of this process; a number resolves to itself."""
    assert Config().pool.worker_count == available_cores() >= 1
    assert set_options(pool__workers="0").config.pool.worker_count == 0


def test_most_lanes_are_accepted() -> None:
    """The scoreboard's last row can be used."""
    assert set_options(pool__workers="1024", pool__threads="16").config.pool.threads == 16
    assert set_options(pool__workers="0", pool__threads="16384").config.pool.threads == 16384


def test_more_lanes_are_refused_by_name(sources: Sources) -> None:
    """A pool beyond the scoreboard's room is told with both keys."""
    assert sources.errors("[pool]\nthreads = 17\n", pool__workers="1000") == [
        "poolserver.toml:2: pool.threads: must be at most 16 with pool.workers = 1000"
        " (workers x threads is at most 16384 lanes), not 17"
    ]


@pytest.mark.parametrize("value", ["0", "65536", "x", "1.0", "9" * 5000, "¹"])
def test_backlog_out_of_bounds_is_refused(value: str) -> None:
    """The backlog is a whole number that the kernel can hold."""
    assert refusal(socket__backlog=value).startswith("--set: socket.backlog: must be ")


def test_log_words_are_listed_in_the_refusal() -> None:
    """A refused word comes with those that are accepted."""
    line = refusal(log__level="loud")
    assert line.startswith("--set: log.level: must be one of 'debug', 'info'")
    assert refusal(log__format="xml").startswith("--set: log.format: must be one of 'text' or 'json', not")


@pytest.mark.parametrize(
    ("handler", "server_class", "name", "expected"),
    [
        ("", "", "", "poolserver"),
        ("package.echo:EchoHandler", "other:Server", "", "echo"),
        ("", "package.other:Server", "", "other"),
        ("package.echo:EchoHandler", "", "chat", "chat"),
        ("../../etc/x:y", "", "", "poolserver"),
        ("a b:y", "", "", "poolserver"),
    ],
)
def test_service_name_is_given_or_derived(handler: str, server_class: str, name: str, expected: str) -> None:
    """The name is the given one, else the module's, and always fit for a file name."""
    loaded = set_options(server__handler=handler, server__server_class=server_class, server__name=name)
    assert loaded.config.server.service_name == expected


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "a\nb", "x" * 65, "-x", "a\0"])
def test_name_unfit_for_a_file_is_refused(name: str) -> None:
    """The name becomes part of the control socket's path and of log lines."""
    assert refusal(server__name=name).startswith("--set: server.name: must ")


def test_nul_in_text_is_refused(sources: Sources) -> None:
    """NUL would end a path early in the kernel."""
    assert sources.errors('[server]\nchdir = "a\\u0000b"\nbind = ["\\u0000"]') == [
        'poolserver.toml:3: server.bind: item 1 must not hold a NUL byte, not "\\u0000"',
        'poolserver.toml:2: server.chdir: must not hold a NUL byte, not "a\\u0000b"',
    ]


def test_undecodable_environment_is_refused() -> None:
    """Bytes that are not UTF-8 arrive as surrogates and are refused, in a line that can be printed."""
    with pytest.raises(ConfigError) as caught:
        load(None, {"POOLSERVER_SERVER__CHDIR": "/\udcff", "POOLSERVER_LOG__LEVEL": "\udcff"}, {})
    assert str(caught.value).encode().count(b"must be UTF-8 text") == 2


# Errors


def test_all_errors_are_told_at_once(sources: Sources) -> None:
    """Every mistake of every source has its own line, with its place and its remedy."""
    text = "[pool]\nworkers = 2\nwrokers = 4\nthreads = 'many'\n\n[timeout]\nidle = 5\n[log]\nbackend = 1\n"
    environ = {"POOLSERVER_POOL__TREADS": "1", "POOLSERVER_SOCKET__BACKLOG": "x"}
    assert sources.errors(text, environ, sokcet__nodelay="1", server__threads="1") == [
        'poolserver.toml:3: pool.wrokers: unknown key (did you mean "workers"?)',
        'poolserver.toml:6: timeout: unknown section or key (did you mean "timeouts"?)',
        "poolserver.toml:9: log.backend: unknown key (known: level, format, file, access)",
        '$POOLSERVER_POOL__TREADS: pool.treads: unknown key (did you mean "threads"?)',
        '--set: sokcet.nodelay: unknown section (did you mean "socket"?)',
        '--set: server.threads: unknown key (did you mean "pool.threads"?)',
        '$POOLSERVER_SOCKET__BACKLOG: socket.backlog: must be a whole number, not "x"',
        'poolserver.toml:4: pool.threads: must be a whole number, not "many"',
    ]


@pytest.mark.parametrize(
    "variable", ["POOLSERVER_X__Y", "POOLSERVER__POOL", "POOLSERVER___", "POOLSERVER_pool__workers"]
)
def test_unknown_variable_is_an_error(variable: str) -> None:
    """A misspelt variable is never silently without effect."""
    with pytest.raises(ConfigError) as caught:
        load(None, {variable: "1"}, {})
    assert str(caught.value).startswith(f"${variable}: ")


@pytest.mark.parametrize("name", ["workers", "pool", "pool.", ".workers", "", "pool.workers.x"])
def test_option_without_section_and_key_is_an_error(name: str) -> None:
    """--set takes SECTION.KEY and nothing else."""
    with pytest.raises(ConfigError, match="unknown"):
        load(None, {}, {name: Option("1", "--set")})


def test_key_outside_any_section_is_told_its_home(sources: Sources) -> None:
    """A known key at the top of the file is told where it belongs."""
    assert sources.errors("workers = 2\n") == [
        'poolserver.toml:1: workers: unknown section or key (did you mean "pool.workers"?)'
    ]


@pytest.mark.parametrize(("text", "kind"), [("pool = 5", "5"), ("[[pool]]", "a list"), ("pool = []", "[]")])
def test_section_that_is_no_table_is_refused(sources: Sources, text: str, kind: str) -> None:
    """A section is a table."""
    assert sources.errors(text) == [f"poolserver.toml:1: pool: must be a table ([pool]), not {kind}"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("pool.threads = '8'", 'must be a whole number, not "8"'),
        ("pool.threads = true", "must be a whole number, not true"),
        ("pool.threads = 8.0", "must be a whole number, not 8"),
        ("pool.workers = '4'", 'must be "auto" or a whole number from 0 to 1024, not "4"'),
        ("pool.workers = true", 'must be "auto" or a whole number from 0 to 1024, not true'),
        ("socket.nodelay = 1", "must be true or false, not 1"),
        ("socket.receive_buffer = 1.5", "must be a whole number, not 1.5"),
        ("server.bind = 'tcp://:1'", 'must be a list such as ["tcp://:1"], not "tcp://:1"'),
        ("server.handler = 5", "must be text, not 5"),
        ("server.chdir = 2020-01-01", "must be text, not a date"),
        ("log.file = { a = 1 }", "must be text, not a table"),
        ("timeouts.idle = true", " seconds, not true"),
        ("timeouts.idle = nan", " seconds, not nan"),
        ("timeouts.idle = inf", " seconds, not inf"),
        ("timeouts.idle = [1]", " seconds, not a list"),
    ],
)
def test_wrong_type_in_a_file_is_refused(sources: Sources, line: str, told: str) -> None:
    """A file's values have their types; only text from outside is converted."""
    [error] = sources.errors(line)
    assert error.startswith(f"poolserver.toml:1: {line.partition(' = ')[0]}: ")
    assert error.endswith(told)


@pytest.mark.parametrize("key", ["pool.threads", "timeouts.idle", "pool.workers", "server.name", "pool.x"])
@pytest.mark.parametrize("number", ["9" * 4000, "9" * 5000, "0x" + "f" * 9000, "-" + "9" * 400])
def test_huge_number_is_one_short_error(sources: Sources, key: str, number: str) -> None:
    """A number of thousands of digits neither raises ValueError nor fills the screen."""
    [error] = sources.errors(f"{key} = {number}\n")
    assert len(error) < 200


@pytest.mark.parametrize(
    ("text", "line", "clause"),
    [
        ("[pool]\nworkers 4\n", 2, "expected '=' after a key"),
        ("[pool]\nworkers =", 2, "invalid value"),
        ("[pool\n", 1, "expected ']'"),
        ("[pool]\n[pool]\n", 2, "cannot declare"),
        ('x = """\n\n', 1, "unterminated string"),
        ("a = 0660\n", 1, "expected newline"),
    ],
)
def test_syntax_error_names_its_line(sources: Sources, text: str, line: int, clause: str) -> None:
    """A file that is not TOML is told with file and line."""
    [error] = sources.errors(text)
    assert error.startswith(f"poolserver.toml:{line}: not valid TOML: ")
    assert clause in error.lower()


def test_broken_file_hides_no_other_error(sources: Sources) -> None:
    """Errors of the environment are told beside a file that cannot be read."""
    assert len(sources.errors("[", {"POOLSERVER_POOL__THREADS": "x"})) == 2


def test_bytes_that_are_no_text_name_their_line(sources: Sources) -> None:
    """A file in another encoding is told with the line of the first such byte."""
    assert sources.errors(b"a = 1\nb = '\xe9'\n") == ["poolserver.toml:2: not UTF-8 text: byte 0xe9"]


def test_byte_order_mark_and_crlf_are_accepted(sources: Sources) -> None:
    """A file from a Windows editor is read, its lines counted."""
    loaded = sources.load(b"\xef\xbb\xbf# c\r\n[pool]\r\nthreads = 2\r\n")
    assert loaded.origins["pool.threads"] == f"{sources.path}:3"


def test_deep_nesting_is_one_short_error(sources: Sources) -> None:
    """Brackets by the thousand do not raise RecursionError."""
    [error] = sources.errors("pool.threads = " + "[" * 50_000)
    assert len(error) < 200


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """A file that was named has to be there."""
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml", {}, {})


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "\udcff"])
def test_unreadable_path_is_an_error(tmp_path: Path, name: str) -> None:
    """A directory, or a name that no file can have, is a clean error of one printable line."""
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load(tmp_path / name, {}, {})
    assert str(caught.value).isprintable()


def test_endless_file_is_an_error() -> None:
    """Reading stops at a bound."""
    with pytest.raises(ConfigError, match=str(MAX_FILE_BYTES)):
        load(Path("/dev/zero"), {}, {})


def test_control_characters_never_reach_the_terminal(sources: Sources) -> None:
    """Keys, values and variables are escaped in messages."""
    text = '"\\u001b[2J\\nx" = 1\n[log]\nlevel = "\\u001b\\n"\n["po\\nol"]\n'
    for line in sources.errors(text, {"POOLSERVER_\x1b__\n": "1"}):
        assert line.isprintable()


def test_long_value_is_cut_in_its_message() -> None:
    """A message repeats only the beginning of a long value."""
    assert len(refusal(log__level="x" * 10_000)) < 250


# Lines


def test_lines_are_found_in_every_layout() -> None:
    """Tables, dotted and quoted keys, inline tables and multi-line values keep the count."""
    text = (
        "# [pool]\n"  # 1
        'a.b = """\n[pool]\nthreads = 1 "\\"""" # x\n'  # 2-4
        "[ server ] # [log]\n"  # 5
        "bind = [ # one\n  'x]', # ]\n  { threads = 1 },\n]\n"  # 6-9
        "'name' = 'a # b'\n"  # 10
        '"ch\\u0064ir"=""\n'  # 11
        "text = '''\n[log]\n''''\n"  # 12-14
        "[pool]\n"  # 15
        "  threads.x   = 1\n"  # 16
        "[timeouts]\n[timeouts.idle]\n"  # 17-18
        "[[log]]\nlevel = 1\n[[log]]\nlevel = 2\n"  # 19-22
        "[socket]\nkeepalive = ['''\n''', \"\"]\nbacklog = 1\n"  # 23-26
    )
    tomllib.loads(text)
    lines = key_lines(text)
    expected = {
        "a.b": 2,
        "server": 5,
        "server.bind": 6,
        "server.name": 10,
        "server.chdir": 11,
        "server.text": 12,
    }
    expected |= {
        "pool": 15,
        "pool.threads": 16,
        "timeouts": 17,
        "timeouts.idle": 18,
        "log": 19,
        "log.level": 20,
    }
    expected |= {"socket": 23, "socket.keepalive": 24, "socket.backlog": 26, "a": 2}
    assert {".".join(keys): line for keys, line in lines.items()} == expected


def test_key_of_an_inline_table_has_its_line(sources: Sources) -> None:
    """An inline table's keys are told with the table's line."""
    assert sources.errors("\npool = { threads = 0 }\n") == [
        "poolserver.toml:2: pool.threads: must be at least 1, not 0"
    ]


# Effective values


def test_effective_values_have_text_and_origin() -> None:
    """Every value is listed once, in section order, as TOML."""
    loaded = set_options(socket__unix_mode="600", timeouts__idle="250ms", server__bind="tcp://:1,tcp://:2")
    rows = {key: (value, origin) for key, value, origin in effective(loaded)}
    assert list(rows) == KNOWN_KEYS
    assert rows["server.bind"] == ('["tcp://:1", "tcp://:2"]', "--set")
    assert rows["socket.unix_mode"] == ('"0600"', "--set")
    assert rows["timeouts.idle"] == ("0.25", "--set")
    assert rows["timeouts.boot"] == ("30", "default")
    assert rows["socket.nodelay"] == ("true", "default")
    assert rows["pool.workers"] == ('"auto"', "default")


def test_sample_file_has_every_key_at_its_default(tmp_path: Path) -> None:
    """The annotated sample documents exactly the keys and defaults that there are."""
    loaded = load(SAMPLE, {}, {})
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    assert "default" not in loaded.origins.values()
    assert dump_without_paths(loaded) == dump_without_paths(load(empty, {}, {}))
    assert loaded.config.server.pythonpath == (str(SAMPLE.parent),)
    document = tomllib.loads(SAMPLE.read_text())
    assert [f"{section}.{key}" for section, table in document.items() for key in table] == KNOWN_KEYS


def dump_without_paths(loaded: Loaded) -> dict[str, Any]:
    """Dump a configuration less the one default that depends on the file's place."""
    return loaded.config.model_dump(exclude={"server": {"pythonpath"}})


# Random input: Loaded or ConfigError, nothing else


def assert_loads_or_is_refused(load_it: Callable[[], Loaded]) -> None:
    """Assert a configuration, or a ConfigError whose every line can be printed; all else escapes."""
    try:
        loaded = load_it()
    except ConfigError as error:
        lines = str(error).split("\n")
    else:
        assert_survives_printing(loaded)
        lines = list(loaded.origins.values())
    assert all(line and line.isprintable() for line in lines)


def assert_survives_printing(loaded: Loaded) -> None:
    """Assert that the effective values are TOML that loads as the same configuration."""
    document = tomllib.loads("".join(f"{key} = {value}\n" for key, value, _ in effective(loaded)))
    assert from_sections(document).config == loaded.config


def written(document: Mapping[str, Any], prefix: str = "") -> str:
    """Write nested dicts as TOML, scalars before tables."""
    scalars = "".join(f"{json.dumps(k)} = {value_text(v)}\n" for k, v in document.items() if not isinstance(v, dict))
    tables = ((f"{prefix}{json.dumps(key)}", value) for key, value in document.items() if isinstance(value, dict))
    return scalars + "".join(f"[{name}]\n{written(table, f'{name}.')}" for name, table in tables)


def value_text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(value_text(item) for item in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


words = st.sampled_from(["30s", "512M", "0660", "auto", "tcp://:1", "true", "off", "info", "text", "8", "[", '["a"]'])
texts = words | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.booleans() | st.integers() | st.integers(0, 70_000) | st.floats() | texts
values = scalars | st.lists(scalars, max_size=3)
key_names = st.sampled_from([key.partition(".")[2] for key in KNOWN_KEYS]) | st.text(string.printable[:95], max_size=8)
documents = st.dictionaries(
    st.sampled_from(sorted(SECTIONS)) | st.text(string.ascii_lowercase, max_size=8),
    st.dictionaries(key_names, values | st.dictionaries(key_names, values, max_size=2), max_size=4) | values,
    max_size=4,
)
fragments = st.sampled_from(
    [
        *KNOWN_KEYS,
        *SECTIONS,
        "[",
        "]",
        "[[",
        "]]",
        "=",
        ".",
        ",",
        "{",
        "}",
        '"""',
        "'''",
        '"',
        "'",
        "\\",
        "#",
        "\n",
        " = ",
    ]
)
toml_like = st.lists(fragments | values.map(value_text) | st.text(max_size=5), max_size=30).map("".join)
os_texts = st.binary(max_size=20).map(os.fsdecode) | texts
variables = st.builds(
    "POOLSERVER_{}__{}".format, st.sampled_from(sorted(SECTIONS)).map(str.upper), key_names.map(str.upper)
)


@given(toml_like | st.text())
@settings(deadline=None, max_examples=300)
def test_random_text_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever text a file holds, the result is a configuration or a ConfigError."""
    path = tmp_path_factory.getbasetemp() / "random.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert_loads_or_is_refused(lambda: load(path, {}, {}))


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever bytes a file holds, the result is a configuration or a ConfigError."""
    path = tmp_path_factory.getbasetemp() / "random.bin"
    path.write_bytes(content)
    assert_loads_or_is_refused(lambda: load(path, {}, {}))


@given(documents)
@settings(deadline=None, max_examples=300)
def test_random_tables_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> None:
    """Whatever tables TOML holds, the result is a configuration or a ConfigError, and keys have lines (R40)."""
    text = written(document)
    tomllib.loads(text)
    path = tmp_path_factory.getbasetemp() / "tables.toml"
    path.write_text(text)
    assert_loads_or_is_refused(lambda: load(path, {}, {}))
    top = {(key,) for key in document}
    below = {(section, key) for section, table in document.items() if isinstance(table, dict) for key in table}
    assert set(key_lines(text)) == top | below


@given(st.dictionaries(variables | os_texts, os_texts, max_size=5))
@settings(deadline=None, max_examples=300)
def test_random_environment_loads_or_is_refused(environ: dict[str, str]) -> None:
    """Whatever the environment holds, the result is a configuration or a ConfigError."""
    assert_loads_or_is_refused(lambda: load(None, environ, {}))


@given(st.dictionaries(st.sampled_from(KNOWN_KEYS) | os_texts, os_texts | st.lists(os_texts).map(tuple), max_size=5))
@settings(deadline=None, max_examples=300)
def test_random_options_load_or_are_refused(options: dict[str, str | tuple[str, ...]]) -> None:
    """Whatever the command line holds, the result is a configuration or a ConfigError."""
    given_options = {name: Option(value, "--set") for name, value in options.items()}
    assert_loads_or_is_refused(lambda: load(None, {}, given_options))


@given(st.dictionaries(st.sampled_from(sorted(SECTIONS)), st.dictionaries(key_names, values | st.none()), max_size=3))
@settings(deadline=None)
def test_random_library_sections_load_or_are_refused(sections: dict[str, dict[str, object]]) -> None:
    """Whatever a library caller gives, the result is a configuration or a ConfigError."""
    assert_loads_or_is_refused(lambda: from_sections(sections))
