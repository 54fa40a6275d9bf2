"""Processes that the tests' server forks are what Python would start: output, exit codes, modules, nothing shared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.processes import ROOT, run


def test_output_errors_and_exit_codes_are_those_of_python(tmp_path: Path) -> None:
    codes = (
        "import sys; print('out'); print('err', file=sys.stderr)",
        "raise SystemExit(3)",
        "raise SystemExit('why')",
        "import sys; print(sys.argv, __name__); 1 / 0",
        "import os; os._exit(7)",
    )
    for code in codes:
        words = ["-c", code, "word", "--flag"]
        own = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
        done = run(words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (own.returncode, own.stdout), code
        assert done.stderr.splitlines()[-1:] == own.stderr.splitlines()[-1:], code


def test_a_process_that_is_killed_says_so(tmp_path: Path) -> None:
    done = run(["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], cwd=tmp_path)
    assert done.returncode == -9


def test_nothing_is_left_for_the_next_one(tmp_path: Path) -> None:
    change = "import os, torch, medtl; medtl.left = os.environ['LEFT'] = 'x'; torch.manual_seed(1)"
    look = "import os, medtl; print(hasattr(medtl, 'left'), 'LEFT' in os.environ, os.getcwd())"
    assert run(["-c", change], cwd=tmp_path).returncode == 0
    assert run(["-c", look], cwd=tmp_path).stdout.split() == ["False", "False", str(tmp_path)]


def test_medtl_comes_from_the_folder_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "medtl").mkdir()
    (tmp_path / "medtl" / "__init__.py").write_text("NAME = 'another'\n")
    look = "import sys, medtl; print(medtl.__file__, 'medtl.adapters' in sys.modules)"
    assert run(["-c", look], cwd=tmp_path).stdout.split()[0] == str(ROOT / "medtl" / "__init__.py")
    assert run(["-c", look], cwd=tmp_path, root=tmp_path).stdout.split() == [
        str(tmp_path / "medtl" / "__init__.py"),
        "False",
    ]


def test_a_shell_pipes_and_redirects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.put_on_path(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "twice.py").write_text("import sys\nprint(2 * sys.stdin.read().strip(), sys.argv[1:])\n")
    line = "medtl --version | python twice.py 'a b' > out.txt; medtl nothing 2> err.txt || echo code $?"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "code 2\n"
    assert (tmp_path / "out.txt").read_text().endswith(" ['a b']\n")
    assert "no command 'nothing'" in (tmp_path / "err.txt").read_text()


def test_commands_start_by_themselves(tmp_path: Path) -> None:
    """The installed script, the module and a recipe's file, each in a process that nobody prepared."""
    (version,) = {
        subprocess.run([*words, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for words in ([Path(sys.executable).parent / "medtl"], [sys.executable, "-m", "medtl.cli"])
    }
    assert version.strip()
    words = [sys.executable, str(ROOT / "recipes" / "adapt.py"), "--help"]
    assert (
        "--target" in subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    )
