"""What README and docs/ tell people to write is what the configuration takes."""

import re
from pathlib import Path

import pytest

from poolserver.config import Option, load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"--set ([a-z]+\.[a-z0-9_]+)=([^\s`]+)")

FILES = [(page, found[1]) for page in PAGES for found in TOML.finditer(page.read_text())]
SETTINGS = [(page, found[1], found[2]) for page in PAGES for found in SETTING.finditer(page.read_text())]


def name(value: object) -> str | None:
    return value.stem if isinstance(value, Path) else None


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
    """The fences and options are found."""
    assert FILES
    assert SETTINGS
