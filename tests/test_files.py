"""Files are written whole, privately where they hold scans, and what killed processes leave is removed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from medtl import files
from medtl.files import atomic_write, remove_leftovers
from tests.helpers.processes import run

KILLED = """
import os, signal
from pathlib import Path
from medtl import files
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
files.atomic_write(Path("table.csv"), "half", private=True)
"""


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_private_files_and_the_folders_made_for_them_are_their_owners_alone(tmp_path):
    atomic_write(tmp_path / "runs" / "cache" / "a.npy", b"1", private=True)
    folder = tmp_path / "runs" / "cache"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes(folder) == {0o600}
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    atomic_write(shared / "a.npy", b"1", private=True)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755, "a folder that was there is not changed"
    assert modes(shared) == {0o600}


def test_the_next_process_removes_what_a_killed_one_left(tmp_path):
    assert run(["-c", KILLED], cwd=tmp_path).returncode != 0
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    atomic_write(tmp_path / "other.csv", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other.csv"]


@pytest.mark.parametrize("kept", ["alive", "elsewhere", "other"])
def test_other_temporaries_stay(tmp_path, kept):
    gone, host = 2**22 + 5, files._host()  # above the largest process number of Linux
    name = {
        "alive": f".a.csv.{host}.{os.getppid()}.tmp",
        "elsewhere": f".a.csv.00000000.{gone}.tmp",
        "other": ".a.csv.tmp",
    }[kept]
    (tmp_path / name).write_text("x")
    (tmp_path / f".b.csv.{host}.{gone}.tmp").write_text("x")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
