"""Many independent items through joblib: the results in order, and nothing still at work after a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Failure:
    error: Exception


def map_items(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int = -1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """`work` of each item, in the items' order.

    joblib alone raises a failure at once and leaves its threads at work, which may then write files after the
    command has said that it stopped. Here a failure ends the run once what had begun has ended.

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

    def tasks() -> Iterator[Any]:
        for item in items:
            if failure is not None:
                return  # no further item is begun
            yield delayed(_attempt)(work, item)

    results: list[Result] = []
    for outcome in Parallel(n_jobs=jobs, prefer="threads", return_as="generator")(tasks()):
        if isinstance(outcome, _Failure):
            failure = failure or outcome.error
        elif failure is None:
            results.append(outcome)
            if progress is not None:
                progress(len(results), len(items))
    if failure is not None:
        raise failure
    return results


def _attempt(work: Callable[[Item], Result], item: Item) -> Result | _Failure:
    try:
        return work(item)
    except Exception as error:
        return _Failure(error)
