"""Stopped runs that were altered: each is refused in plain words or goes on to the same result; none runs code."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medtl.adapters.dann import DANN
from medtl.checkpoints import load_weights, save_weights
from medtl.cli import main
from medtl.record import RECORD
from tests.helpers.figures import leave_out
from tests.helpers.sites import TINY, write_site

WORDS = [
    "--source",
    "a",
    "--target",
    "b",
    "--labels",
    "a/labels.csv",
    *TINY,
    "--epochs",
    "3",
    "--method",
    "dann",
]
FIRST = "checkpoints/source_only-seed0/model.safetensors"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in dann's last epoch, and beside it what it gives when it is not stopped."""
    root = tmp_path_factory.mktemp("stopped")
    write_site(root / "a", 24)
    write_site(root / "b", 6, offset=100, shade=60)
    calls, forward = 0, DANN.forward

    def fail(self: DANN, *given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 25:
            raise RuntimeError("stopped")
        return forward(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        leave_out(patch)
        patch.setattr("medtl.training.keeper.CHECKPOINT_SHARE", 1e9)
        patch.setattr("medtl.training.keeper.CHECKPOINT_SECONDS", 0.0)
        assert main(["run", "adapt", *WORDS, "--out", "whole"]) == 0
        with patch.context() as more:
            more.setattr(DANN, "forward", fail)
            assert main(["run", "adapt", *WORDS, "--out", "run"]) == 1
    assert list((root / "run/checkpoints/dann-seed0").glob("epoch-*.safetensors"))
    return root


@pytest.fixture
def run(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the working directory."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    leave_out(monkeypatch)
    inputs = tmp_path / ".run.inputs.json"
    inputs.write_text(inputs.read_text().replace(str(stopped), str(tmp_path)))
    return tmp_path / "run"


def epoch(run: Path, ending: str = ".safetensors") -> Path:
    return max((run / "checkpoints/dann-seed0").glob(f"epoch-*{ending}"))


def text(name: str, write: Callable[[str], str]) -> Change:
    return lambda run: (run / name).write_text(write((run / name).read_text()))


def weights(of: Callable[[Path], Path], write: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(run: Path) -> None:
        header, tensors = load_weights(of(run))
        save_weights(
            of(run), {k: write(v) if v.is_floating_point() else v for k, v in tensors.items()}, header
        )

    return change


def without(key: str) -> Change:
    return text(
        "config.yaml", lambda old: "".join(x for x in old.splitlines(True) if not x.startswith(f"{key}:"))
    )


def setting(line: str) -> Change:
    key = line.partition(":")[0]

    def change(run: Path) -> None:
        without(key)(run)
        path = run / "config.yaml"
        path.write_text(path.read_text() + line + "\n")

    return change


class Runs:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return open, (str(self.trace), "w")


def of_another_training(run: Path) -> None:
    state = torch.load(epoch(run, ".state.pt"), weights_only=True)
    torch.save({**state, "weights_sha256": "0" * 64}, epoch(run, ".state.pt"))


ALTERED: dict[str, Change] = {
    "weights of a finished model": weights(lambda run: run / FIRST, lambda w: w + 1e-3),
    "NaN in a finished model": weights(lambda run: run / FIRST, lambda w: w * float("nan")),
    "a finished model is cut": lambda run: (run / FIRST).write_bytes((run / FIRST).read_bytes()[:5000]),
    "weights of the last epoch": weights(epoch, lambda w: w + 1e-3),
    "NaN in the last epoch": weights(epoch, lambda w: w * float("nan")),
    "the last epoch is cut": lambda run: epoch(run).write_bytes(epoch(run).read_bytes()[:5000]),
    "the state is cut": lambda run: epoch(run, ".state.pt").write_bytes(b"PK"),
    "the state is of another training": of_another_training,
    "the state is a pickle": lambda run: epoch(run, ".state.pt").write_bytes(
        pickle.dumps(Runs(run.parent / "ran"))
    ),
    "the state is gone": lambda run: epoch(run, ".state.pt").unlink(),
    "no settings": text("config.yaml", lambda _: ""),
    "settings that are a list": text("config.yaml", lambda _: "- 1\n"),
    "settings that are no YAML": text("config.yaml", lambda _: "a: [\n"),
    "settings that make an object": setting("labels: !!python/object/apply:os.system [touch ran]"),
    "a setting is gone": without("lr"),
    "an unknown setting": setting("code: evil.py"),
    "another learning rate": setting("lr: 0.1"),
    "a learning rate that is text": setting("lr: fast"),
    "a learning rate that is NaN": setting("lr: .nan"),
    "minus three epochs": setting("epochs: -3"),
    "a method from a file": setting("method: [theirs/evil.py]"),
    "a method from a file among others": setting("method: ['theirs/evil.py,dann']"),
    "a strategy from a file with a number": setting("strategy: theirs/evil.py:2"),
    "a strategy from a file": setting("strategy: ./theirs/evil.py"),
    "the record is cut": text(RECORD, lambda old: old[:20]),
    "the record is a list": text(RECORD, lambda _: "[]"),
    "the inputs are cut": lambda run: (run.parent / ".run.inputs.json").write_text("{"),
    "the inputs are a list": lambda run: (run.parent / ".run.inputs.json").write_text("[]"),
    "the inputs name a method": lambda run: (run.parent / ".run.inputs.json").write_text(
        json.dumps(
            {
                **json.loads((run.parent / ".run.inputs.json").read_text()),
                "method": [str(run.parent / "theirs/evil.py")],
            }
        )
    ),
    "the costs are text": lambda run: (run / FIRST).with_name("cost.json").write_text("[1]"),
    "the metrics are cut": text("metrics.csv", lambda old: old[: len(old) // 2]),
}


@pytest.mark.slow
@pytest.mark.parametrize("record", ["kept", "gone"])
@pytest.mark.parametrize("change", ALTERED)
def test_no_altered_run_goes_on_to_another_result(
    run: Path, change: str, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = run.parent
    (root / "theirs").mkdir()
    for place in (root / "evil.py", root / "theirs" / "evil.py", run / "evil.py"):
        place.write_text(f"open({str(root / 'ran')!r}, 'w').close()\n")
    ALTERED[change](run)
    if record == "gone" and "record" not in change:
        (run / RECORD).unlink()
    capsys.readouterr()
    code = main(["run", "adapt", "--resume", "run"])
    said = capsys.readouterr()
    assert not (root / "ran").exists()
    assert "fault of medtl" not in said.err
    same = (run / "predictions.csv").is_file() and (
        (run / "predictions.csv").read_text() == (root / "whole/predictions.csv").read_text()
    )
    if code:
        assert code in (1, 2)
        assert not (run / "DONE").exists()
    else:
        assert same


@pytest.mark.slow
def test_an_unaltered_run_goes_on_to_the_same_result(run: Path) -> None:
    assert main(["run", "adapt", "--resume", "run"]) == 0
    assert (run / "predictions.csv").read_text() == (run.parent / "whole/predictions.csv").read_text()
    assert (run / "DONE").exists()
    assert not any(run.rglob(".*"))
