"""Names of many models, `<encoder>/<strategy>@<patients>`, and which models are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from medtl.evaluation.results import Results

MANY = 6
"""With more models than this, tables hold one row per model and curves are drawn for some of them."""


@dataclass(frozen=True)
class Name:
    """The parts of a model's name.

    Attributes:
        encoder: name of the encoder, or "".
        strategy: name of the strategy, or of the model.
        size: labelled training patients, or None.
    """

    encoder: str
    strategy: str
    size: int | None

    @property
    def group(self) -> str:
        """The name without the size."""
        return f"{self.encoder}/{self.strategy}" if self.encoder else self.strategy


def split_name(model: str) -> Name:
    """The parts of a model's name.

    Example:
        >>> split_name("resnet50/last:2@20")
        Name(encoder='resnet50', strategy='last:2', size=20)
        >>> split_name("source_only")
        Name(encoder='', strategy='source_only', size=None)
    """
    group, _, size = model.rpartition("@")
    if not group or not size.isdecimal():
        group, size = model, ""
    encoder, _, strategy = group.rpartition("/")
    return Name(encoder, strategy, int(size) if size else None)


def size_groups(models: Sequence[str], sizes: Mapping[str, int]) -> dict[str, dict[int, str]]:
    """By group of models, such as `probe`: the model of each number of labelled patients; empty without a series.

    Args:
        models: names of the models.
        sizes: labelled training patients by model, where the names do not say.
    """
    found: dict[str, dict[int, str]] = {}
    for model in models:
        number = sizes.get(model, split_name(model).size)
        if number is not None:
            found.setdefault(split_name(model).group, {})[number] = model
    ordered = {group: dict(sorted(by.items())) for group, by in found.items()}
    return ordered if any(len(by) > 1 for by in ordered.values()) else {}


def pairings(models: Sequence[str], sizes: Mapping[str, int], reference: str) -> dict[str, dict[str, str]]:
    """The comparisons by `Comparison.kind`: with one reference, or size by size and step by step."""
    groups = size_groups(models, sizes)
    if not groups:
        # With two models there is one comparison, which needs no other limits than its own.
        return {"reference": {m: reference for m in models if m != reference}} if len(models) > 2 else {}
    home = next((g for g, by in groups.items() if reference in by.values()), next(iter(groups)))
    same = {
        m: groups[home][n]
        for g, by in groups.items()
        for n, m in by.items()
        if g != home and n in groups[home]
    }
    steps = {m: before for by in groups.values() for before, m in pairwise(by.values())}
    return {"same_size": same, "previous_size": steps}


def sizes_of(results: Results) -> dict[str, dict[int, str]]:
    """`size_groups` of the results."""
    return size_groups(results.models, results.context.sizes)


def many(results: Results) -> bool:
    """Whether there are too many models to show each in full, or a series of sizes of the same models."""
    return len(results.models) > MANY or bool(sizes_of(results))


def first_model(results: Results, domain: str) -> str | None:
    """The first model that was taken to a domain, to count its cases by."""
    return next((m for m in results.models if results.main_blocks(m, domain)), None)
