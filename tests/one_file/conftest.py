"""A copy of the package and its recipes, to which a test adds one file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers import processes

ROOT = Path(__file__).resolve().parents[2]


class Copy:
    """A copy of the project that is run in a process of its own.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        leave = shutil.ignore_patterns("__pycache__")
        for name in ("medtl", "recipes"):
            shutil.copytree(ROOT / name, root / name, ignore=leave)
        (root / "sample_data").symlink_to(ROOT / "sample_data")

    def add(self, file: str, text: str) -> None:
        """Writes one new file; nothing that exists is touched."""
        path = self.root / file
        assert not path.exists(), f"{file} exists already"
        path.write_text(text, encoding="utf-8")

    def python(self, code: str) -> str:
        """What a script prints."""
        return self._run(["-c", code])

    def medtl(self, *words: str) -> str:
        """What a command prints."""
        return self._run(["-m", "medtl.cli", *words])

    def _run(self, words: list[str]) -> str:
        done = processes.run(words, cwd=self.root, root=self.root)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A fresh copy of the project."""
    return Copy(tmp_path)
