"""Many items through joblib: order, progress, and what a failure leaves behind."""

from __future__ import annotations

import signal
import threading
import time

import joblib
import pytest

from medtl.parallel import map_items


def test_results_are_in_order_and_counted() -> None:
    def work(number: int) -> int:
        time.sleep(0.01 if number % 3 == 0 else 0)
        return number**2

    steps: list[tuple[int, int]] = []
    assert map_items(work, range(20), jobs=4, progress=lambda *step: steps.append(step)) == [
        n**2 for n in range(20)
    ]
    assert steps == [(done, 20) for done in range(1, 21)]


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_after_a_failure_nothing_is_at_work(jobs: int) -> None:
    """With joblib alone the slow items go on after the error was raised."""
    running: set[int] = set()
    begun: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        with lock:
            running.add(number)
            begun.append(number)
        time.sleep(0 if number == 3 else 0.02)
        with lock:
            running.discard(number)
        if number in (3, 4):
            raise OSError(f"disk full at {number}")

    with pytest.raises(OSError, match="disk full at 3"):
        map_items(work, range(100), jobs=jobs)
    at_the_end = list(begun)
    assert not running
    time.sleep(0.05)
    assert begun == at_the_end
    assert len(begun) < 30


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("within", ["waiting", "progress"])
def test_after_ctrl_c_nothing_is_at_work(jobs: int, within: str) -> None:
    """It comes while the main thread waits, or between two items; what has begun ends, nothing else begins."""
    running: set[int] = set()
    begun: list[int] = []

    def work(number: int) -> None:
        running.add(number)
        begun.append(number)
        if number == 3 and within == "waiting":
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.02)
        running.discard(number)

    def progress(done: int, total: int) -> None:
        if done == 3 and within == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_items(work, range(100), jobs=jobs, progress=progress)
    at_the_end = list(begun)
    assert jobs == 1 or not running
    time.sleep(0.05)
    assert begun == at_the_end
    assert len(begun) < 30


def test_another_engine() -> None:
    with joblib.parallel_config("loky", n_jobs=2):
        assert map_items(abs, [-2, -1, 0], jobs=2) == [2, 1, 0]
        with pytest.raises(ZeroDivisionError):
            map_items(_divide, [1, 0], jobs=2)


def _divide(number: int) -> float:
    return 1 / number
