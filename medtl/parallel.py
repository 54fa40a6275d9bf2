"""Many independent items through joblib: the results in order, and nothing still at work after a failure."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


PATIENCE = 10.0
"""Seconds that a stopped command waits for items at work, so that they leave no half-written file."""


@dataclass(frozen=True)
class _Failure:
    error: Exception


class _AtWork:
    """The items at work in this process's threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._number = 0
        self.stopped = False

    def __reduce__(self) -> tuple[type[_AtWork], tuple[()]]:
        return _AtWork, ()  # another process counts for itself

    def __enter__(self) -> None:
        with self._changed:
            self._number += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._number -= 1
            self._changed.notify_all()

    def end(self) -> None:
        """Lets no further item begin, and waits for those at work."""
        self.stopped = True
        with self._changed:
            self._changed.wait_for(lambda: self._number == 0, PATIENCE)


def map_items(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int = -1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """`work` of each item, in the items' order.

    joblib alone raises a failure at once and leaves its threads at work, which may then write files after the
    command has said that it stopped. Here a failure ends the run once what had begun has ended, and so does Ctrl-C,
    which waits for `PATIENCE` seconds at most.

    Args:
        work: What is done with an item.
        items: What it is done with.
        jobs: Threads, as in joblib: -1 for all cores; `joblib.parallel_config` chooses another engine.
        progress: Called with (done, total) after each item.

    Raises:
        Exception: What `work` raised, of the first item in order that it was raised for.
    """
    from joblib import Parallel, delayed

    failure: Exception | None = None
    at_work = _AtWork()

    def tasks() -> Iterator[Any]:
        for item in items:
            if failure is not None:
                return  # no further item is begun
            yield delayed(_attempt)(work, item, at_work)

    results: list[Result] = []
    outcomes = Parallel(n_jobs=jobs, prefer="threads", return_as="generator")(tasks())
    try:
        for outcome in outcomes:
            if isinstance(outcome, _Failure):
                failure = failure or outcome.error
            elif failure is None:
                results.append(outcome)
                if progress is not None:
                    progress(len(results), len(items))
    except BaseException:
        at_work.end()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib advises to ask for fewer items
            outcomes.close()
        raise
    if failure is not None:
        raise failure
    return results


def _attempt(work: Callable[[Item], Result], item: Item, at_work: _AtWork) -> Result | _Failure | None:
    with at_work:
        if at_work.stopped:
            return None
        try:
            return work(item)
        except Exception as error:
            return _Failure(error)
