"""The commands. What they do is importable without a terminal; only this package and the recipes write to it."""

from medtl.cli.entry import (
    COMMANDS,
    load_recipe,
    main,
    on_terminal,
    parse_config,
    progress,
    recipe_names,
    recipes_folder,
    run_recipe,
    say,
    table,
)

__all__ = [
    "COMMANDS",
    "load_recipe",
    "main",
    "on_terminal",
    "parse_config",
    "progress",
    "recipe_names",
    "recipes_folder",
    "run_recipe",
    "say",
    "table",
]
