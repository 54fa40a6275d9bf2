"""Runs a command. Standard library at import; a command is imported when it is called."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from medtl.cli.flags import headline
from medtl.cli.run import recipe_names, renamed
from medtl.cli.signals import watched
from medtl.cli.terminal import complain, explanation, log_to_stderr, on_terminal, remark, say
from medtl.errors import ConfigError, MedtlError, near_matches

_SHARED = {"entry", "flags", "signals", "terminal"}
"""Modules here that are not commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 done, 1 the data or the run failed, 2 wrong usage, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    log_to_stderr(debug)
    if not words or words[0] in ("-h", "--help"):
        say(_overview())
        return 0
    if words[0] == "--version":
        from medtl import __version__

        say(__version__)
        return 0
    with watched() as stop:
        try:
            command(words[0]).main(words[1:])
        except BaseException as error:
            if stop.received is not None or isinstance(error, KeyboardInterrupt):
                if debug:
                    traceback.print_exception(error)
                if on_terminal():
                    sys.stderr.write("\n")  # below a counter or a bar
                remark(f"Stopped by {stop.cause}. {_what_remains(error, words)}")
                return stop.exit_code
            return _exit_code(error, debug)
    return 0


def _exit_code(error: BaseException, debug: bool) -> int:
    """Says what went wrong, and returns the exit code."""
    if isinstance(error, SystemExit):  # tyro: 0 after --help, 2 after a wrong flag
        return error.code if isinstance(error.code, int) else 2
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
        return 0
    if debug or not isinstance(error, Exception):
        raise error
    complain(explanation(error))
    return error.exit_code if isinstance(error, MedtlError) else 1


def _what_remains(error: BaseException, words: Sequence[str]) -> str:
    """What a stopped command leaves behind, and how its work goes on."""
    if notes := [note for note in getattr(error, "__notes__", ()) if "--resume" in note]:
        return str(notes[0])
    if words[0] != "run" and any(word.partition("=")[0] == "--out" for word in words):
        return "If the folder of --out is there, it is not complete: give the same command again, and it is filled."
    begun = "The run had not begun" if words[0] == "run" else "Nothing was lost"
    return f"{begun}: give the same command again."


def run_recipe(file: str) -> None:
    """Entry of a recipe that is run as a script: `python recipes/rank_encoders.py [flags]`."""
    raise SystemExit(main(["run", file, *sys.argv[1:]]))


def command_names() -> list[str]:
    """All commands, by file name."""
    names = (file.stem for file in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in names if not name.startswith("_") and name not in _SHARED)


def command(name: str) -> ModuleType:
    """The module of a command.

    Raises:
        ConfigError: there is no such command.
    """
    if name in command_names():
        return importlib.import_module(f"medtl.cli.{name}")
    if name in recipe_names():
        raise ConfigError(f"{name} is a recipe: write `medtl run {name}`.")
    unknown = f"There is no command {name!r}. {near_matches(name, command_names())}"
    raise ConfigError(renamed(name) or unknown)


def _overview() -> str:
    folder = Path(__file__).parent
    lines = [f"  {name:<9} {headline(folder / f'{name}.py').partition(':')[0]}" for name in command_names()]
    return (
        "usage: medtl COMMAND [flags]\n\nTake a model from one hospital's scans to another's, and know how far to "
        "trust it.\n\n"
        + "\n".join(lines)
        + "\n\nRun medtl COMMAND --help for details. --debug shows tracebacks, --version the version.\n"
        "For research; not a medical device. Nothing leaves this machine."
    )
