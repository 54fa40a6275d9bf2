"""Configuration: dataclass, YAML and flags agree; unknown keys and wrong types are errors."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from medtl.cli import load_recipe, recipe_names
from medtl.config import Config, from_dict, read_yaml, to_dict, to_yaml
from medtl.errors import ConfigError
from medtl.runs import Run


@dataclass(frozen=True, kw_only=True)
class Example(Config):
    """A configuration with every type in use."""

    lr: float = 3e-4
    slices: int | None = None
    classes: tuple[str, ...] = ()
    labels: Path | None = None
    name: str = "x"


def test_round_trip(tmp_path: Path) -> None:
    config = Example(
        source=(Path("a"), Path("b")), lr=1e-5, classes=("1", "02"), labels=Path("l.csv"), smoke=True
    )
    (tmp_path / "c.yaml").write_text(to_yaml(to_dict(config)))
    assert from_dict(Example, read_yaml(tmp_path / "c.yaml")) == config


def test_yaml_as_people_write_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("source: a\nlr: 3e-4\nslices: 5\nname: 12\n")
    config = from_dict(Example, read_yaml(tmp_path / "c.yaml"))
    assert config == Example(source=(Path("a"),), lr=3e-4, slices=5, name="12")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"sourc": "a"}, "'source'"),
        ({"slices": "many"}, "int"),
        ({"smoke": 1}, "bool"),
        ({"seed": True}, "int"),
    ],
)
def test_mistakes(values: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        from_dict(Example, values)


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "\x00"])
def test_unreadable_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_yaml(tmp_path / "c.yaml")


NUMBERS = [
    (name, field.name)
    for name in recipe_names()
    for field in dataclasses.fields(load_recipe(name).Config)
    if field.name != "seed"
    and re.search(r"\b(int|float)\b", str(field.type))
    and "tuple" not in str(field.type)
]


@pytest.mark.parametrize(("name", "field"), NUMBERS)
def test_numbers_that_no_run_can_use(
    name: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written; those of `--fit` are checked by `FitConfig`."""
    monkeypatch.chdir(tmp_path)
    kind = load_recipe(name).Config
    good = {"source": (Path("a"),), "labels": Path("l"), "target": Path("b")}
    for value in (-1, -1e9, 10**12, *((math.nan, math.inf, 0.0) if field == "lr" else ())):
        config = kind(**good, **{field: value})
        with pytest.raises(ConfigError, match=rf"--{field.replace('_', '-')} is .*; expected"):
            Run.plan(name, config)
    assert not list(tmp_path.iterdir())
