"""A command is one file, and so is a recipe."""

from __future__ import annotations

from tests.one_file.conftest import Copy

COMMAND = '''"""Counts files: medtl count PATH."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from medtl.cli.flags import parse
from medtl.cli.terminal import say


@dataclass(frozen=True)
class Options:
    """Options of `medtl count`."""

    path: Annotated[Path, tyro.conf.Positional]
    """A folder."""


def main(words: list[str]) -> None:
    """Prints their number."""
    say(f"{len(list(parse(Options, words).path.iterdir()))} files")
'''

RECIPE = '''"""Greets a folder.

    medtl run greet --smoke
"""

from collections.abc import Sequence
from dataclasses import dataclass

import medtl
from medtl.cli import run_recipe, say
from medtl.config import Config as BaseConfig


@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Flags of this recipe."""

    word: str = "Hello"
    """What is said."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan("greet", config)
    with run.open(command):
        say(f"{config.word}, {run.folder.name}")


if __name__ == "__main__":
    run_recipe(__file__)
'''


def test_a_command(copy: Copy) -> None:
    copy.add("medtl/cli/count.py", COMMAND)
    assert "count     Counts files\n" in copy.medtl("--help")
    assert "A folder." in copy.medtl("count", "--help")
    assert copy.medtl("count", "sample_data/site_a/masks").split() == ["40", "files"]


def test_a_recipe(copy: Copy) -> None:
    copy.add("recipes/greet.py", RECIPE)
    assert "Greets a folder." in copy.medtl("list", "recipes")
    assert "What is said." in copy.medtl("run", "greet", "--help")
    assert copy.medtl("run", "greet", "--word", "Good day", "--out", "r").startswith("Good day, r")
    assert (copy.root / "r" / "DONE").exists()
