"""The package: public names, lazy imports, a wheel that works elsewhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import medtl

ROOT = Path(__file__).parents[1]


def test_public_names_are_sorted_and_exist() -> None:
    assert medtl.__all__ == sorted(medtl.__all__)
    assert set(medtl._HOME) <= set(medtl.__all__)
    for name in medtl.__all__:
        assert getattr(medtl, name) is not None


def test_names_of_the_data_package_exist() -> None:
    import medtl.data

    assert medtl.data.__all__ == sorted(medtl.data.__all__) == sorted(medtl.data._HOME)
    assert all(getattr(medtl.data, name) is not None for name in medtl.data.__all__)


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


def test_modules_are_not_too_long() -> None:
    lengths = {
        p: len(p.read_text().splitlines()) for d in ("medtl", "recipes") for p in (ROOT / d).rglob("*.py")
    }
    assert {str(p): n for p, n in lengths.items() if n > 400} == {}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_recipes_templates_and_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "medtl/recipes/adapt_classification.py" in names
    assert "medtl/py.typed" in names
    assert any(n.startswith("medtl/report/templates/") for n in names)
    assert not [n for n in names if n.startswith(("recipes/", "tests/", "sample_data/"))]


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
    words = ["run", "finetune_classification", "--smoke", "--encoder", "test_resnet", "--out", "r"]
    words += ["--source", str(site), "--labels", str(site / "labels.csv")]
    command = [sys.executable, "-c", script, str(target), str(ROOT), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "DONE").exists()
