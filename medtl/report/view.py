"""The view of the results that every section and figure of a report gets: prepared once for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medtl.evaluation.metrics.registry import MEASURES
from medtl.evaluation.names import many, sizes_of, split_name
from medtl.evaluation.results import Block, Difference, Measure, Results
from medtl.evaluation.statistics.compare import Comparison
from medtl.evaluation.statistics.estimate import format_number
from medtl.report.overlays import Overlay
from medtl.report.parts import BOUND, Cell
from medtl.report.svg import BOUND_COLOUR, COLOURS, REFERENCE_COLOUR, shorten

IN_VIEW = 5
"""Models whose curves are drawn where there are many."""
MOST_COLUMNS = 4
"""Structures that stand side by side as columns; with more, their mean alone does."""
MOST_PANELS = 3
"""Structures that have a panel of their own in figures of all models; with more, their mean alone does."""
WHOLE = "mean"
"""Where a number is the mean over the structures."""
PLACES = {"target": "External testing", "source": "Internal testing"}
SIDES = {"target": "external", "source": "internal"}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: the metric; cls and kind as in `Measure`.
        head: what stands above them.
    """

    name: str
    cls: str | None
    kind: str | None
    head: str


class View:
    """The results, prepared for the page.

    Attributes:
        results: what the page is made from.
        overlays: pictures of the worst segmentations.
        masks: whether this is a segmentation.
        sizes: by group of models, the model of each number of labelled patients; empty without such a series.
        many: whether there are too many models to show each in full.
        domain: where models are judged: `target` where there is external testing with labels, else `source`.
        parts: what numbers are about: the findings, or the structures and None for the mean over several; (None,)
            where there is one thing to find.
        whole: the part that speaks for all of them, by which models are ranked.
        headlines: the metrics that models are ranked by, the first one first.
        bounds: models that have seen target labels.
        reference: the model that others are compared with, or "".
        kept: the model that the rule keeps, or "".
        models: the models in the order of the tables: with many the best first.
        drawn: the models whose curves are drawn: all, or the reference, the one to keep and the best of each strategy.
        some: says in captions that some of the models are drawn, or "".
        percent: the confidence level, for captions.
    """

    def __init__(self, results: Results, overlays: Sequence[Overlay] = ()) -> None:
        context = results.context
        self.results, self.overlays = results, tuple(overlays)
        self.masks, self.sizes, self.many = results.segmentation is not None, sizes_of(results), many(results)
        self._main = {(m, d): results.main_blocks(m, d) for m in results.models for d in PLACES}
        judged = any(b.domain == "target" and b.num_labelled for b in results.blocks)
        self.domain = "target" if judged else "source"
        findings = dict.fromkeys(b.finding for b in results.blocks)
        self.parts: tuple[str | None, ...] = tuple(findings)
        if self.masks:
            self.parts = (*results.classes, *([None] if len(results.classes) > 1 else []))
        self.whole = self.parts[-1] if self.masks else None
        used = {m.name for b in results.blocks for m in b.measures}
        self._used = {name: metric for name, metric in MEASURES.items() if name in used}
        self.headlines = tuple(
            sorted((n for n, m in self._used.items() if m.headline), key=lambda n: MEASURES[n].headline)
        )
        self.bounds = context.target_trained
        self.reference = results.reference_model or ""
        self.kept = str((context.keep or {}).get("model", ""))
        self.some = (
            " With so many models, some are drawn: the reference and the best of each strategy."
            if self.many
            else ""
        )
        self.percent = f"{100 * results.level:g} %"
        ranked = self._ranked()
        self.models = ranked if self.many else results.models
        self.drawn = self._drawn(ranked) if self.many else results.models
        self._colours = self._paint()

    def _ranked(self) -> tuple[str, ...]:
        """Every model, the best first; upper bounds last."""
        value: dict[str, float] = {}
        for model in self.results.models:
            parts = (self.whole,) if self.masks else self.parts
            found = [m.estimate.value for p in parts if (m := self.headline(model, part=p))]
            known = [v for v in found if v is not None]
            value[model] = sum(known) / len(known) if known else -1.0
        return tuple(sorted(self.results.models, key=lambda m: (m in self.bounds, -value[m])))

    def _drawn(self, ranked: Sequence[str]) -> tuple[str, ...]:
        models = self.results.models
        chosen = [m for m in (self.reference, self.kept) if m in models]
        seen = {split_name(self.kept).strategy}
        for model in ranked:
            strategy = split_name(model).strategy
            if model not in chosen and strategy not in seen and model not in self.bounds:
                seen.add(strategy)
                chosen.append(model)
        bounds = [m for m in self.bounds if m in models][:1]
        chosen = [*list(dict.fromkeys(chosen))[: IN_VIEW - len(bounds)], *bounds]
        return tuple(m for m in models if m in chosen)

    def _paint(self) -> dict[str, str]:
        """The colour of each model; with many models that of its strategy, those that are drawn first."""
        models = self.results.models
        plain = [m for m in models if m not in (self.reference, *self.bounds)]
        shown = [split_name(m).strategy for m in self.drawn if m != self.reference] if self.many else []
        every = list(dict.fromkeys([*shown, *(split_name(m).strategy for m in models)]))
        self._strategies = {s: COLOURS[k % len(COLOURS)] for k, s in enumerate(every)}
        own = {m: COLOURS[k % len(COLOURS)] for k, m in enumerate(plain)}
        if self.many:
            own = {m: self.strategy_colour(m) for m in plain}
        return own | dict.fromkeys(self.bounds, BOUND_COLOUR) | {self.reference: REFERENCE_COLOUR}

    # Models

    def colour(self, model: str) -> str:
        """The model's colour in every figure."""
        return self._colours[model]

    def strategy_colour(self, model: str) -> str:
        """The colour of a model's strategy."""
        return self._strategies[split_name(model).strategy]

    def label(self, model: str) -> str:
        """The model's name in every figure; an upper bound says so."""
        return shorten(model) + (f" ({BOUND})" if model in self.bounds else "")

    def name(self, model: str, rest: str | None = "", *, again: bool = False) -> Cell:
        """The model's name in a table, with the finding that a row is about; an upper bound says so."""
        tag, tone = BOUND if model in self.bounds else "", "again" if again else ""
        return Cell(model + (f", {rest}" if rest else ""), tag=tag, tone=tone)

    def marked(self, model: str, finding: str | None = None, *, bound: bool = False) -> str:
        """The model's name with what it is: kept, the reference, and, if asked for, an upper bound."""
        said = {"kept": model == self.kept, "reference": model == self.reference}
        marks = [word for word, true in (said | {BOUND: bound and model in self.bounds}).items() if true]
        return model + (f", {finding}" if finding else "") + (f" ({', '.join(marks)})" if marks else "")

    # Places

    def blocks(self, domain: str = "", *, labelled: bool = True, drawn: bool = False) -> list[Block]:
        """The main blocks of a domain (default: of both), model by model, and finding by finding.

        Args:
            domain: `target`, `source`, or "" for both.
            labelled: leave out blocks without a reference standard.
            drawn: those of the models whose curves are drawn alone.
        """
        models = self.drawn if drawn else self.models
        found = [b for d in ((domain,) if domain else PLACES) for m in models for b in self._main[m, d]]
        return [b for b in found if b.num_labelled or not labelled]

    def blocks_of(self, model: str, domain: str) -> list[Block]:
        """The main blocks of one model, finding by finding."""
        return self._main[model, domain]

    def block(self, model: str, domain: str = "", finding: str | None = None) -> Block | None:
        """The block that speaks for a model and a domain (default: where models are judged)."""
        found = self._main.get((model, domain or self.domain), [])
        return next((b for b in found if b.finding == finding), None)

    def role(self, block: Block) -> str:
        """`External testing`, `Internal testing`, or what else the cases of a block are."""
        place = PLACES[block.domain]
        return place if block.split == "test" else place.replace(" testing", ", tuning cases")

    def place(self, domain: str = "") -> str:
        """What the main cases of a domain are (default: where models are judged): of the first model tested there."""
        domain = domain or self.domain
        blocks = sorted(self.blocks(domain), key=lambda b: b.split != "test")
        return self.role(blocks[0]) if blocks else PLACES[domain]

    def sites(self) -> list[Block]:
        """The labelled test cases of single sites, where there is more than what the main blocks show."""
        blocks = [b for b in self.results.blocks if b.site and b.split == "test" and b.num_labelled]
        places = {(b.domain, b.site) for b in blocks}
        few = len(places) < 2 or (self.many and len(places) == len({d for d, _ in places}))
        return [] if few else [b for b in blocks if b.model in self.drawn]

    # Metrics

    def metrics(self, section: str) -> list[str]:
        """The metrics of a section that the results have, in the order of the registry."""
        return [name for name, metric in self._used.items() if metric.section == section]

    def title(self, name: str) -> str:
        """A metric's title with its unit; other words in brackets are left to the definitions."""
        metric, rules = MEASURES[name], self.results.segmentation
        title = metric.title.partition(" (")[0]
        if not metric.unit:
            return title
        units = {"distance": rules.unit, "volume": rules.volume_unit} if rules is not None else {}
        if rules is not None and metric.unit == "tolerance":
            widths = {f"{t:g} {rules.unit}" for t in rules.tolerance.values()}
            return f"{title} ({widths.pop()})" if len(widths) == 1 else title
        unit = units.get(metric.unit, metric.unit)
        if unit == "px" and metric.unit == "volume":
            title = title.replace("Volume", "Area").replace("volume", "area")
        return f"{title} ({unit})"

    def head(
        self, name: str, cls: str | None = None, kind: str | None = None, stage: str | None = None
    ) -> str:
        """The head of a column of numbers."""
        title = self.title(name)
        if cls is not None and "one class" in title:
            title, cls = title.replace("one class", cls), None
        title = f"Median {title}" if kind == "median" else title
        more = (cls, None if kind in (None, "median") else kind.replace("_", " "), stage)
        return ", ".join([title, *(word for word in more if word)])

    def columns(self, section: str) -> list[Column]:
        """The columns of a section's tables: of every metric that the registry puts there, and the results have.

        With masks the structures are rows; else the classes are columns.
        """
        found: dict[tuple[str, str | None, str | None], None] = {}
        for name in self.metrics(section):
            for block in self.results.blocks:
                for m in block.measures:
                    if m.name == name:
                        found[name, None if self.masks else m.cls, m.kind] = None
        # A kind is named where there are several of a metric.
        kinds = Counter(name for name, cls, kind in found if kind not in (None, "median"))
        return [
            Column(name, cls, kind, self.head(name, cls, None if kinds[name] == 1 else kind))
            for name, cls, kind in found
        ]

    def get(
        self, block: Block | None, column: Column, part: str | None = None, stage: str | None = None
    ) -> Measure | None:
        """The number of a block for a column."""
        if block is None:
            return None
        cls = part if self.masks else column.cls
        return block.get(column.name, cls=cls, kind=column.kind, stage=stage)

    def brief(self) -> list[tuple[Column, str | None]]:
        """Column and part of what stands where there is room for few: the main metrics, of structures side by side."""
        columns = [c for s in ("discrimination", "calls", "overlap", "surfaces") for c in self.columns(s)]
        columns = [c for c in columns if MEASURES[c.name].main and c.kind is None]
        columns.sort(key=lambda c: MEASURES[c.name].headline or len(MEASURES))
        if not self.masks:
            return [(c, None) for c in columns]
        parts = self.results.classes if len(self.results.classes) <= MOST_COLUMNS else (self.whole,)
        return [(replace(c, head=f"{c.head}, {p or WHOLE}"), p) for c in columns for p in parts]

    def headline(
        self, model: str, domain: str = "", *, part: str | None = "", name: str = ""
    ) -> Measure | None:
        """A headline metric of a model (default: the first), where it has a value.

        Args:
            model: its name.
            domain: `source` or `target` (default: where models are judged).
            part: finding or structure (default: the one that speaks for all).
            name: the metric.
        """
        part = self.whole if part == "" else part
        block = self.block(model, domain, None if self.masks else part)
        name = name or next(iter(self.headlines), "")
        found = block.get(name, cls=part if self.masks else None, kind=None) if block is not None else None
        return found if found is not None and found.estimate.value is not None else None

    def part_title(self, name: str, part: str | None) -> str:
        """`Dice, nucleus`, and `Mean Dice` where it is the mean over the structures."""
        if not self.masks:
            return self.title(name)
        return f"{self.title(name)}, {part}" if part is not None else f"Mean {self.title(name)}"

    def rankings(self, finding: str | None) -> dict[tuple[str, str | None], Comparison]:
        """Comparisons with the reference, by metric and part: of each headline metric, or of each structure.

        With masks the mean over the structures comes first, and the structures follow where they are few.
        """
        asked = [(name, finding) for name in self.headlines]
        if self.masks:
            few = self.parts if len(self.results.classes) <= MOST_COLUMNS else ()
            asked = [(name, p) for name in self.headlines[:1] for p in dict.fromkeys([self.whole, *few])]
        return {(n, p): c for n, p in asked if (c := self.comparison(n, part=p)) is not None}

    def panels(self) -> list[tuple[str, str | None, str]]:
        """What figures of sites and seeds have a panel for: metric, structure or None, and what it is called."""
        if not self.masks:
            return [(name, None, self.title(name)) for name in self.headlines]
        parts = self.results.classes if len(self.results.classes) <= MOST_PANELS else (self.whole,)
        return [(name, p, shorten(self.part_title(name, p))) for name in self.headlines[:1] for p in parts]

    @property
    def headline_title(self) -> str:
        """What `headline` is."""
        title = MEASURES[self.headlines[0]].title if self.headlines else ""
        return f"Mean {title}" if self.masks else title

    def comparison(
        self, name: str = "", *, part: str | None = "", kind: str = "reference"
    ) -> Comparison | None:
        """All models compared where they are judged, on a headline metric (default: the first)."""
        part, name = self.whole if part == "" else part, name or next(iter(self.headlines), "")
        finding, cls = (None, part) if self.masks else (part, None)
        blocks = [self.block(m, finding=finding) for m in self.models]
        places = {(b.domain, b.split, b.site) for b in blocks if b is not None}
        return next(
            (
                c
                for c in self.results.comparisons
                if (c.domain, c.split, c.site) in places
                and (c.finding, c.cls, c.name, c.kind) == (finding, cls, name, kind)
            ),
            None,
        )

    def differences(self, domain: str, *, blank: bool = False) -> list[Difference]:
        """Paired differences on the main cases of a domain; of those by stage the last stage alone.

        Args:
            domain: `source` or `target`.
            blank: those too that could not be estimated.
        """
        main = {(b.split, b.site) for b in self.blocks(domain, labelled=False)}
        found = [d for d in self.results.differences if d.domain == domain and (d.split, d.site) in main]
        stage = "after" if any(d.stage == "after" for d in found) else "before"
        return [d for d in found if d.stage in (None, stage) and (blank or d.estimate.value is not None)]

    def part_of(self, difference: Difference) -> str | None:
        """The finding or the structure that a difference is about."""
        return difference.cls if self.masks else difference.finding

    def meaning(self) -> str:
        """Explains value and interval, below a table."""
        what = "Mean over cases" if self.masks else "Value"
        level = format_number(100 * self.results.level, 0)
        several = any(len(b.seeds) > 1 for b in self.results.blocks)
        seeds = "; mean over training seeds" if several else ""
        return f"{what} ({level} % interval over patients{seeds})."


def in_text(title: str) -> str:
    """A metric's title inside a sentence."""
    return title if title[:2].isupper() else title[0].lower() + title[1:]
