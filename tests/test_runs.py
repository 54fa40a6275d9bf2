"""Files that are whole or absent, names that stay apart, and the metrics file after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from medtl.config import Config
from medtl.files import atomic_write, file_name
from medtl.runs import MetricsLog, Run

NAMES = [
    "last:2",
    "last-2",
    "last_2",
    "last%3A2",
    "a/b",
    "a-b",
    "a_b",
    "a:b",
    "a@b",
    "a\\b",
    "a%2Fb",
    "probe@20",
]


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


def test_names_stay_apart(tmp_path: Path) -> None:
    """`last:2` and `last-2`, `a/b` and `a:b`: each model has a folder of its own, on every file system."""
    run = Run(tmp_path, "compare", Config())
    folders = {run.model_folder(name, 0) for name in NAMES}
    assert len(folders) == len(NAMES)
    assert {f.parent for f in folders} == {tmp_path / "checkpoints"}
    assert not any(set(f.name) & set('/\\:*?"<>|') for f in folders)
    assert [file_name(n) for n in ("source_only", "probe@20", "last:2")] == [
        "source_only",
        "probe@20",
        "last%3A2",
    ]


def test_metrics_of_models_of_similar_names_are_kept(tmp_path: Path) -> None:
    names = [*NAMES, "a,b", 'a"b', "a"]
    for name in names:
        MetricsLog(tmp_path / "m.csv", name, 0).append(0, 1, {"loss": 1.0})
        MetricsLog(tmp_path / "m.csv", name, 10).append(0, 1, {"loss": 1.0})
    for done, name in enumerate(names, 1):
        MetricsLog(tmp_path / "m.csv", name, 0).truncate(-1)
        left = (tmp_path / "m.csv").read_text().splitlines()[1:]
        assert len(left) == 2 * len(names) - done
