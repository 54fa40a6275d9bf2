"""A new recipe is one file in `recipes/`."""

from __future__ import annotations

from tests.one_file.conftest import Copy

RECIPE = '''"""Counts the scans of a folder.

    medtl run count_scans --source sample_data/site_b
    medtl run count_scans --smoke
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import medtl
from medtl.cli import run_recipe, say
from medtl.config import Config as BaseConfig


@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Flags of this recipe."""


def main(config: Config, command: Sequence[str] = ()) -> None:
    """Runs the recipe."""
    run = medtl.Run.plan("count_scans", config)
    cases = medtl.collect_cases(source=(), target=config.source[0], sites=config.sites)
    with run.open(command, cases.hide) as run:  # no file of the run names a patient
        for site in cases.files:
            say(f"{site}: {len(cases.cases)} scans")


if __name__ == "__main__":
    run_recipe(__file__)
'''


def test_a_recipe(copy: Copy) -> None:
    copy.add("recipes/count_scans.py", RECIPE)
    assert "Counts the scans of a folder." in copy.medtl("list", "recipes")
    assert "site_b: 40 scans" in copy.medtl(
        "run", "count_scans", "--source", "sample_data/site_b", "--out", "counted"
    )
    assert (copy.root / "counted" / "DONE").exists()
    copy.medtl("copy", "count_scans", "mine.py")
    assert (copy.root / "mine.py").read_text() == RECIPE
