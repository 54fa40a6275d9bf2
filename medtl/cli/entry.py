"""The commands. Standard library at import, tyro where a command is parsed, the rest where it runs."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from medtl.errors import ConfigError, MedtlError, near_matches

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 the data or the run failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    _log_to_stderr(debug)
    if not words or words[0] in ("-h", "--help"):
        say(_overview())
        return 0
    if words[0] == "--version":
        from medtl import __version__

        say(__version__)
        return 0
    try:
        if words[0] not in COMMANDS:
            raise ConfigError(f"There is no command {words[0]!r}. {near_matches(words[0], COMMANDS)}")
        COMMANDS[words[0]](words[1:])
    except SystemExit as stop:  # tyro: 0 after --help, 2 after a wrong flag
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        _complain("Stopped. A run goes on with --resume and its folder.")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            raise
        _complain(_explain(error))
        return error.exit_code if isinstance(error, MedtlError) else 1
    return 0


def run_recipe(file: str) -> None:
    """Entry of a recipe that is run as a script: `python recipes/adapt_classification.py [flags]`."""
    raise SystemExit(main(["run", file, *sys.argv[1:]]))


# Terminal: only the commands here and the recipes write to it.


def say(text: str = "") -> None:
    """Writes to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def on_terminal() -> bool:
    """Whether a progress bar makes sense."""
    return sys.stderr.isatty()


def progress(label: str) -> Callable[[int, int], None] | None:
    """A counter on the terminal that is called with (done, total); None where there is no terminal."""
    if not on_terminal():
        return None

    def show(done: int, total: int) -> None:
        sys.stderr.write(f"\r{label} {done}/{total}{chr(10) if done == total else ''}")
        sys.stderr.flush()

    return show


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as aligned columns; numbers to the right."""
    if not rows:
        return ""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = [[str(row.get(h, "")) for h in heads] for row in rows]
    widths = [max(len(h), *(len(c[i]) for c in cells)) for i, h in enumerate(heads)]
    right = [
        all(not c[i] or c[i].lstrip("+-").replace(".", "", 1).isdigit() for c in cells)
        for i in range(len(heads))
    ]

    def line(values: Sequence[str]) -> str:
        parts = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(heads), line(["-" * w for w in widths]), *map(line, cells)])


# Recipes


def recipes_folder() -> Path:
    """Where the recipes are: in the wheel, `medtl/recipes`; in a checkout, beside the package."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def recipe_names() -> list[str]:
    """All recipes, by file name."""
    return sorted(p.stem for p in recipes_folder().glob("*.py") if not p.stem.startswith("_"))


def load_recipe(name: str) -> ModuleType:
    """Imports a recipe by name, or a copy of one by its path."""
    path = Path(name)
    if path.suffix != ".py":
        if name not in recipe_names():
            raise ConfigError(f"There is no recipe {name!r}. {near_matches(name, recipe_names())}")
        path = recipes_folder() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"medtl_recipe_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"There is no recipe file {path.name!r} at the given place.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def parse_config(module: ModuleType, words: Sequence[str], prog: str) -> Any:
    """Builds a recipe's configuration: defaults < `--config file.yaml` < flags."""
    import tyro

    from medtl.config import from_dict, read_yaml

    words, file = _take_option(list(words), "--config")
    default = from_dict(module.Config, read_yaml(Path(file))) if file else module.Config()
    return tyro.cli(
        module.Config,
        prog=prog,
        description=(module.__doc__ or "")
        + "\n\nAlso: --config FILE reads these from YAML (flags win); --debug shows tracebacks.",
        args=_join_repeated(words),
        default=default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _run(words: list[str]) -> None:
    """Runs a recipe: medtl run RECIPE [flags]; `medtl run RECIPE --help` lists them."""
    if not words or words[0] in ("-h", "--help"):
        say(
            "usage: medtl run RECIPE [flags]\n\n"
            + _recipe_table()
            + "\n\nmedtl run RECIPE --help lists its flags."
        )
        return
    module = load_recipe(words[0])
    config = parse_config(module, words[1:], f"medtl run {Path(words[0]).stem}")
    module.main(config, words[1:])


def _copy(words: list[str]) -> None:
    """Copies a recipe to make it one's own: medtl copy RECIPE DEST."""
    from medtl.cli.commands import Copy

    options = _parse(Copy, words, "copy")
    if options.recipe not in recipe_names():
        raise ConfigError(
            f"There is no recipe {options.recipe!r}. {near_matches(options.recipe, recipe_names())}"
        )
    source = recipes_folder() / f"{options.recipe}.py"
    dest = options.dest / source.name if options.dest.is_dir() else options.dest
    if dest.exists():
        raise ConfigError(f"{dest.name} exists already and is not overwritten. Choose another place.")
    shutil.copyfile(source, dest)
    say(f"Copied. Run it: python {dest} --help")


def _inspect(words: list[str]) -> None:
    """Says what is in folders of scans, what was left out and why: medtl inspect PATH... [--out DIR] [--json]."""
    from medtl.cli.commands import Inspect, inspect_folders

    options = _parse(Inspect, words, "inspect")
    found = inspect_folders(options)
    say(json.dumps(found, indent=2) if options.json else _inspection_text(found))


def _predict(words: list[str]) -> None:
    """Applies a finished run to new scans: medtl predict RUN SCANS --out DIR."""
    from medtl.cli.commands import Predict
    from medtl.prediction.apply import apply_run

    options = _parse(Predict, words, "predict")
    done = apply_run(
        options.run,
        options.scans,
        options.out,
        model=options.model,
        rules=options.rules,
        maps=options.maps,
        seg=options.seg,
        flips=options.flips,
        progress=progress("Preparing scans"),
    )
    say(json.dumps(done, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in done.items()))


def _report(words: list[str]) -> None:
    """Makes an evaluation report of any tool's predictions or masks: medtl report TABLE --out DIR [--json]."""
    from medtl.cli.commands import Report, report

    options = _parse(Report, words, "report")
    results, page = report(options, progress=progress("Measuring masks"))
    if options.json:
        say(results.to_json().rstrip())
    else:
        say(table(results.summary_table()))
        say(f"\nReport: {page}")


def _list(words: list[str]) -> None:
    """Lists what there is: medtl list recipes|methods|strategies|encoders [NAME]."""
    from medtl.cli.commands import List, list_methods, list_strategies

    options = _parse(List, words, "list")
    makers: dict[str, Callable[[str | None], list[dict[str, Any]]]] = {
        "recipes": lambda _: [
            {"recipe": n, "what it does": _summary(load_recipe(n))} for n in recipe_names()
        ],
        "methods": list_methods,
        "strategies": list_strategies,
        "encoders": _list_encoders,
    }
    rows = makers[options.what](options.name)
    say(json.dumps(rows, indent=2) if options.json else table(rows))


def _list_encoders(pattern: str | None) -> list[dict[str, Any]]:
    from medtl.models.weights.listing import list_encoders

    return list_encoders(pattern)


def _doctor(words: list[str]) -> None:
    """Prints versions, devices, codecs, caches and weights as Markdown, to paste into a report: medtl doctor."""
    from medtl.cli.commands import Doctor, doctor

    options = _parse(Doctor, words, "doctor")
    facts = doctor()
    say(json.dumps(facts, indent=2) if options.json else _markdown(facts))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "inspect": _inspect,
    "run": _run,
    "copy": _copy,
    "predict": _predict,
    "report": _report,
    "list": _list,
    "doctor": _doctor,
}


def _parse(kind: type, words: Sequence[str], command: str) -> Any:
    import tyro

    return tyro.cli(
        kind,
        prog=f"medtl {command}",
        description=(COMMANDS[command].__doc__ or "").strip(),
        args=list(words),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _overview() -> str:
    lines = [f"  {name:<9} {(f.__doc__ or '').strip().partition(':')[0]}" for name, f in COMMANDS.items()]
    return (
        "usage: medtl COMMAND [flags]\n\nTake a model from one hospital's scans to another's, and know how far to "
        "trust it.\n\n"
        + "\n".join(lines)
        + "\n\nmedtl COMMAND --help says more. --debug shows tracebacks, --version the version.\n"
        "For research; not a medical device. Nothing leaves this machine."
    )


def _recipe_table() -> str:
    return table([{"recipe": n, "what it does": _summary(load_recipe(n))} for n in recipe_names()])


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


def _inspection_text(found: Mapping[str, Any]) -> str:
    parts = []
    for folder in found["folders"]:
        parts.append(
            f"{folder['folder']}: {folder['num_files']} files, {folder['num_volumes']} volumes or images"
        )
        parts.append(table(folder["groups"]))
        if folder["rejected"]:
            parts.append("Left out:")
            parts.append(table(folder["rejected"]))
        parts.append("")
    return "\n".join(parts).rstrip()


def _markdown(facts: Mapping[str, Any]) -> str:
    rows = [f"| {k} | {v} |" for k, v in facts.items()]
    return "\n".join(["| what | found |", "|---|---|", *rows])


def _take_option(words: list[str], flag: str) -> tuple[list[str], str | None]:
    """Takes `flag VALUE` or `flag=VALUE` out of the words."""
    for i, word in enumerate(words):
        if word == flag:
            if i + 1 == len(words):
                raise ConfigError(f"{flag} needs a file name.")
            return words[:i] + words[i + 2 :], words[i + 1]
        if word.startswith(f"{flag}="):
            return words[:i] + words[i + 1 :], word.partition("=")[2]
    return words, None


def _join_repeated(
    words: Sequence[str], flags: Sequence[str] = ("--source", "--hparams", "--classes")
) -> list[str]:
    """Writes `--source a --source b` as `--source a b`, so that both spellings work."""
    kept: list[str] = []
    values: dict[str, list[str]] = {}
    into: list[str] = kept
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in flags and word.startswith("--"):
            into = values.setdefault(flag, [])
            if equals:
                into.append(value)
        elif word.startswith("-") and len(word) > 1 and not word[1].isdigit():
            into = kept
            kept.append(word)
        else:
            into.append(word)
    return kept + [w for flag, found in values.items() for w in (flag, *found)]


def _explain(error: Exception) -> str:
    """One paragraph for the user, without the values of variables."""
    if isinstance(error, MedtlError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "The disk is full. Files that were being written were removed again, finished ones are whole. "
            "Free some space; a run then goes on with --resume and its folder."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        name, why = Path(str(error.filename)).name, os.strerror(error.errno)
        return f"{name} cannot be read or written: {why}. Check its permissions."
    if isinstance(error, MemoryError):
        return "Memory ran out. Use a smaller --batch-size or --image-size."
    return (
        f"Unexpected {type(error).__name__}. This is a fault of medtl: please report it with what `medtl doctor` "
        "prints and what `--debug` prints (check that for names of patients first)."
    )


def _complain(text: str) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    sys.stderr.write(
        textwrap.fill(
            f"error: {' '.join(text.split())}", width, break_long_words=False, break_on_hyphens=False
        )
        + "\n"
    )


def _log_to_stderr(debug: bool) -> None:
    root = logging.getLogger("medtl")
    for handler in [h for h in root.handlers if getattr(h, "medtl_cli", False)]:
        root.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.medtl_cli = True  # type: ignore[attr-defined]
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.propagate = False


if __name__ == "__main__":
    raise SystemExit(main())
