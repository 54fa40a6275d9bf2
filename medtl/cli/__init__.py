"""The commands, one file each, found by its name. What they do is importable without a terminal.

A command is a file here with a docstring whose first line says what it does, a `main(words)`, and, unless the words are
its own matter, a dataclass `Options` with its flags. Only this package and the recipes write to the terminal.
"""

from medtl.cli.entry import command, command_names, main, run_recipe
from medtl.cli.run import load_recipe, parse_config, recipe_names
from medtl.cli.terminal import on_terminal, progress, say, table

__all__ = [
    "command",
    "command_names",
    "load_recipe",
    "main",
    "on_terminal",
    "parse_config",
    "progress",
    "recipe_names",
    "run_recipe",
    "say",
    "table",
]
