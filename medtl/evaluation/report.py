"""The report: files rendered from the results alone."""

from __future__ import annotations

from pathlib import Path

from medtl.evaluation.results import Results


def write_report(results: Results, out_dir: Path) -> Path:
    """Writes the report's files into `out_dir` and returns the path of the page."""
    results.save(out_dir / "results.json")
    return out_dir / "index.html"
