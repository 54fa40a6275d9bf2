"""A new figure is one file: it stands on the page, in the section that it names."""

from __future__ import annotations

from tests.one_file.conftest import Copy

FIGURE = '''"""How long the names of the models are."""

from medtl.report.kit import Drawing, finish, name_rows, new_figure
from medtl.report.view import View

SECTION = "data"


def draw(view: View) -> Drawing | None:
    """One dot a model."""
    figure = new_figure(5, 2)
    ax = figure.subplots()
    for k, model in enumerate(view.models):
        ax.plot([len(model)], [-k], "o", color=view.colour(model))
    name_rows([ax], [-k for k in range(len(view.models))], [view.label(m) for m in view.models])
    return finish(figure, "lengths", "Lengths", "Letters of each name.")
'''
SECTION = '''"""What was not asked."""

from medtl.report.parts import Section
from medtl.report.view import View

ORDER = 11


def section(view: View) -> Section | None:
    """One sentence."""
    return Section("unasked", "What was not asked", text=(f"{len(view.models)} models, and no question.",))
'''


def test_a_figure_and_a_section_are_one_file_each(copy: Copy) -> None:
    copy.add("medtl/report/figures/lengths.py", FIGURE)
    copy.add("medtl/report/sections/unasked.py", SECTION)
    copy.medtl("report", "sample_data/predictions.csv", "--out", "r", "--replicates", "100")
    html = (copy.root / "r" / "index.html").read_text(encoding="utf-8")
    data = html[html.index('<section id="data">') : html.index('<section id="unasked">')]
    assert "Letters of each name." in data
    assert 'id="lengths-' in data
    assert "2 models, and no question." in html
    assert (copy.root / "r" / "figures" / "lengths.svg").exists()
    assert "![lengths](figures/lengths.svg)" in (copy.root / "r" / "report.md").read_text(encoding="utf-8")
