"""Kills at random moments of every recipe and of the commands that write: the work goes on, and nothing is different.

MEDTL_KILLS sets the number of rounds for each, of up to two kills; 1 by default.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from pathlib import Path

import pytest

from medtl.cli import main, recipe_names
from medtl.files import LOCKS
from tests.helpers import processes
from tests.helpers.figures import leave_out
from tests.helpers.masks import write_masked_site
from tests.helpers.sites import write_site

KILLS = int(os.environ.get("MEDTL_KILLS", "1"))
TINY = ["--weights", "random", "--image-size", "32", "--batch-size", "8"]
TIMES = ("log.txt", "env.json", "DONE", "record.json", "cost.json", "metrics.csv")
"""Files whose content holds times, or counts of what was done again."""
TOLD = ("index.html", "report.md", "config.yaml", "command.txt")
"""Files that hold the name of the folder or the time too; `results.json` has the figures of the page."""
LATER = """
import os, signal, threading, time
from medtl.cli import main

def kill():
    time.sleep({seconds})
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
raise SystemExit(main({words}))
"""

WORDS: dict[str, list[str]] = {}
for _name in recipe_names():
    _encoder = "--encoders" if _name in ("rank_encoders", "compare") else "--encoder"
    _more = ["--epochs", "2"] if _name not in ("rank_encoders", "extract_features") else []
    _more += ["--method", "dann", "tent"] if _name == "adapt" else []
    _more += ["--patients", "6"] if _name == "data_efficiency" else []
    _more += ["--seeds", "1"] if _name in ("compare", "data_efficiency") else []
    _more += ["--augment", "none"] if _name != "rank_encoders" else []
    _more += [_encoder, "test_resnet", *(["test_vit"] if _name == "rank_encoders" else [])]
    WORDS[f"run {_name}"] = ["run", _name, "--source", "a", "--target", "b", *TINY, *_more]
COMMANDS = {
    "predict classes": ["predict", "labels", "b", "--model", "tent"],
    "predict masks": ["predict", "masks", "mb", "--maps", "--model", "tent"],
    "report": ["report", "labels/predictions.csv"],
    "report masks": ["report", "masks/predictions.csv"],
    "inspect": ["inspect", "a"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sites, and a finished run of each task."""
    root = tmp_path_factory.mktemp("kills")
    write_site(root / "a", 24)
    write_site(root / "b", 6, offset=100, shade=60)
    write_masked_site(root / "ma", 8)
    write_masked_site(root / "mb", 3, offset=100, shade=60)
    words = [*TINY, "--augment", "none", "--encoder", "test_resnet", "--epochs", "1", "--method", "tent"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        leave_out(patch)
        both = (("labels", ["--source", "a", "--labels", "a/labels.csv", "--target", "b"]),)
        both += (("masks", ["--source", "ma", "--masks", "ma/masks", "--target", "mb"]),)
        for task, data in both:
            assert main(["run", "adapt", *data, *words, "--out", task]) == 0
    return root


def content(folder: Path) -> dict[str, str]:
    """Digests of what a user would use, by relative path; the report's own time is left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name in (*TIMES, *TOLD) or path.suffix == ".svg" or "tb" in path.parts:
            continue
        written = path.read_bytes()
        if path.name == "results.json":
            told = ("created", "context")
            written = json.dumps({k: v for k, v in json.loads(written).items() if k not in told}).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(written).hexdigest()
    return found


def leftovers(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.name in (*LOCKS, ".begun", ".cache") or p.name.endswith(".tmp")]


def python(words: list[str], root: Path, seconds: float = 1e6) -> int:
    return processes.run(["-c", LATER.format(seconds=seconds, words=words)], cwd=root).returncode


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WORDS, *COMMANDS])
def test_killed_anywhere(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    words = WORDS.get(name) or COMMANDS[name]
    words = words + ["--labels", "a/labels.csv"] * (name in WORDS)
    safe = name.replace(" ", "_")
    started = time.monotonic()
    assert python([*words, "--out", f"{safe}_whole"], root) == 0
    whole, expected = time.monotonic() - started, content(root / f"{safe}_whole")
    assert expected
    generator = random.Random(name)
    for number in range(KILLS):
        out, code, tries = f"{safe}_{number}", -9, 0
        while code == -9:
            seconds = generator.uniform(0.05, whole) if tries < 2 else 1e6
            begun = (root / out / "config.yaml").exists()
            again = ["run", words[1], "--resume", out] if begun else [*words, "--out", out]
            code, tries = python(again, root, seconds), tries + 1
        assert code == 0, (number, tries)
        assert content(root / out) == expected
        assert (root / out / "DONE").exists()
        assert not leftovers(root / out)
    assert not leftovers(root / "cache") if (root / "cache").exists() else True
