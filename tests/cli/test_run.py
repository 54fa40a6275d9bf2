"""Recipes by name: found by file, and where one was renamed the error says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from medtl.cli import main, recipe_names
from medtl.cli import run as module
from medtl.cli.run import RENAMED, recipe_rows

NEW = {line.split()[0] for line in RENAMED.values()}


@pytest.fixture
def renamed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of recipes with the new names alone."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in NEW:
        (folder / f"{name}.py").write_text('"""Does it."""\n')
    monkeypatch.setattr(module, "recipes_folder", lambda: folder)


@pytest.mark.usefixtures("renamed")
@pytest.mark.parametrize("name", RENAMED)
@pytest.mark.parametrize(
    "words",
    [
        ["run", "{}"],
        ["run", "{}", "--help"],
        ["run", "{}", "--source", "a", "--resume", "runs/{}/20260101-120000-a"],
        ["run", "recipes/{}.py"],
        ["copy", "{}", "mine.py"],
        ["{}"],
    ],
    ids=" ".join,
)
def test_an_old_name_names_the_new_one(
    name: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.format(name) for word in words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"`medtl run {RENAMED[name]} ...`" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("renamed")
def test_a_file_of_ones_own_may_have_an_old_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "adapt_classification.py"
    own.write_text("from medtl.config import Config\n\ndef main(config, command=()):\n    print('mine')\n")
    assert main(["run", str(own)]) == 0
    assert "mine" in capsys.readouterr().out


def test_an_unknown_name_has_near_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "rank_encodrs"]) == 2
    assert "'rank_encoders'" in " ".join(capsys.readouterr().err.split())
    assert main(["run", "gone.py"]) == 2
    assert "no recipe file 'gone.py'" in " ".join(capsys.readouterr().err.split())


def test_a_recipe_without_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank_encoders", "--smoke"]) == 2
    assert "`medtl run rank_encoders`" in " ".join(capsys.readouterr().err.split())


def test_all_recipes_say_what_they_do() -> None:
    rows = recipe_rows()
    assert [row["recipe"] for row in rows] == recipe_names()
    assert all(row["what it does"].endswith(".") for row in rows)
