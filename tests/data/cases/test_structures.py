"""Which structures are named by their side."""

from __future__ import annotations

import pytest

from medtl.data.cases.structures import sided

SIDES = [
    ("left_kidney",),
    ("liver", "Lung, right lower lobe"),
    ("lung.RT",),
    ("rib_left_4",),
    ("left2",),
    ("LeftAtrium",),
    ("kidney_l", "kidney_r"),
    ("hippocampus L", "hippocampus R"),
    ("kidneyL", "kidneyR"),
    ("LKidney", "RKidney"),
    ("L", "R"),
    ("rib_L_5", "rib_R_5"),
    ("ctx-lh-insula", "ctx-rh-insula"),
    ("Niere links",),
]
NONE = [
    ("liver", "bright", "leftover", "label_1"),
    ("L1", "L2", "L3", "L4", "L5"),
    ("vertebrae_L1", "vertebrae_L5"),
    ("L5-S1", "T12/L1", "L4/L5"),
    ("l1", "r1"),
    ("R1", "L1"),
    ("C", "T", "L", "S"),
    ("L 1", "L 2"),
    ("spine_L", "spine_T"),
    ("kidney_l", "spleen_r"),
    ("grade_R",),
    ("cell", "wall", "RV", "LV"),
]


@pytest.mark.parametrize("names", SIDES, ids=" ".join)
def test_names_of_sides(names):
    found = sided(("background", *names))
    assert found
    assert set(found) <= set(names)


@pytest.mark.parametrize("names", NONE, ids=" ".join)
def test_names_without_a_side(names):
    assert sided(("background", *names)) == ()


def test_only_sided_names_are_reported():
    assert sided(("background", "kidney_l", "kidney_r", "L1", "liver")) == ("kidney_l", "kidney_r")
