"""What can be listed: each kind as a whole, and one of it by name."""

from __future__ import annotations

import json

import pytest

from medtl.cli import main
from medtl.cli.list import LISTS, listing

ONE = {
    "recipes": ("rank_encoders", "--halves"),
    "methods": ("dann", "hidden"),
    "strategies": ("gradual", "hyper-parameter"),
    "encoders": ("efficientnet_lite0", "tf_efficientnet_lite0"),
    "metrics": ("dice", "Overlap"),
}
"""Of each kind a name, and what must be said of it."""


@pytest.mark.parametrize("what", LISTS)
def test_every_kind(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, word = ONE[what]
    assert main(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert any(name in str(row) for row in rows)
    assert main(["list", what, name]) == 0
    assert word in capsys.readouterr().out


@pytest.mark.parametrize("words", [("metrik",), ("metrics", "dise"), ("methods", "dan"), ("recipes", "rank")])
def test_wrong_names(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *words]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_help_names_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--help"]) == 0
    assert "|".join(LISTS) in "".join(capsys.readouterr().out.split())


def test_metrics_have_definitions() -> None:
    assert all(row["title"] for row in listing("metrics"))
