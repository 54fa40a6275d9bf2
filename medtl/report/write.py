"""Writes the report: a page, a Markdown card, figures and results.json, all rendered from the results alone.

`write_page` gives recipes that predict nothing the same page from sections of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medtl.evaluation.context import now
from medtl.evaluation.results import Results
from medtl.files import atomic_write
from medtl.report.discovery import make_sections
from medtl.report.overlays import Overlay
from medtl.report.parts import Section
from medtl.report.summary import summarise
from medtl.report.svg import inline
from medtl.report.view import View

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_TITLE = "Evaluation report"


def write_report(results: Results, out_dir: Path | str, *, overlays: Sequence[Overlay] = ()) -> Path:
    """Writes `index.html` (self-contained), `report.md`, `results.json` and `figures/*.svg`.

    Everything is rendered before the first file is written, and each file is written beside and renamed, the
    page last: a reader never meets half a report.

    Args:
        results: from `evaluate` or `Results.load`.
        out_dir: folder of the report; files of the same names in it are replaced.
        overlays: pictures of the worst segmentations (see `worst_overlays`), which go into the page alone.

    Returns:
        Path of `index.html`.
    """
    view = View(results, overlays)
    sections = make_sections(view)
    content = {
        "results": results,
        "stamps": [STAMPED[stamp] for stamp in STAMPED if stamp in results.context.stamps],
        "kicker": "medtl evaluation report",
        "title": results.context.title or DEFAULT_TITLE,
        "summary": summarise(view),
        "sections": sections,
        "byline": (_byline(results), results.created),
    }
    return _write(Path(out_dir), "report", content, sections, before=results.save)


STAMPED = {
    "oracle": (
        "Oracle run: labels of the external site were read to choose a model or a setting. These results are upper "
        "bounds."
    ),
    "few_labels": (
        "Few labels: a model of this run learnt from some labelled cases of the external site, on which none is tested."
    ),
}
"""The first line of the page, by the stamp of the run."""


def write_page(
    title: str,
    sections: Sequence[Section],
    out_dir: Path | str,
    *,
    lead: Sequence[str] = (),
    kicker: str = "medtl",
    byline: Sequence[str] = (),
) -> Path:
    """Writes a page in the look of a report from sections of text, tables and figures, without any predictions.

    Args:
        title: headline.
        sections: `Section(key, title, text=..., tables=..., figures=...)`; every key once.
        out_dir: folder of `index.html` (self-contained), `report.md` and `figures/*.svg`.
        lead: sentences on top of the page: what was found.
        kicker: what kind of page it is, above the headline.
        byline: short parts of the line below the headline.

    Returns:
        Path of `index.html`.

    Example:
        table = TableBuilder("Encoders", ("Encoder", "LogME"))
        table.row("resnet50", plain(0.41))
        write_page("Encoders for site A", [Section("rank", "Ranking", tables=(table.build(),))], "report")
    """
    content = {
        "kicker": kicker,
        "title": title,
        "lead": lead,
        "sections": sections,
        "byline": (*byline, now()),
    }
    return _write(Path(out_dir), "page", content, sections)


def _write(
    out: Path,
    template: str,
    content: dict[str, Any],
    sections: Sequence[Section],
    before: Callable[[Path], object] | None = None,
) -> Path:
    """Renders everything, then writes the figures, the card and last the page."""
    content = {"version": version("medtl"), **content}
    page = _render(f"{template}.html.j2", content)
    # The template's loops leave spaces and empty lines behind, which Markdown does not need.
    lines = re.sub(r" +\n", "\n", _render(f"{template}.md.j2", content)).replace("&#39;", "'")
    card = re.sub(r"\n{3,}", "\n\n", lines).rstrip() + "\n"
    for drawing in (f for s in sections for f in s.figures):
        atomic_write(out / "figures" / f"{drawing.name}.svg", drawing.svg)
    if before is not None:
        before(out / "results.json")
    atomic_write(out / "report.md", card)
    atomic_write(out / "index.html", page)
    return out / "index.html"


def _byline(results: Results) -> str:
    what = (
        "Segmentation" if results.segmentation is not None else f"{results.task.capitalize()} classification"
    )
    return f"{what} of {', '.join(results.classes)}"


def _render(name: str, content: dict[str, Any]) -> str:
    """Fills a template; every value is escaped, and a name that is not there is an error, not a gap."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_markdown if name.endswith(".md.j2") else None,
        keep_trailing_newline=True,
    )
    # The drawings are markup already; names in them were escaped when they were drawn.
    environment.filters["inline_svg"] = lambda svg: Markup(inline(svg))
    return environment.get_template(name).render(content)


def _markdown(value: object) -> object:
    """Escapes Markdown markup, so that no name breaks a table."""
    # What a macro of the template returns went through here already, piece by piece.
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    plain = re.sub(r"\s+", " ", value)
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", plain)
