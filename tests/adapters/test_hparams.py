"""Methods by name and hyper-parameters as text."""

from __future__ import annotations

import pytest

from medtl.adapters import adapter_class, available, hyper_parameters, parse_hparams
from medtl.errors import ConfigError


def test_found_by_file_name() -> None:
    assert {"finetune", "dann", "adabn"} <= set(available())
    assert adapter_class("dann").__name__ == "DANN"


def test_typed_by_the_signature() -> None:
    assert parse_hparams("dann", ["weight=0.5", "hidden=64", "norm=joint"]) == {
        "weight": 0.5,
        "hidden": 64,
        "norm": "joint",
    }
    assert hyper_parameters(adapter_class("dann"))["gamma"].default == 10.0


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        (["weigth=1"], "weight"),
        (["norm=seperate"], "separate"),
        (["hidden=many"], "int"),
        (["weight"], "key=value"),
    ],
)
def test_mistakes_are_named(pairs: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_hparams("dann", pairs)


def test_near_match_of_a_method() -> None:
    with pytest.raises(ConfigError, match="'dann'"):
        adapter_class("dan")
