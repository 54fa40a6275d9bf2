from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import medtl.evaluation


def test_import_is_light() -> None:
    heavy = ("torch", "monai", "timm", "matplotlib", "pandas", "sklearn", "jinja2")
    code = f"import sys, medtl.evaluation; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_examples_in_docstrings() -> None:
    tried = 0
    for module in pkgutil.walk_packages(medtl.evaluation.__path__, "medtl.evaluation."):
        loaded = importlib.import_module(module.name)
        scope = vars(loaded) | {"np": importlib.import_module("numpy")}
        failed, attempted = doctest.testmod(loaded, extraglobs=scope)
        assert failed == 0
        tried += attempted
    assert tried >= 5
