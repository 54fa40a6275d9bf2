"""Ctrl-C and SIGTERM: exit codes 130 and 143 at every stage, a sentence on how to go on, and a run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from medtl.cli import entry, main
from medtl.cli.signals import Stopped
from medtl.config import Config
from medtl.runs import Run
from tests.helpers.sites import write_site

ROOT = Path(__file__).resolve().parents[2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
both = pytest.mark.parametrize("number", CODES, ids=lambda s: s.name)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Gives every command another body."""

    def give(body: Callable[[], object]) -> None:
        monkeypatch.setattr(entry, "command", lambda name: SimpleNamespace(main=lambda words: body()))

    return give


class TestExitCode:
    @both
    def test_of_a_signal(
        self, command: Callable[..., None], number: signal.Signals, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command(lambda: signal.raise_signal(number))
        assert main(["inspect", "a"]) == CODES[number]
        cause = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
        assert (
            capsys.readouterr().err == f"Stopped by {cause}. Nothing was lost: give the same command again.\n"
        )

    @both
    @pytest.mark.parametrize("error", [SystemExit(1), RuntimeError("worker killed"), BrokenPipeError()])
    def test_whatever_the_signal_became(
        self, command: Callable[..., None], number: signal.Signals, error: BaseException
    ) -> None:
        """Lightning makes SystemExit(1) of Ctrl-C, a torch worker a RuntimeError."""

        def body() -> None:
            try:
                signal.raise_signal(number)
            except Stopped:
                raise error from None

        command(body)
        assert main(["inspect", "a"]) == CODES[number]

    def test_without_a_signal_as_before(self, command: Callable[..., None]) -> None:
        def exit_1() -> None:
            raise SystemExit(1)

        command(exit_1)
        assert main(["inspect"]) == 1
        command(lambda: None)
        assert main(["inspect"]) == 0

    def test_a_keyboard_interrupt_without_a_handler(self, command: Callable[..., None]) -> None:
        """In a thread there are no handlers; the exception alone says it."""

        def body() -> None:
            raise KeyboardInterrupt

        command(body)
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(main(["doctor"])))
        thread.start()
        thread.join()
        assert codes == [130]


class TestHandlers:
    def test_are_restored(self, command: Callable[..., None]) -> None:
        before = [signal.getsignal(s) for s in CODES]
        command(lambda: signal.raise_signal(signal.SIGTERM))
        main(["inspect"])
        assert [signal.getsignal(s) for s in CODES] == before

    def test_leave_what_others_handle(self, command: Callable[..., None]) -> None:
        seen: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        try:
            command(lambda: signal.raise_signal(signal.SIGTERM))
            assert main(["inspect"]) == 0
        finally:
            signal.signal(signal.SIGTERM, before)
        assert seen == [signal.SIGTERM]

    def test_the_same_wish_twice_at_once_is_one(self, command: Callable[..., None]) -> None:
        """`timeout` signals the process and then its group."""

        def body() -> None:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)

        command(body)
        assert main(["inspect"]) == 143

    def test_a_second_wish_ends_at_once(self) -> None:
        code = (
            "import signal, time\nfrom types import SimpleNamespace\nfrom medtl.cli import entry, signals\n"
            "signals.IMPATIENT = 0\n"
            "def body(words):\n"
            "    try:\n        signal.raise_signal(signal.SIGINT)\n"
            "    finally:\n        signal.raise_signal(signal.SIGINT); time.sleep(60)\n"
            "entry.command = lambda name: SimpleNamespace(main=body)\n"
            "raise SystemExit(entry.main(['inspect']))"
        )
        assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 130


class TestSentence:
    def test_of_an_open_run(
        self,
        command: Callable[..., None],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)

        def body() -> None:
            with Run.plan("adapt", Config(out=Path("runs/one"))).open():
                signal.raise_signal(signal.SIGTERM)

        command(body)
        assert main(["run", "adapt"]) == 143
        assert "continue it with --resume runs/one." in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "runs" / "one" / "DONE").exists()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["run", "adapt"], "The run had not begun"),
            (["report", "p.csv", "--out", "r"], "the folder of --out"),
            (["predict", "run", "scans", "--out=r"], "the folder of --out"),
            (["list", "methods"], "Nothing was lost"),
        ],
    )
    def test_of_other_commands(
        self,
        command: Callable[..., None],
        words: list[str],
        said: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        command(lambda: signal.raise_signal(signal.SIGINT))
        assert main(words) == 130
        assert said in capsys.readouterr().err


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """A command as its users start it; Ctrl-C may be ignored where the tests run, and is not there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    reset = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script = reset + "from medtl.cli import main; raise SystemExit(main(sys.argv[1:]))"
    if words[0].endswith(".py"):
        script = (
            reset
            + "import runpy; sys.argv[0] = sys.argv.pop(1); runpy.run_path(sys.argv[0], run_name='__main__')"
        )
    return subprocess.Popen(
        [sys.executable, "-c", script, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop(process: subprocess.Popen[str], number: signal.Signals, text: str) -> tuple[int, str, float]:
    """Signals a process once it has written `text`; its exit code, what it wrote then, and the seconds it took."""
    assert process.stdout is not None
    before = ""
    for line in process.stdout:
        before += line
        if text in line:
            break
    else:
        process.communicate()
        pytest.fail(before)
    started = time.monotonic()
    process.send_signal(number)
    after, _ = process.communicate(timeout=60)
    return process.returncode, " ".join(after.split()), time.monotonic() - started


TRAINING = (
    "run finetune --source a --labels a/labels.csv --encoder test_resnet --weights random --image-size 32 "
)
TRAINING += "--batch-size 8 --out r --epochs"


@pytest.mark.slow
@both
def test_while_training(tmp_path: Path, number: signal.Signals) -> None:
    """Lightning has handlers of its own while it trains."""
    write_site(tmp_path / "a")
    words = [*TRAINING.split(), "2000"]
    code, text, _ = stop(start(words, tmp_path), number, "epoch 2/")
    assert code == CODES[number], text
    assert text.endswith("continue it with --resume r.")
    assert "Traceback" not in text
    assert (tmp_path / "r" / "config.yaml").exists()
    assert not (tmp_path / "r" / "DONE").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (signal.SIGINT, "Run: r"),
        (signal.SIGTERM, "Training"),
        (signal.SIGINT, "epoch 2/"),
        (signal.SIGTERM, "Kept epoch"),
    ],
)
def test_stopped_anywhere_a_run_goes_on(tmp_path: Path, number: signal.Signals, text: str) -> None:
    """Preparing scans, building the model, training, predicting and reporting."""
    write_site(tmp_path / "a")
    recipe = [str(ROOT / "recipes" / "finetune.py"), *TRAINING.split()[2:], "12"]
    code, said, _ = stop(start(recipe, tmp_path), number, text)
    assert code == CODES[number], said
    assert "continue it with --resume r." in said
    assert not list(tmp_path.rglob("*.tmp"))
    again = start(["run", "finetune", "--resume", "r"], tmp_path)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert (tmp_path / "r" / "DONE").exists()


@both
def test_while_reading_a_folder(tmp_path: Path, number: signal.Signals) -> None:
    """`medtl inspect` of more files than it can read in the time."""
    write_site(tmp_path / "a", 1)
    scan = next((tmp_path / "a").glob("*.png"))
    for copy in range(20_000):
        os.link(scan, tmp_path / "a" / f"copy{copy}.png")
    process = start(["inspect", "a"], tmp_path)
    time.sleep(2)
    process.send_signal(number)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == CODES[number]
    assert text.endswith("Nothing was lost: give the same command again.\n")
