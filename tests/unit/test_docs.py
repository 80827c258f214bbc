"""What README and docs/ tell people to write is what poolserver takes: configurations, commands, handlers, links."""

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import poolserver
from poolserver import cli, handlers, tls
from poolserver.address import parse
from poolserver.config import Loaded, Option, load
from poolserver.rows import Outcome
from poolserver.sections import SECTIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
import generated  # noqa: E402 - it is beside the pages, not beside the tests

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]

BLOCK = re.compile(
    r"(?:`(?P<file>[^`\n]+\.(?:py|toml))`[^\n]*:\n\n)?^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
"""A fenced block, and the name of the file that it is said to be."""

SETTING = re.compile(r"--set (?!section\.key)([a-z]+\.[a-z0-9_]+)=([^\s`]+)")
COMMAND = re.compile(
    r"^(?:\$ | {4})((?:[A-Z_]+=\S+ )*(?:\S*/)?poolserver [-a-z].*)$|^(/\S*/poolserver .*)$", re.MULTILINE
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

OF_A_SHELL = {"|", "&", "&&", ">", "2>"}


def blocks(page: Path, kind: str) -> list[tuple[str, str]]:
    """The name, if it has one, and the text of each block of a kind."""
    found = BLOCK.finditer(page.read_text())
    return [(Path(each["file"] or "").name, textwrap.dedent(each["text"])) for each in found if each["kind"] == kind]


def commands(page: Path) -> list[str]:
    """Every call of poolserver that the page shows."""
    return [found[1] or found[2] for found in COMMAND.finditer(page.read_text())]


def name(value: object) -> str | None:
    return value.stem if isinstance(value, Path) else None


FILES = [(page, text) for page in PAGES for _, text in blocks(page, "toml")]
SETTINGS = [(page, *found.groups()) for page in PAGES for found in SETTING.finditer(page.read_text())]
SHOWN = [page for page in PAGES if commands(page)]


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
    for source in (DOCS / "tutorial.md", page):
        for file, text in [*blocks(source, "python"), *blocks(source, "toml")]:
            if file:
                (tmp_path / file).write_text(text)
    for line in re.findall(r"^\$ (openssl req .*)$", page.read_text(), re.MULTILINE):
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
    for file, text in blocks(page, "python"):
        compile(text, f"{page.name}: {file}", "exec")


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
    for section, keys in SECTIONS.items():
        for key in keys:
            assert f"### `{section}.{key}`\n\n" in page["configuration"]
            assert generated.sample_notes()[f"{section}.{key}"]
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


class TestContainersPage:
    """docs/containers.md: what goes into an image, and into a cluster."""

    text = (DOCS / "containers.md").read_text()

    def test_image_runs_a_command_of_ours(self) -> None:
        """ENTRYPOINT with CMD, and HEALTHCHECK, in the form that needs no shell."""
        pattern = re.compile(r"\b(HEALTHCHECK|ENTRYPOINT|CMD)\b[^\[\n]*(\[.*\])$", re.MULTILINE)
        found: dict[str, Any] = {word: json.loads(words) for word, words in pattern.findall(self.text)}
        for words in (found["ENTRYPOINT"] + found["CMD"], found["HEALTHCHECK"]):
            assert words[0] == "poolserver"
            assert cli.cli.commands[words[1]].make_context(words[1], words[2:])

    def test_cluster_gives_it_the_time_that_it_may_take(self, tmp_path: Path) -> None:
        """The configuration in the manifest loads, and what stands around it agrees with it."""
        inner = re.search(r"^  hello\.toml: \|\n((?:    .*\n|\n)+)", self.text, re.MULTILINE)
        assert inner is not None
        path = tmp_path / "hello.toml"
        path.write_text(textwrap.dedent(inner[1]))
        settings = load(path, {}, {}).config
        grace = re.search(r"terminationGracePeriodSeconds: (\d+)", self.text)
        assert grace is not None
        assert settings.timeouts.graceful + settings.timeouts.lame_duck + 5 <= int(grace[1])
        ports = re.findall(r"containerPort: (\d+)", self.text)
        urls = (*settings.server.bind, settings.metrics.bind)
        assert [url.rpartition(":")[2] for url in urls] == ports
        for words in re.findall(r"(?:args|command): (\[.*\])$", self.text, re.MULTILINE):
            given = [word for word in json.loads(words) if word != "poolserver"]
            assert cli.cli.commands[given[0]].make_context(given[0], given[1:])
        folders = re.findall(r"mountPath: (\S+?)\}", self.text)
        assert os.path.dirname(settings.control.socket) in folders  # noqa: PTH120 - of a path that is not here
