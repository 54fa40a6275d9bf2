"""What Google docstrings say of arguments and errors."""

from __future__ import annotations

import inspect
import re


def section(text: str, name: str) -> str:
    """The indented text under a heading such as `Args:`; empty without it."""
    found = re.search(rf"^{name}:\n((?:[ \t]+.*\n|\n)*)", inspect.cleandoc(text) + "\n", re.M)
    return found[1] if found else ""


def arguments_of(text: str, name: str = "Args") -> set[str]:
    """The names that a section explains; `a, b: ...` explains two."""
    heads = re.findall(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:", section(text, name), re.M)
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


def errors_of(text: str) -> set[str]:
    """The errors that `Raises:` names."""
    return arguments_of(text, "Raises")
