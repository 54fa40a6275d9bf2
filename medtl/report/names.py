"""Of many models: what is drawn of them, and in which colours."""

from __future__ import annotations

from medtl.evaluation.names import many, split_name
from medtl.evaluation.results import HEADLINES, Block, Results
from medtl.evaluation.statistics.compare import Comparison
from medtl.report.figures.svg import BOUND_COLOUR, COLOURS, REFERENCE_COLOUR

IN_VIEW = 5
"""Models whose curves are drawn then."""


def main_domain(results: Results) -> str:
    """`target` where there is external testing with labels, else `source`."""
    return "target" if any(b.domain == "target" and b.num_labelled for b in results.blocks) else "source"


def role(block: Block) -> str:
    """`External testing`, `Internal testing`, or what else the cases of a block are."""
    place = "External" if block.domain == "target" else "Internal"
    return f"{place} testing" if block.split == "test" else f"{place}, tuning cases"


def place_of(results: Results, domain: str = "") -> str:
    """What the main cases of a domain are (default: those that models are ranked by), as `role` says it."""
    domain = domain or main_domain(results)
    blocks = (b for m in results.models for b in results.main_blocks(m, domain))
    found = next((b for b in blocks if b.num_labelled), None)
    return role(found) if found else f"{'External' if domain == 'target' else 'Internal'} testing"


def main_block(results: Results, model: str, domain: str, finding: str | None = None) -> Block | None:
    """The block that speaks for a model and domain."""
    return next((b for b in results.main_blocks(model, domain) if b.finding == finding), None)


def main_comparison(
    results: Results,
    name: str = HEADLINES[0],
    domain: str = "",
    finding: str | None = None,
    kind: str = "reference",
) -> Comparison | None:
    """The comparison of all models on the main cases of a domain (default: that of external testing, if any)."""
    domain = domain or main_domain(results)
    blocks = [main_block(results, m, domain, finding) for m in results.models]
    places = {(domain, b.split, b.site, finding, name, kind) for b in blocks if b is not None}
    return next(
        (c for c in results.comparisons if (c.domain, c.split, c.site, c.finding, c.name, c.kind) in places),
        None,
    )


def ranked(results: Results) -> list[str]:
    """Every model, the best first; without external testing by internal testing; upper bounds last."""
    findings = dict.fromkeys(b.finding for b in results.blocks)
    value: dict[str, float] = {}
    for model in results.models:
        blocks = [main_block(results, model, main_domain(results), f) for f in findings]
        found = [m.estimate.value for b in blocks if b and (m := b.get(HEADLINES[0], cls=None))]
        known = [v for v in found if v is not None]
        value[model] = sum(known) / len(known) if known else -1.0
    bounds = results.context.target_trained
    return sorted(results.models, key=lambda m: (m in bounds, -value[m]))


def in_view(results: Results) -> tuple[str, ...]:
    """The models whose curves are drawn: all, or the reference, the one to keep, and the best of each strategy."""
    if not many(results):
        return results.models
    kept = str((results.context.keep or {}).get("model", ""))
    chosen = [m for m in (results.reference_model, kept) if m in results.models]
    seen = {split_name(kept).strategy}
    for model in ranked(results):
        strategy = split_name(model).strategy
        if model not in chosen and strategy not in seen and model not in results.context.target_trained:
            seen.add(strategy)
            chosen.append(model)
    bounds = [m for m in results.context.target_trained if m in results.models]
    chosen = [*dict.fromkeys(str(m) for m in chosen)][: IN_VIEW - len(bounds[:1])] + bounds[:1]
    return tuple(m for m in results.models if m in chosen)


def strategy_colour(results: Results, strategy: str) -> str:
    """The colour of a strategy where there are many models; those in view come first, so that theirs differ."""
    shown = [split_name(m).strategy for m in in_view(results) if m != results.reference_model]
    every = list(dict.fromkeys([*shown, *(split_name(m).strategy for m in results.models)]))
    return COLOURS[every.index(strategy) % len(COLOURS)]


def colour(results: Results, model: str) -> str:
    """The model's colour in every figure; with many models that of its strategy."""
    if model == results.reference_model:
        return REFERENCE_COLOUR
    bounds = results.context.target_trained
    if model in bounds:
        return BOUND_COLOUR
    if many(results):
        return strategy_colour(results, split_name(model).strategy)
    others = [m for m in results.models if m != results.reference_model and m not in bounds]
    return COLOURS[others.index(model) % len(COLOURS)]
