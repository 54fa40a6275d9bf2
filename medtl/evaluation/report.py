"""The report: a page, a Markdown card, figures and results.json, all rendered from the results alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medtl.evaluation.figures import draw_all
from medtl.evaluation.overlays import Overlay
from medtl.evaluation.results import Results
from medtl.evaluation.sections import sections
from medtl.evaluation.summary import summarise
from medtl.evaluation.svg import inline
from medtl.runs import atomic_write

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
    out = Path(out_dir)
    figures = draw_all(results)
    content = {
        "results": results,
        "title": results.context.title or DEFAULT_TITLE,
        "version": version("medtl"),
        "summary": summarise(results),
        "sections": sections(results, figures, overlays),
        "byline": _byline(results),
    }
    page = _render("report.html.j2", content)
    # The template's loops leave spaces and empty lines behind, which Markdown does not need.
    lines = re.sub(r" +\n", "\n", _render("report.md.j2", content)).replace("&#39;", "'")
    card = re.sub(r"\n{3,}", "\n\n", lines).rstrip() + "\n"
    for drawing in figures.values():
        atomic_write(out / "figures" / f"{drawing.name}.svg", drawing.svg)
    results.save(out / "results.json")
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
    """Text that Markdown would read as markup, made literal: no name breaks a table."""
    # What a macro of the template returns went through here already, piece by piece.
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    plain = re.sub(r"\s+", " ", value)
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", plain)
