"""Files that are whole or absent, and the metrics file after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from medtl.files import atomic_write
from medtl.runs import MetricsLog


def test_atomic_write_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.txt"
    atomic_write(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medtl.files.os.fsync", full)
    with pytest.raises(OSError, match="space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


def test_metrics_are_cut_back_to_the_resumed_epoch(tmp_path: Path) -> None:
    log, other = MetricsLog(tmp_path / "m.csv", "dann", 0), MetricsLog(tmp_path / "m.csv", "source_only", 0)
    other.append(5, 60, {"loss": 0.5})
    for epoch in range(3):
        log.append(epoch, 10 * epoch, {"loss": 1.0, "lambda": 0.1})
    with log.path.open("a") as file:
        file.write("dann,0,3,4")  # the process died here
    log.truncate(1)
    rows = [r.split(",")[:3] for r in log.path.read_text().splitlines()[1:]]
    assert rows == [["source_only", "0", "5"], *[["dann", "0", str(e)] for e in (0, 0, 1, 1)]]
