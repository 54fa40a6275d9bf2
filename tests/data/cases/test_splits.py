from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtl.data.cases.splits import nested_patients, split_patients
from medtl.errors import ConfigError


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 4),
    st.integers(6, 40),
    st.sampled_from([0.1, 0.25, 0.4]),
    st.sampled_from([0.0, 0.2]),
)
def test_no_patient_in_two_splits_and_every_class_in_each(seed, num_classes, num_patients, val, test):
    rng = np.random.default_rng(seed)
    needed = 3 if test else 2
    firsts = [c for c in range(num_classes) for _ in range(needed)]
    of_patient = firsts + rng.integers(0, num_classes, max(0, num_patients - len(firsts))).tolist()
    patients, labels, sites = [], [], []
    for number, label in enumerate(of_patient):
        for _ in range(rng.integers(1, 4)):
            patients.append(f"p{number}")
            labels.append(f"c{label}")
            sites.append(f"s{number % 2}")
    result = split_patients(patients, labels, sites, val_fraction=val, test_fraction=test, seed=seed)
    places = {}
    for patient, split in zip(patients, result, strict=True):
        places.setdefault(patient, set()).add(split)
    assert all(len(found) == 1 for found in places.values())
    for split in ("train", "validation", "test") if test else ("train", "validation"):
        found = {label for label, name in zip(labels, result, strict=True) if name == split}
        assert found == set(labels), split
    assert result == split_patients(patients, labels, sites, val_fraction=val, test_fraction=test, seed=seed)


def test_shares_and_strata():
    labels = (["x"] * 30 + ["y"] * 10) * 2
    sites = ["a"] * 40 + ["b"] * 40
    patients = [f"p{n}" for n in range(80)]
    result = split_patients(patients, labels, sites, val_fraction=0.2, test_fraction=0.2, seed=1)
    counts = Counter(zip(result, labels, sites, strict=True))
    assert Counter(result) == {"train": 48, "validation": 16, "test": 16}
    for split, label, site in counts:
        share = {"train": 0.6, "validation": 0.2, "test": 0.2}[split]
        assert counts[split, label, site] == pytest.approx(share * (30 if label == "x" else 10), abs=1)
    other = split_patients(patients, labels, sites, val_fraction=0.2, test_fraction=0.2, seed=2)
    assert other != result


def test_smaller_sets_of_patients_are_inside_larger_ones_and_even() -> None:
    patients = [f"p{i // 2}" for i in range(60)]  # two cases each
    labels = ["ill" if i < 16 else "well" for i in range(60)]
    sets = nested_patients(patients, labels, [4, 10, 500], seed=3)
    assert list(sets) == [4, 10, 30]
    assert sets[4] < sets[10] < sets[30] == frozenset(patients)
    ill = {p for p, label in zip(patients, labels, strict=True) if label == "ill"}
    assert (len(sets[4] & ill), len(sets[10] & ill)) == (2, 5)
    assert sets != nested_patients(patients, labels, [4, 10, 500], seed=4)
    with pytest.raises(ConfigError, match="1 training patients cannot show 2 classes"):
        nested_patients(patients, labels, [1, 10])
