"""What README and docs/ tell people to write is what poolserver takes: configurations, commands, handlers, links."""

import ast
import functools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pages import DOCS, PAGES, ROOT, Block, blocks, commands, outside, typed, write_files

import poolserver
from poolserver import cli, handlers, tls
from poolserver.address import parse
from poolserver.config import Loaded, Option, load
from poolserver.rows import Outcome
from poolserver.sections import SECTIONS
from poolserver.tally import Tally

sys.path.insert(0, str(DOCS))
import generated

SETTING = re.compile(r"--set (?!section\.key)([a-z]+\.[a-z0-9_]+)=([^\s`]+)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

OF_A_SHELL = {"|", "&", "&&", ">", "2>"}

ANYWHERE = {
    "toml": "test_every_configuration_shown_loads",
    "python": "test_python_shown_compiles, and test_every_service_shown_serves",
    "console": "test_every_command_shown_is_one; those that serve or ask by tests/daemon/test_pages.py",
    "text": "test_what_is_quoted_can_be_said",
    "{toctree}": "make docs",
    "{eval-rst}": "make docs",
}
"""By which test a block is run, in any page."""

ONLY_IN = {
    ("changing", "sh"): "test_switched_link_leads_to_the_new_release, test_every_order_shown_is_obeyed",
    ("containers", "dockerfile"): "tests/unit/test_containers_page.py",
    ("containers", "yaml"): "tests/unit/test_containers_page.py",
    ("deploy-systemd", "sh"): "tests/system/test_deploy_page.py",
    ("deploy-systemd", "ini"): "test_drop_in_is_one",
    ("proxies", "haproxy"): "tests/daemon/test_proxies_page.py",
    ("proxies", "nginx"): "tests/daemon/test_proxies_page.py",
    ("tls", "sh"): "test_tls_client_shown_talks",
}

OTHER_PROGRAMS = {
    "README": {"make", "python3", ".", "pip"},
    "tutorial": {"python3", ".", "pip", "python"},
    "tls": {"openssl"},
}
"""What is typed beside poolserver, where something runs or looks at it: make's targets, the tutorial, the fixture."""

NOT_LOGGED = {"tutorial", "control-socket", "hung-lanes"}
"""Whose quotations test_tutorial.py and test_pages.py compare with what is said."""


def name(value: object) -> str | None:
    return value.stem if isinstance(value, Path) else None


FILES = [(page, block.text) for page in PAGES for block in blocks(page, "toml")]
SETTINGS = [(page, *found.groups()) for page in PAGES for found in SETTING.finditer(page.read_text())]
SHOWN = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_without_a_test(page: Path) -> None:
    """One in a new language, or of another program, or that is merely indented, wants one."""
    for block in blocks(page):
        assert block.language in ANYWHERE or (page.stem, block.language) in ONLY_IN, f"{block}: no test runs it"
    for line in (each for block in blocks(page, "console") for each in block.text.splitlines() if each[:2] == "$ "):
        words = [word for word in line.split()[1:] if "=" not in word]
        assert words[0] in {"poolserver", *OTHER_PROGRAMS.get(page.stem, ())}, f"{page.name}: {line}: no test runs it"
    assert not re.search(r"^(?![-*0-9 ]).*\n\n {4,}\S", outside(page), re.MULTILINE), f"{page.name}: fence it"


@pytest.mark.parametrize(("page", "text"), FILES, ids=name)
def test_every_configuration_shown_loads(page: Path, text: str, tmp_path: Path) -> None:
    """As a file of its own, without an unknown key or a wrong value."""
    path = tmp_path / "poolserver.toml"
    path.write_text(text)
    assert load(path, {}, {})


@pytest.mark.parametrize(("page", "key", "value"), SETTINGS, ids=name)
def test_every_setting_shown_loads(page: Path, key: str, value: str) -> None:
    """``--set section.key=value``; ``…`` stands for a value of the reader's."""
    if "…" not in value:
        assert load(None, {}, {key: Option(value, "--set")})


def test_there_is_something_to_load() -> None:
    """The fences, options and commands are found."""
    assert FILES
    assert SETTINGS
    assert len(SHOWN) > 10


@pytest.fixture
def site(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the page's reader: the tutorial's files, those that the page names, a certificate."""
    write_files(page, tmp_path)
    for line in typed(page):
        if line.startswith("openssl req "):
            subprocess.run(shlex.split(line), cwd=tmp_path, check=True, capture_output=True, timeout=30)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.mark.parametrize("page", SHOWN, ids=name)
def test_every_command_shown_is_one(page: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes it; where it serves, its configuration loads, its handler imports and fits."""
    for line in commands(page):
        with monkeypatch.context() as patched:
            call(line, site, patched)


def call(line: str, site: Path, patched: pytest.MonkeyPatch) -> None:
    """Parse what is typed, as far as the shell leaves it to us and the reader has not to fill it in (…)."""
    words = shlex.split(line, comments=True)
    while "=" in words[0]:
        patched.setenv(*words.pop(0).split("=", 1))
    end = next((place for place, word in enumerate(words) if word in OF_A_SHELL or "…" in word), len(words))
    while words[end - 1].startswith("-b") and end < len(words):
        end -= 1
    given = [mapped(word, site) for word in words[1:end]]
    try:
        cli.cli.make_context("poolserver", [*given])
        context = cli.cli.commands[given[0]].make_context(given[0], given[1:])
    except click.exceptions.Exit:
        return  # --help, --version
    except click.ClickException as error:
        raise AssertionError(f"$ {line}: {error.format_message()}") from error
    if given[0] in ("run", "check"):
        attempt(cli._loaded(**context.params))


def mapped(word: str, site: Path) -> str:
    """A path of the reader's machine is the file of that name here."""
    return Path(word).name if word.startswith("/") and (site / Path(word).name).exists() else word


def attempt(loaded: Loaded) -> None:
    """What ``check`` does with a handler and a certificate; accounts and folders are the reader's."""
    settings = loaded.config
    service = handlers.load(
        settings.server.handler, settings.server.server_class, [Path(path) for path in settings.server.pythonpath]
    )
    for address in (each for url in settings.server.bind for each in parse(url)):
        if not address.is_passed:
            handlers.fitting(service, address)
    if Path(settings.tls.certificate).is_file():
        tls.context_for(settings.server.bind, **settings.tls.model_dump(exclude={"handshake_timeout"}))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_shown_compiles(page: Path) -> None:
    """Every block."""
    for block in blocks(page, "python"):
        compile(block.text, str(block), "exec")


@functools.cache
def messages() -> list[re.Pattern[str]]:
    """What poolserver's sources may say, as expressions. What a flood comes to is put together of several."""
    flood = Tally(lambda _count: [("192.0.2.7", 5)]).lines({"refused_per_source": 5}, 0.0)
    found = [re.compile(re.sub(r"\d+(\\\.\d+)*", "[0-9.]+", re.escape(line))) for line in flood]
    for path in (ROOT / "poolserver").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [each.value if isinstance(each, ast.Constant) else "%s" for each in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            pieces = re.split(r"%[-+0-9.]*[sdrfgx]", "".join(map(str, parts)))
            if len("".join(pieces)) > MIN_SAID and "\n" not in "".join(pieces):
                found.append(re.compile(".*".join(map(re.escape, pieces))))
    return found


MIN_SAID = 6
"""Characters that a message has beside what it is filled with, or it would be taken for anything."""

LOGGED = re.compile(r"^(?:\S+ )?(?:DEBUG|INFO|WARNING|ERROR) (?:master|worker \d+) \[\d+\]: (.+)$")
ACCESS = re.compile(r"^access: (?:\S+=\S+ ?)+$")
ACCESS_FIELDS = re.findall(r'^ {8}"(\w+)": ', (ROOT / "poolserver" / "access.py").read_text(), re.MULTILINE)
READY = re.compile(r"^poolserver: ready on \S+ \(pid \d+, \d+ workers x \d+ lanes\)$")


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "text")], ids=str)
def test_what_is_quoted_can_be_said(block: Block) -> None:
    """Each line of the log that a page quotes is one that the sources have the words for."""
    for line in block.text.splitlines():
        if logged := LOGGED.match(line):
            assert any(each.fullmatch(logged[1]) for each in messages()), f"{block}: nobody says {line!r}"
        elif ACCESS.match(line):
            assert re.findall(r"(\w+)=", line) == ACCESS_FIELDS, f"{block}: {line}"
        else:
            assert READY.match(line) or block.page.stem in NOT_LOGGED, f"{block}: no test compares {line!r}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_in_the_text_are_known(page: Path) -> None:
    """Keys, variables, extras and make targets that the page mentions."""
    text = page.read_text()
    keys = re.findall(r"`([a-z_]+)\.([a-z0-9_]+)[`= ]", text)
    keys += [(section.lower(), key.lower()) for section, key in re.findall(r"POOLSERVER_([A-Z]+)__([A-Z0-9_]+)", text)]
    for section, key in keys:
        assert section not in SECTIONS or key in SECTIONS[section], f"{page.name}: {section}.{key}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in (each for names in re.findall(r"poolserver\[([a-z,]+)\]", text) for each in names.split(",")):
        assert extra in extras, f"{page.name}: {extra}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in targets, f"{page.name}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and a heading that it has."""
    for link in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """A page's headings as links name them. Source: GitHub's rule, which MyST has too."""
    headings = HEADING.findall(generated.filled(page.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_reference_has_every_key_option_metric_and_name() -> None:
    """What is made from the code is made from all of it."""
    page = {each.stem: generated.filled(each.read_text()) for each in PAGES}
    notes = generated.sample_notes()
    assert notes["server.handler"].startswith("What serves a connection: ")
    for section, keys in SECTIONS.items():
        for key in keys:
            assert f"### `{section}.{key}`\n\n" in page["configuration"]
            assert notes[f"{section}.{key}"]
    for command, each in cli.cli.commands.items():
        assert f"### {command}\n" in page["command-line"]
        for option in (name for parameter in each.params for name in parameter.opts if name.startswith("--")):
            assert option in page["command-line"]
            assert option in page["poolserver.1"]
    for exported in poolserver.__all__:
        assert exported in page["library"]
    for outcome in Outcome:
        reason = re.sub(r"^(refused|timeout)_", "", outcome.name.lower())
        assert f"`{reason}`" in page["counting"] or reason.startswith("would_"), outcome
    assert "poolserver_accept_queue_length" in page["metrics"]


def test_every_page_is_in_the_table_of_contents() -> None:
    """index.md names it; the man page is for man(1)."""
    named = re.findall(r"^([\w-]+\*?)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    found = {page.stem for name in (*named, "index", "poolserver.1") for page in DOCS.glob(f"{name}.md")}
    assert found == {page.stem for page in DOCS.glob("*.md")}


def test_drop_in_is_one(tmp_path: Path) -> None:
    """What `systemctl edit` is given, beside a service of that name: systemd knows every word of it."""
    (block,) = blocks(DOCS / "deploy-systemd.md", "ini")
    folder = tmp_path / "hello.service.d"
    folder.mkdir()
    (folder / "override.conf").write_text(block.text)
    for unit in ("hello.service", "page-me@.service"):
        (tmp_path / unit).write_text("[Service]\nExecStart=/bin/true\n")
    command = ["systemd-analyze", "verify", str(tmp_path / "hello.service")]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
