from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import medtl.evaluation


def test_all_is_sorted_and_complete() -> None:
    names = medtl.evaluation.__all__
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    public = {
        n for n, v in vars(medtl.evaluation).items() if not n.startswith("_") and not hasattr(v, "__path__")
    }
    modules = {m.name for m in pkgutil.iter_modules(medtl.evaluation.__path__)}
    assert set(names) == {n for n in public if n not in modules or n == "evaluate"}


def test_import_is_light() -> None:
    heavy = ("torch", "monai", "timm", "matplotlib", "pandas", "sklearn", "jinja2")
    code = f"import sys, medtl.evaluation; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_examples_in_docstrings() -> None:
    tried = 0
    for module in pkgutil.iter_modules(medtl.evaluation.__path__):
        loaded = importlib.import_module(f"medtl.evaluation.{module.name}")
        scope = vars(loaded) | {"np": importlib.import_module("numpy")}
        failed, attempted = doctest.testmod(loaded, extraglobs=scope)
        assert failed == 0
        tried += attempted
    assert tried >= 5
