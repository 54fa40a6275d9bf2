"""Parses command lines: options are a dataclass, and each field is a flag."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from medtl.errors import ConfigError


def parse(
    kind: type, words: Sequence[str], *, prog: str = "", description: str = "", default: Any = None
) -> Any:
    """Builds an instance of `kind` from flags.

    Args:
        kind: a dataclass whose fields have docstrings.
        words: of the command line, without the command.
        prog: what `--help` calls the command; by default `medtl` and the name of the module of `kind`.
        description: what `--help` says of it; by default the module's docstring.
        default: the values where no flag says otherwise.

    Raises:
        SystemExit: after `--help`, or with code 2 after a wrong flag.
    """
    import tyro

    return tyro.cli(
        kind,
        prog=prog or f"medtl {kind.__module__.rpartition('.')[2]}",
        description=description or (sys.modules[kind.__module__].__doc__ or "").strip(),
        args=join_repeated(words, flags_of_several(kind)),
        config=(tyro.conf.FlagCreatePairsOff,),
        **({} if default is None else {"default": default}),
    )


def flags_of_several(kind: type) -> set[str]:
    """The flags of a dataclass that take several values: its fields that are tuples, but those without a flag."""
    return {
        f"--{name.replace('_', '-')}"
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if tuple in (get_origin(part) for part in (hint, *get_args(hint)))
        and get_origin(hint) is not Annotated
    }


def join_repeated(words: Sequence[str], flags: Collection[str]) -> list[str]:
    """Writes `--source a --source b` as `--source a b`, so that both spellings work for the given flags."""
    kept: list[str] = []
    values: dict[str, list[str]] = {}
    into: list[str] = kept
    for word in words:
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if flag in flags:
            into = values.setdefault(flag, [])
            if equals:
                into.append(value)
        elif word.startswith("-") and len(word) > 1 and not word[1].isdigit():
            into = kept
            kept.append(word)
        else:
            into.append(word)
    return kept + [w for flag, found in values.items() for w in (flag, *found)]


def take_option(words: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """Takes `flag VALUE` or `flag=VALUE` out of the words.

    Raises:
        ConfigError: nothing follows the flag.
    """
    for i, word in enumerate(words):
        if word == flag:
            if i + 1 == len(words):
                raise ConfigError(f"{flag} needs a file name.")
            return [*words[:i], *words[i + 2 :]], words[i + 1]
        if word.startswith(f"{flag}="):
            return [*words[:i], *words[i + 1 :]], word.partition("=")[2]
    return list(words), None


def headline(file: Path) -> str:
    """The first line of a module's docstring, read without importing the module."""
    found = re.search(r'^r?"""(.+?)(?:"""|$)', file.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].strip() if found else ""
