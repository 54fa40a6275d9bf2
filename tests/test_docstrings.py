"""Docstrings of the public names, found in the stubs and read without an import: arguments and errors by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from medtl import errors
from tests.helpers.docstrings import arguments_of, errors_of

ROOT = Path(__file__).resolve().parents[1]
OURS = {name for name in vars(errors) if name.endswith("Error")}
Defined = ast.FunctionDef | ast.ClassDef


def public() -> Iterator[tuple[str, Defined]]:
    """Each function and class that a stub names, once, where it is defined."""
    wanted: dict[Path, set[str]] = {}
    for stub in sorted(ROOT.glob("medtl/**/__init__.pyi")):
        for line in ast.parse(stub.read_text(encoding="utf-8")).body:
            if not isinstance(line, ast.ImportFrom):
                continue
            folder = stub.parents[line.level - 1]
            path = folder.joinpath(*(line.module or "").split("."))
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            wanted.setdefault(path, set()).update(alias.name for alias in line.names)
    for path, names in wanted.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Defined) and node.name in names:
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def constructor(node: Defined) -> ast.FunctionDef | None:
    """The function whose arguments a caller gives; None for a class that has no constructor of its own."""
    if isinstance(node, ast.FunctionDef):
        return node
    own = (x for x in node.body if isinstance(x, ast.FunctionDef) and x.name == "__init__")
    return next(own, None)


def faults(node: Defined) -> list[str]:
    """What a docstring leaves out."""
    function, text = constructor(node), ast.get_docstring(node) or ""
    if function is None:
        return []
    given = function.args
    names = {a.arg for a in given.posonlyargs + given.args + given.kwonlyargs} - {"self"}
    said = arguments_of(text)
    if isinstance(node, ast.ClassDef):
        said |= arguments_of(text, "Attributes")
    calls = (
        x.exc.func for x in ast.walk(function) if isinstance(x, ast.Raise) and isinstance(x.exc, ast.Call)
    )
    raised = {call.id for call in calls if isinstance(call, ast.Name)} & OURS
    return sorted(names - said) + sorted(raised - errors_of(text))


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_and_errors_are_named(name: str) -> None:
    assert faults(PUBLIC[name]) == []


def test_the_public_names_are_found() -> None:
    assert {"fit", "build_adapter", "evaluate", "write_report"} <= {name.partition(":")[2] for name in PUBLIC}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"""Adds."""', ["a", "b", "DataError"]),
        ('"""Adds.\n\n    Args:\n        a: one.\n        b: other.\n    """', ["DataError"]),
        ('"""Adds.\n\n    Args:\n        a, b: both.\n\n    Raises:\n        DataError: no.\n    """', []),
    ],
)
def test_what_is_left_out_is_found(text: str, expected: list[str]) -> None:
    (node,) = ast.parse(f"def add(a, b):\n    {text}\n    raise DataError('no')\n").body
    assert isinstance(node, ast.FunctionDef)
    assert faults(node) == expected
