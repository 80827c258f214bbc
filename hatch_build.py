"""Puts the manual pages into the wheel, where `make man` has made them (as `make dist` does): man(1) finds them."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPages(BuildHookInterface):
    """Called by hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """``shared_data`` is relative to the environment's prefix, as in ``venv/share/man``."""
        for page in Path(self.root, "docs", "_build", "man").glob("*.[1-9]"):
            build_data["shared_data"][str(page)] = f"share/man/man{page.suffix[1:]}/{page.name}"
