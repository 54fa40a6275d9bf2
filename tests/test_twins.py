"""One name, one thing: no public name that is used across modules is defined in two of them."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

BY_DESIGN = {
    "available": "methods and strategies are found in the same way, and each package lists its own",
    "main": "every command has one",
    "Options": "every command has its flags",
    "section": "every section of the page is made by one",
    "draw": "every figure is drawn by one",
}
"""Names that files found by their name must have."""
HOMONYMS = {
    "Run": "a run folder; in the evaluation, one training of a model",
    "Task": "what a recipe does; in the evaluation, what is measured",
    "Segmentation": "the task; in prediction, one segmented case",
    "Draw": "the place of a case in an epoch; in the evaluation, resampled patients",
    "Ints": "one alias for one type: rankings of encoders import nothing of the evaluation's inside",
}
"""Names of two things in layers that do not meet in one module."""


def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    found = {}
    for file in sorted((ROOT / "medtl").rglob("*.py*")):
        if file.suffix in (".py", ".pyi"):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[f"{name}{file.suffix}"] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def homes(kinds: tuple[type[ast.stmt], ...]) -> dict[str, set[str]]:
    """The modules that define each public name at their top level, with statements of some kinds."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, tree in modules().items():
        for node in tree.body:
            if not isinstance(node, kinds):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [t.id for t in targets if isinstance(t, ast.Name)] + [getattr(node, "name", "_")]
            for name in names:
                if not name.startswith("_"):
                    found[name].add(module.removesuffix(".py"))
    return found


def test_no_function_or_class_is_defined_twice() -> None:
    twins = {n for n, own in homes((ast.FunctionDef, ast.ClassDef)).items() if len(own) > 1}
    assert twins - {*BY_DESIGN, *HOMONYMS} == set()


def test_no_name_is_imported_from_two_homes() -> None:
    """A constant may be called like another module's, `METHOD`, as long as nobody else uses both."""
    defined = homes((ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign))
    used: dict[str, set[str]] = defaultdict(set)
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    used[alias.name].add(node.module or "")
    twins = {name for name, own in defined.items() if len(own & used[name]) > 1}
    assert twins - {*BY_DESIGN, *HOMONYMS} == set()


def test_the_lists_are_needed() -> None:
    defined = homes((ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign))
    assert [name for name in {**BY_DESIGN, **HOMONYMS} if len(defined[name]) < 2] == []
