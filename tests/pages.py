"""The pages of the documentation as their reader meets them: blocks, files to write, commands to type."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]

_BLOCK = re.compile(
    r"(?:`(?P<file>[^`\n]+\.(?:py|toml))`[^\n`]*:\n\n)?^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
"""A fenced block, and the name of the file that it is said to be."""


class Block(NamedTuple):
    """What stands between two fences."""

    page: Path
    line: int
    language: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} ({self.language})"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages, or in any."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start("indent")) + 1,
            found["language"],
            Path(found["file"] or "").name,
            textwrap.dedent(found["text"]),
        )
        for found in _BLOCK.finditer(text)
        if not languages or found["language"] in languages
    ]


def outside(page: Path) -> str:
    """The page's text without its blocks."""
    return _BLOCK.sub("", page.read_text())


def typed(page: Path) -> list[str]:
    """Every command that a shell is shown to be given."""
    lines = []
    for block in blocks(page, "console", "sh"):
        shown = block.text.splitlines()
        lines += [line.removeprefix("$ ") for line in shown if block.language == "sh" or line.startswith("$ ")]
    return lines


def commands(page: Path) -> list[str]:
    """Those that are calls of poolserver."""
    return [line for line in typed(page) if _program(line) == "poolserver"]


def _program(line: str) -> str:
    words = [word for word in shlex.split(line, comments=True) if "=" not in word or word.startswith("-")]
    return Path(words[0]).name if words else ""


def write_files(page: Path, folder: Path) -> None:
    """What the page's reader has in the folder: the tutorial's files, those that the page names."""
    for source in (DOCS / "tutorial.md", page):
        for block in blocks(source, "python", "toml"):
            if block.file:
                (folder / block.file).write_text(block.text)
