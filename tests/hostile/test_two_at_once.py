"""Two processes and one folder: the second is told, or has a folder of its own; a dead one is followed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medtl.cli import main
from medtl.config import Config
from medtl.errors import CheckpointError
from medtl.files import LOCKS, SILENT_SECONDS, claimed, output_folder
from medtl.runs import Run

HOLD = """
import time
from pathlib import Path
from medtl.files import claimed
with claimed(Path("shared")):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_of_one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medtl.runs.time.strftime", lambda *_: "20260101-120000")
    first, second = (Run.plan("finetune", Config(source=(Path("a"),))) for _ in range(2))
    assert first.folder == second.folder
    with first.open(["one"]), second.open(["two"]):
        assert first.folder != second.folder
        first.write("x.txt", "1")
        second.write("x.txt", "2")
    for run, text in ((first, "1"), (second, "2")):
        assert (run.folder / "x.txt").read_text() == text
        assert (run.folder / "DONE").exists()
        assert not any((run.folder / name).exists() for name in LOCKS)


@pytest.mark.parametrize("exists", [False, True])
def test_of_one_out(exists: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    first, second = (Run.plan("finetune", Config(out=out)) for _ in range(2))
    with first.open(["one"]):
        with pytest.raises(CheckpointError, match="Another process works in out"), second.open(["two"]):
            pass
        assert "one" in (out / "command.txt").read_text()
    late = Run(out, "finetune", Config(out=out))
    with pytest.raises(CheckpointError, match="not empty any more"), late.open(["three"]):
        pass
    assert "one" in (out / "command.txt").read_text()


def test_outputs_of_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """inspect, predict and report make their folders by `output_folder`."""
    with (
        output_folder(tmp_path / "out", "a"),
        pytest.raises(CheckpointError, match="Another process"),
        output_folder(tmp_path / "out", "a"),
    ):
        pass
    assert (tmp_path / "out" / "DONE").exists()
    (tmp_path / "scans").mkdir()
    assert main(["inspect", str(tmp_path / "scans"), "--out", str(tmp_path / "out")]) == 2
    assert "is not overwritten" in capsys.readouterr().err


def test_a_command_that_failed_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "out", "a"):
        raise ZeroDivisionError
    with output_folder(tmp_path / "out", "another"):
        pass
    assert (tmp_path / "out" / "DONE").exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live process of this machine is seen by its number."""

    def acquire(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with claimed(tmp_path):
        shown = (tmp_path / LOCKS[1]).read_text()
    assert not any((tmp_path / name).exists() for name in LOCKS)
    (tmp_path / LOCKS[1]).write_text(shown.replace(str(os.getpid()), str(os.getppid())))
    with pytest.raises(CheckpointError, match="Another process works in"), claimed(tmp_path):
        pass
    (tmp_path / LOCKS[1]).write_text(shown.replace(str(os.getpid()), str(2**30)))
    with claimed(tmp_path):
        pass


def test_what_a_command_left_unfinished_is_filled_again(tmp_path: Path) -> None:
    def stop(*command: str) -> None:
        with output_folder(tmp_path / "out", *command):
            (tmp_path / "out" / "x.csv").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop("a")
    assert not (tmp_path / "out" / "DONE").exists()
    with pytest.raises(Exception, match="not overwritten"), output_folder(tmp_path / "out", "b"):
        pass
    with output_folder(tmp_path / "out", "a"):
        (tmp_path / "out" / "x.csv").write_text("whole")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["DONE", "x.csv"]


def test_a_killed_process_is_followed_and_a_live_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    words = [sys.executable, "-c", HOLD]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        with pytest.raises(CheckpointError, match=rf"Another process works in shared \({process.pid}, since"):
            claimed(tmp_path / "shared").__enter__()
        os.kill(process.pid, signal.SIGKILL)
    assert (tmp_path / "shared" / LOCKS[1]).exists()
    with claimed(tmp_path / "shared"):
        pass
    assert not list((tmp_path / "shared").iterdir())


def test_another_machines_process_is_respected_while_it_shows_life(tmp_path: Path) -> None:
    owner = tmp_path / LOCKS[1]
    owner.write_text('{"host": "00000000", "process": 7, "since": "2026-01-01 10:00:00"}')
    with pytest.raises(CheckpointError, match="another machine works in"), claimed(tmp_path):
        pass
    os.utime(owner, (0, owner.stat().st_mtime - 2 * SILENT_SECONDS))  # of a machine that lost its power
    with claimed(tmp_path):
        assert f'"process": {os.getpid()}' in owner.read_text()


def test_a_working_process_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtl.files.SILENT_SECONDS", 0.3)
    with claimed(tmp_path):
        os.utime(tmp_path / LOCKS[1], (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCKS[1]).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / LOCKS[1]).stat().st_mtime > 0
