"""A command is one file."""

from __future__ import annotations

import pytest

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


@pytest.mark.slow
def test_a_command(copy: Copy) -> None:
    copy.add("medtl/cli/count.py", COMMAND)
    assert "count     Counts files\n" in copy.medtl("--help")
    assert "A folder." in copy.medtl("count", "--help")
    assert copy.medtl("count", "sample_data/site_a/masks").split() == ["40", "files"]
