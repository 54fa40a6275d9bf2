"""A cohort: cases and their preprocessed volumes, from which data sets are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.data.cache import VolumeCache
from medtl.data.dataset import CaseDataset
from medtl.data.preprocess import Preprocess
from medtl.data.table import Case, CaseTable


@dataclass(frozen=True)
class Cohort:
    """Cases that can all be read, and the cache that holds them.

    Attributes:
        table: all cases, used and excluded, with classes, rejections and warnings.
        cache: preprocessed volumes.
    """

    table: CaseTable
    cache: VolumeCache

    @classmethod
    def prepare(
        cls,
        table: CaseTable,
        preprocess: Preprocess,
        folder: Path,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Cohort:
        """Preprocesses every used case once; those that cannot be read are excluded, with the reason."""
        cache = VolumeCache(folder, preprocess)
        rejections = cache.prepare(table.items(), progress=progress)
        return cls(table.exclude(rejections) if rejections else table, cache)

    def cases_per_batch(self, images: int) -> int:
        """How many cases hold about so many images or slices; at least 2."""
        return max(2, round(images / (self.cache.preprocess.num_slices or 1)))

    def sites(self, domain: str) -> tuple[str, ...]:
        """Names of the domain's sites."""
        return tuple(sorted({case.site for case in self.select(domain)}))

    def summary(self) -> list[dict[str, Any]]:
        """One row a site: what was found, used, and left out, and why."""
        rows = []
        for site, found in self.table.flow().items():
            left_out = {**found["rejected"], **found["excluded"]}
            rows.append(
                {
                    "site": site,
                    "files": found["files"],
                    "cases": found["cases"],
                    "patients": found["patients"],
                    "left out": ", ".join(f"{n} {reason}" for reason, n in left_out.items()) or "nothing",
                }
            )
        return rows

    def select(self, domain: str | None = None, split: str | None = None) -> tuple[Case, ...]:
        """Used cases of a domain and split."""
        return tuple(self.table.select(domain=domain, split=split))

    def dataset(
        self, domain: str, split: str, *, with_labels: bool = False, augment: str = "none", seed: int = 0
    ) -> CaseDataset | None:
        """The cases of a domain and split as a data set, or None if there are none."""
        cases = self.select(domain, split)
        if not cases:
            return None
        return CaseDataset(
            cases,
            self.cache,
            classes=self.table.classes,
            augment=augment,
            with_labels=with_labels,
            seed=seed,
            stream=domain,
        )
