"""The cost of training and prediction, beside quality."""

from __future__ import annotations

from medtl.evaluation.statistics.estimate import join
from medtl.report.parts import DASH, Section, TableBuilder
from medtl.report.view import View

ORDER = 75
_SPACE = "\N{NO-BREAK SPACE}"


def section(view: View) -> Section | None:
    """One row per model, the best first, and the models that no equally fast model surpasses."""
    costs = view.results.context.costs
    if not costs:
        return None
    quality = {c.model: view.headline(c.model) for c in costs}
    value = {
        m: q.estimate.value for m, q in quality.items() if q is not None and q.estimate.value is not None
    }
    heads = ("Training", "Prediction, per case", "Peak memory", "Parameters", "Trained")
    caption = f"Cost beside quality, {view.place().lower()}"
    table = TableBuilder(caption, ("Model", view.headline_title, *heads))
    for cost in sorted(costs, key=lambda c: -value.get(c.model, -1.0)):
        measure = quality[cost.model]
        table.row(
            view.name(cost.model),
            table.number(measure.estimate if measure else None),
            duration(cost.train_seconds),
            duration(cost.predict_seconds_per_case),
            memory(cost.peak_memory_mb),
            count(cost.parameters),
            count(cost.trained_parameters),
        )
    table.notes.append(
        "Mean over training seeds, on the machine of this run. Trained: parameters that training changed."
    )
    seconds = {c.model: c.train_seconds for c in costs if c.train_seconds is not None and c.model in value}
    front = [
        m
        for m in seconds
        if not any(seconds[o] <= seconds[m] and value[o] > value[m] for o in seconds if o != m)
    ]
    front.sort(key=lambda m: seconds[m])
    text: tuple[str, ...] = ()
    if len(seconds) > 1:
        text = (
            f"No model that trains as fast as {join(front, 'or')} has a higher value. Differences may be due to "
            "chance: see the paired comparison.",
        )
    return Section("costs", "Cost beside quality", text=text, tables=(table.build(),))


def duration(seconds: float | None) -> str:
    """Formats seconds.

    Example:
        >>> [duration(s).replace(_SPACE, " ") for s in (0.0123, 4.2, 312, 7500)]
        ['12 ms', '4.2 s', '5 min 12 s', '2 h 5 min']
    """
    if seconds is None:
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 1:
        text = f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
    elif seconds < 59.5:
        text = f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    else:
        text = f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    return text.replace(" ", _SPACE)


def memory(megabytes: float | None) -> str:
    """Formats megabytes.

    Example:
        >>> [memory(m).replace(_SPACE, " ") for m in (312.4, 2048)]
        ['312 MB', '2.0 GB']
    """
    if megabytes is None:
        return DASH
    text = f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"
    return text.replace(" ", _SPACE)


def count(number: int | None) -> str:
    """Formats a count.

    Example:
        >>> [count(n).replace(_SPACE, " ") for n in (4098, 23_500_000, 0)]
        ['4.1 k', '23.5 M', '0']
    """
    if number is None:
        return DASH
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{_SPACE}{unit}"
    return str(number)
