"""The package: public names, lazy imports, a wheel that works elsewhere."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import medtl

ROOT = Path(__file__).parents[1]


STUBS = sorted(ROOT.glob("medtl/**/__init__.pyi"))


@pytest.mark.parametrize("stub", STUBS, ids=lambda p: p.parent.relative_to(ROOT).as_posix())
def test_every_name_of_a_stub_is_loaded(stub: Path) -> None:
    package = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    names = {
        n.asname for x in ast.parse(stub.read_text()).body if isinstance(x, ast.ImportFrom) for n in x.names
    }
    assert names == set(package.__all__) <= set(dir(package))
    for name in names:
        found = getattr(package, name)
        assert getattr(found, "__name__", name) == name


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'dann'"):
        medtl.dann  # noqa: B018


def test_import_is_cheap() -> None:
    script = (
        "import sys, medtl; print([m for m in ('torch', 'numpy', 'pandas', 'monai') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
    )


def test_top_level_is_the_fixed_set() -> None:
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith((".", "__"))} - {
        "dist",
        "build",
        "runs",
        "site",
    }
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "medtl",
        "recipes",
        "tests",
        "sample_data",
        "docs",
    } == found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_recipes_templates_and_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "medtl/recipes/adapt.py" in names
    assert "medtl/py.typed" in names
    assert any(n.startswith("medtl/report/templates/") for n in names)
    assert not [n for n in names if n.startswith(("recipes/", "tests/", "sample_data/"))]


@pytest.mark.slow
def test_wheel_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """Installed without the checkout: a recipe runs from the wheel alone."""
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path = [p for p in sys.path if p != sys.argv[2]]; "
        "import medtl; assert medtl.__file__.startswith(sys.argv[1]), medtl.__file__; "
        "from medtl.cli import main; raise SystemExit(main(sys.argv[3:]))"
    )
    site = ROOT / "sample_data" / "site_b"
    words = ["run", "finetune", "--smoke", "--encoder", "test_resnet", "--out", "r"]
    words += ["--source", str(site), "--labels", str(site / "labels.csv")]
    command = [sys.executable, "-c", script, str(target), str(ROOT), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "DONE").exists()
