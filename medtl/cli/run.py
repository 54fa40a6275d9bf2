"""Runs a recipe: medtl run RECIPE [flags]; `medtl run RECIPE --help` lists them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from medtl.cli import flags
from medtl.cli.terminal import say, table
from medtl.errors import ConfigError, near_matches

RENAMED = {
    "adapt_classification": "adapt --labels CSV",
    "adapt_segmentation": "adapt --masks DIR",
    "finetune_classification": "finetune --labels CSV",
    "finetune_segmentation": "finetune --masks DIR",
    "compare_methods": "compare --labels CSV",
}
"""Recipes of earlier versions, and what is written in their place."""


def main(words: list[str]) -> None:
    """Runs a recipe, or lists them."""
    if not words or words[0] in ("-h", "--help"):
        head = "usage: medtl run RECIPE [flags]"
        say(f"{head}\n\n{table(recipe_rows())}\n\nmedtl run RECIPE --help lists its flags.")
        return
    module = load_recipe(words[0])
    config = parse_config(module, words[1:], f"medtl run {Path(words[0]).stem}")
    module.main(config, words[1:])


def recipes_folder() -> Path:
    """Where the recipes are: in the wheel, `medtl/recipes`; in a checkout, beside the package."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def recipe_names() -> list[str]:
    """All recipes, by file name."""
    return sorted(p.stem for p in recipes_folder().glob("*.py") if not p.stem.startswith("_"))


def recipe_rows() -> list[dict[str, str]]:
    """All recipes with what they do; none is imported."""
    names = recipe_names()
    return [
        {"recipe": name, "what it does": flags.headline(recipes_folder() / f"{name}.py")} for name in names
    ]


def recipe_file(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ConfigError: there is none of that name; where it was renamed, the error says how.
    """
    if name not in recipe_names():
        unknown = f"There is no recipe {name!r}. {near_matches(name, recipe_names())}"
        raise ConfigError(renamed(name) or unknown)
    return recipes_folder() / f"{name}.py"


def renamed(name: str) -> str:
    """What a user is told who writes the name of a recipe of an earlier version; empty for any other name."""
    line = RENAMED.get(name, "")
    new = line.partition(" ")[0]
    if name in recipe_names() or new not in recipe_names():
        return ""
    return (
        f"The recipe {name} is now part of {new}, which takes labels and masks alike. Write `medtl run {line} ...`; "
        f"`medtl run {new} --help` lists its flags."
    )


def load_recipe(name: str) -> ModuleType:
    """Imports a recipe by name, or a copy of one by its path.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name) if name.endswith(".py") else recipe_file(name)
    if not path.is_file():
        raise ConfigError(renamed(path.stem) or f"There is no recipe file {path.name!r} at the given place.")
    spec = importlib.util.spec_from_file_location(f"medtl_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def parse_config(module: ModuleType, words: Sequence[str], prog: str) -> Any:
    """Builds a recipe's configuration: defaults < `--config file.yaml` < flags."""
    from medtl.config import from_dict, read_yaml

    words, file = flags.take_option(words, "--config")
    default = from_dict(module.Config, read_yaml(Path(file))) if file else module.Config()
    more = "\n\nAlso: --config FILE reads these from YAML (flags win); --debug shows tracebacks."
    return flags.parse(
        module.Config, words, prog=prog, description=(module.__doc__ or "") + more, default=default
    )
