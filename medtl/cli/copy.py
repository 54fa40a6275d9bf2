"""Copies a recipe for you to change: medtl copy RECIPE DEST."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from medtl.cli.flags import parse
from medtl.cli.run import recipe_file
from medtl.cli.terminal import say
from medtl.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Options of `medtl copy`."""

    recipe: Annotated[str, tyro.conf.Positional]
    """Name of the recipe."""

    dest: Annotated[Path, tyro.conf.Positional]
    """File or folder to copy it to."""


def main(words: list[str]) -> None:
    """Copies, and says how the copy is run."""
    options = parse(Options, words)
    say(f"Copied. Run it: python {copy_recipe(options.recipe, options.dest)} --help")


def copy_recipe(recipe: str, dest: Path) -> Path:
    """Copies a recipe to a file, or into a folder, and returns the copy.

    Raises:
        ConfigError: there is no such recipe, or the file exists.
    """
    source = recipe_file(recipe)
    file = dest / source.name if dest.is_dir() else dest
    if file.exists():
        raise ConfigError(f"{file.name} exists already and is not overwritten. Choose another place.")
    shutil.copyfile(source, file)
    return file
