"""Methods by name and hyper-parameters as text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import medtl
from medtl import adapters
from medtl.adapters import adapter_class, available, hyper_parameters, parse_hparams
from medtl.errors import ConfigError


def test_found_by_file_name() -> None:
    assert {"finetune", "dann", "adabn"} <= set(available())
    assert adapter_class("dann").__name__ == "DANN"


def test_classes_are_found_by_name() -> None:
    from medtl.adapters import DANN, AdaBN, FineTune

    assert [c.__name__ for c in (AdaBN, DANN, FineTune)] == ["AdaBN", "DANN", "FineTune"]
    with pytest.raises(ImportError):
        from medtl.adapters import Dann  # noqa: F401


def test_a_new_file_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file and nothing else makes a method of every command and of the public names."""
    (tmp_path / "plain_copy.py").write_text(
        "from medtl.adapters.finetune import FineTune\n\n\n"
        'class PlainCopy(FineTune):\n    """Fine-tuning again."""\n'
    )
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    assert "plain_copy" in available()
    assert adapter_class("plain_copy").__name__ == "PlainCopy"
    assert medtl.PlainCopy is adapter_class("plain_copy")
    monkeypatch.delitem(sys.modules, "medtl.adapters.plain_copy")


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
