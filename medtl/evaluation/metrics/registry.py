"""Every metric by its name, found in the modules of this folder."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from medtl.errors import ConfigError
from medtl.evaluation.metrics.metric import KINDS, SECTIONS, TASKS, Metric

_PACKAGE = __name__.rpartition(".")[0]


def find_metrics() -> dict[str, Metric]:
    """The metrics in `METRICS` of every module beside this one, by name, in the order of the report.

    Raises:
        ConfigError: two metrics have one name.
    """
    names = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [
        importlib.import_module(f"{_PACKAGE}.{name}") for name in names if f"{_PACKAGE}.{name}" != __name__
    ]
    found: dict[str, Metric] = {}
    for module in modules:
        for metric in getattr(module, "METRICS", ()):
            if metric.name in found:
                raise ConfigError(
                    f"Two metrics are called {metric.name!r}; one of them is in {module.__name__}."
                )
            found[metric.name] = metric
    in_order = sorted(found.values(), key=lambda m: (TASKS.index(m.task), SECTIONS.index(m.section)))
    return {metric.name: metric for metric in in_order}


def headlines(task: str) -> tuple[str, ...]:
    """The metrics that rank the models of a task, the most important first."""
    found = [metric for metric in MEASURES.values() if metric.task == task and metric.headline]
    return tuple(metric.name for metric in sorted(found, key=lambda metric: metric.headline))


MEASURES = find_metrics()
"""Every metric by name, in the order of the report."""

__all__ = ["KINDS", "MEASURES", "Metric", "find_metrics", "headlines"]
