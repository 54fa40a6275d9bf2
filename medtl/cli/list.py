"""Lists what is available: medtl list recipes|methods|strategies|encoders|metrics [NAME] [--json]."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from medtl.cli.flags import parse
from medtl.cli.run import load_recipe, recipe_rows
from medtl.cli.terminal import say, table
from medtl.errors import ConfigError, near_matches

if TYPE_CHECKING:
    from medtl.adapters import Adapter

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """Options of `medtl list`."""

    what: Annotated[str, tyro.conf.Positional]
    """What to list: recipes, methods, strategies, encoders or metrics."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """One of them, to see its flags, its hyper-parameters or its definition; a pattern, to search the encoders."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


def main(words: list[str]) -> None:
    """Prints the list."""
    options = parse(Options, words)
    rows = listing(options.what, options.name)
    say(json.dumps(rows, indent=2) if options.json else table(rows))


def listing(what: str, name: str | None = None) -> Rows:
    """All that there is of one kind, or what is known of one of them.

    Raises:
        ConfigError: there is no such kind, or none of that name.
    """
    if what not in LISTS:
        raise ConfigError(f"There is no list of {what!r}. {near_matches(what, LISTS)}")
    return LISTS[what](name)


def _recipes(name: str | None) -> Rows:
    if name is None:
        return recipe_rows()
    return [
        {"flag": f"--{f.name.replace('_', '-')}", "type": str(f.type), "default": _shown(f.default)}
        for f in dataclasses.fields(load_recipe(name).Config)
    ]


def _methods(name: str | None) -> Rows:
    from medtl.adapters import adapter_class, available

    if name is not None:
        return _parameters(adapter_class(name))
    classes = {n: adapter_class(n) for n in available()}
    return [
        {
            "method": n,
            "classification": "yes" if {"binary", "multiclass"} <= c.tasks else "no",
            "segmentation": "yes" if "segmentation" in c.tasks else "no",
            "learns from": _learns_from(c),
            "what it does": (c.__doc__ or "").partition("\n")[0],
        }
        for n, c in classes.items()
    ]


def _learns_from(method: type[Adapter]) -> str:
    from medtl.adapters import TestTimeAdapter

    if issubclass(method, TestTimeAdapter):
        return "the target's scans, while predicting"
    if "source" not in method.needs:
        return "a trained model and the target's scans"
    if not method.phases:
        return "a trained model and the target's scans"
    few = "labelled_target" in method.needs
    parts = ["the source", *(["the target's scans"] if "target" in method.needs else [])]
    return " and ".join([*parts, *(["a few labels of the target"] if few else [])])


def _strategies(name: str | None) -> Rows:
    from medtl.strategies import available, strategy_class

    if name is not None:
        return _parameters(strategy_class(name))
    return [
        {"strategy": n, "what it does": (strategy_class(n).__doc__ or "").partition("\n")[0]}
        for n in available()
    ]


def _parameters(method: type) -> Rows:
    from medtl.discovery import hyper_parameters

    return [
        {"hyper-parameter": k, "type": _type_name(p.annotation), "default": str(p.default)}
        for k, p in hyper_parameters(method).items()
    ]


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _encoders(pattern: str | None) -> Rows:
    from medtl.models.weights.listing import list_encoders

    return list_encoders(pattern)


def _metrics(name: str | None) -> Rows:
    from medtl.evaluation.metrics.registry import MEASURES

    if name is not None and name not in MEASURES:
        raise ConfigError(f"There is no metric {name!r}. {near_matches(name, MEASURES)}")
    rows = {
        n: {
            "metric": n,
            "task": m.task,
            "title": m.title,
            "unit": {"distance": "mm or px", "volume": "ml or px"}.get(m.unit, m.unit),
            "better": m.better or "neither",
        }
        for n, m in MEASURES.items()
    }
    if name is None:
        return list(rows.values())
    about = rows[name] | {"compared": "yes" if MEASURES[name].paired else "no"}
    return [{"about": k, "is": v} for k, v in (about | {"definition": MEASURES[name].definition}).items()]


def _shown(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


LISTS: dict[str, Callable[[str | None], Rows]] = {
    "recipes": _recipes,
    "methods": _methods,
    "strategies": _strategies,
    "encoders": _encoders,
    "metrics": _metrics,
}
"""What can be listed."""
