"""Groups of cases to which a test-time method adapts, the same for classes and masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from medtl.adapters.contract.test_time import TestTimeAdapter
from medtl.data.cases.table import Case

NEVER_AT_ONCE = 32
"""With reset=never, so many cases at most are adapted to before they are predicted."""


def groups_of(adapter: TestTimeAdapter, cases: Sequence[Case]) -> list[list[int]]:
    """Places of the cases, group after group in the order in which the groups first appear.

    Args:
        adapter: says when it is reset: for each case, patient or site. With `never`, groups are batches of even size.
        cases: in the order of the data set.
    """
    if adapter.reset_per == "never":
        number = math.ceil(len(cases) / NEVER_AT_ONCE)
        bounds = [round(len(cases) * n / number) for n in range(number + 1)]
        return [list(range(a, b)) for a, b in itertools.pairwise(bounds)]
    keys = {
        "case": [str(n) for n in range(len(cases))],
        "patient": [f"{case.site}/{case.patient}" for case in cases],
        "site": [case.site for case in cases],
    }[adapter.reset_per]
    groups: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def begin_group(adapter: TestTimeAdapter, first: bool) -> None:
    """Resets the adapter for a group; with `never`, the first group goes on from the state that a run kept."""
    if adapter.reset_per != "never" or (first and not adapter.resume()):
        adapter.reset()


def end_group(adapter: TestTimeAdapter) -> None:
    """Keeps the state after a group, if a later run may go on from it."""
    if adapter.reset_per in ("site", "never"):
        adapter.keep()


def unadapted(adapter: TestTimeAdapter) -> None:
    """Sets the adapter for cases that cannot be adapted to: as it was kept by a run, or else as it started."""
    adapter.reset()
    if adapter.reset_per in ("site", "never"):
        adapter.resume()


def unadapted_remark(adapter: TestTimeAdapter, alone: int) -> str:
    """What is said of cases that were predicted without being adapted to."""
    from_run = adapter.reset_per in ("site", "never") and adapter.kept is not None
    how = "as the run left it after its own target" if from_run else "unadapted"
    return (
        f"{alone} case{'s' if alone > 1 else ''} came alone, and {type(adapter).__name__} cannot adapt to one image of "
        f"a network with BatchNorm: predicted with the model {how}. Predict more scans of the site at once, or train "
        "with reset=site."
    )
