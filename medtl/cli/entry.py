"""Runs a command. Standard library at import; a command is imported when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from medtl.cli.flags import headline
from medtl.cli.run import recipe_names, renamed
from medtl.cli.terminal import complain, explanation, log_to_stderr, say
from medtl.errors import ConfigError, MedtlError, near_matches

_SHARED = {"entry", "flags", "terminal"}
"""Modules here that are not commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 the data or the run failed, 2 wrong usage."""
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
    try:
        command(words[0]).main(words[1:])
    except SystemExit as stop:  # tyro: 0 after --help, 2 after a wrong flag
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        complain("Stopped. Continue a run with --resume and its folder.")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            raise
        complain(explanation(error))
        return error.exit_code if isinstance(error, MedtlError) else 1
    return 0


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
