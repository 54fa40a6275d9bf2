"""What tables of one row a case and model share: which models and seeds there are, and where their rows stand."""

from __future__ import annotations

import numpy as np

from medtl.errors import DataError
from medtl.evaluation.statistics.arrays import Bools, Ints, Strings


class CaseRows:
    """Columns `case`, `model` and `seed`, each (n,)."""

    case: Strings
    model: Strings
    seed: Strings

    def __len__(self) -> int:
        return len(self.case)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models in the order of their first row."""
        return tuple(dict.fromkeys(self.model.tolist()))

    def seeds(self, model: str) -> tuple[str, ...]:
        """Training seeds of one model; numbers in their own order."""
        found = set(self.seed[self.model == model].tolist())
        return tuple(sorted(found, key=lambda seed: (len(seed), seed)))

    def rows(self, **where: str) -> Ints:
        """Indices of the rows whose columns equal `where`, ordered by case, so that models are aligned."""
        keep: Bools = np.ones(len(self), dtype=bool)
        for column, value in where.items():
            keep &= getattr(self, column) == value
        found = np.flatnonzero(keep)
        return found[np.argsort(self.case[found], kind="stable")]


def table_fault(what: str, faults: list[str]) -> DataError:
    """One error of all faults of a table, such as "predictions table 'a.csv'"."""
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return DataError(f"The {what} has {count}: {'; '.join(faults)}.")
