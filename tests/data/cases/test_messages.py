"""Messages name the domain, the file and the flag that they are about."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from medtl.data.cases.collect import collect_cases
from medtl.data.cases.table import CaseTable
from medtl.errors import DataError
from medtl.scans.items import Rejection
from medtl.tasks.classification import Classification
from tests.data.cases.test_cases_masks import write_masked
from tests.helpers.sites import write_site


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    write_site(tmp_path / "a")
    write_site(tmp_path / "b", 8, offset=100)
    return tmp_path


def collected(root: Path) -> CaseTable:
    labels = {"labels": root / "a" / "labels.csv", "target_labels": root / "b" / "labels.csv"}
    return collect_cases(source=[root / "a"], target=root / "b", **labels)


@pytest.mark.parametrize(("site", "flag"), [("a", "--labels"), ("b", "--target-labels")])
@pytest.mark.parametrize("line", ["ghost,p,class0", "one cell"])
def test_of_two_files_of_one_name_the_flag_is_named(sites: Path, site: str, flag: str, line: str) -> None:
    with (sites / site / "labels.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=rf"labels\.csv \({flag}\) "):
        collected(sites)


def test_of_files_of_two_names_the_name_is_enough(sites: Path) -> None:
    with (sites / "a" / "labels.csv").open("a") as file:
        file.write("ghost,p,class0\n")
    shutil.move(sites / "b" / "labels.csv", sites / "b" / "other.csv")
    with pytest.raises(DataError, match=r"labels\.csv labels 1 case"):
        collect_cases(
            source=[sites / "a"],
            labels=sites / "a" / "labels.csv",
            target=sites / "b",
            target_labels=sites / "b" / "other.csv",
        )


def test_of_two_folders_of_masks_of_one_name_the_flag_is_named(tmp_path: Path) -> None:
    source, masks = write_masked(tmp_path / "a")
    target, target_masks = write_masked(tmp_path / "b", first_seed=50)
    apart = {}
    for flag, folder in (("masks", masks), ("target_masks", target_masks)):
        apart[flag] = tmp_path / flag / "truth"
        shutil.move(folder, apart[flag])
    stray = next(apart["target_masks"].iterdir())
    shutil.copy(stray, stray.with_name(f"stray{stray.name}"))
    table = collect_cases(
        source=[source], masks=[apart["masks"]], target=target, target_masks=apart["target_masks"]
    )
    assert any("masks of 'truth (--target-masks)' belong to no scan" in w for w in table.warnings)


def rejected(table: CaseTable, domain: str) -> list[Rejection]:
    items = [c.item for c in table.select(domain=domain)]
    return [Rejection(i.path, "undecodable", f"{i.path} is cut", "", i.files, item=i) for i in items if i]


def test_the_example_is_of_what_is_gone(sites: Path) -> None:
    """One scan of the source fails, and all of the target."""
    table = collected(sites)
    lost = [*rejected(table, "source")[:1], *rejected(table, "target")]
    with pytest.raises(DataError, match=r"nothing is left of target\. The first: c1\d\d\.png is cut"):
        table.exclude(lost)


def test_without_a_source_there_is_no_target_either(sites: Path) -> None:
    """`medtl predict` has scans, and neither source nor target."""
    table = collect_cases(source=(), target=sites / "b")
    with pytest.raises(DataError, match="nothing else is there") as caught:
        table.exclude(rejected(table, "target"))
    assert "target" not in str(caught.value)


def test_half_of_the_target_lacks_a_class(sites: Path) -> None:
    table = collected(sites)
    task = Classification(SimpleNamespace(imbalance="none"))
    cohort = SimpleNamespace(table=table)
    half = [c for c in table.select(domain="target") if c.label == "class0"]
    with pytest.raises(DataError, match="--target-trained learns, have no case of class1"):
        task.loss(cohort, half)
    half = [dataclasses.replace(c, domain="source") for c in half]
    with pytest.raises(DataError, match="another --seed for the split"):
        task.loss(cohort, half)
