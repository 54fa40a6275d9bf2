from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medtl.errors import ConfigError
from medtl.labelmap import VOID
from medtl.prediction.rules import RULES, apply_rules, check_rules


def image(*rows: str) -> np.ndarray:
    return np.array([[[int(c) for c in row] for row in rows]], np.uint8)


def test_largest_component_of_each_structure():
    mask = image(
        "1100222",
        "1100222",
        "0000000",
        "1022000",
        "0000001",
    )
    expected = image(
        "1100222",
        "1100222",
        "0000000",
        "0000000",
        "0000000",
    )
    np.testing.assert_array_equal(apply_rules(mask, ["largest"], 3), expected)


def test_components_are_joined_at_corners_and_through_slices():
    mask = np.zeros((3, 4, 4), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = 1
    np.testing.assert_array_equal(apply_rules(mask, ["largest"], 2), mask)


def test_small_components_by_share_of_the_largest():
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, :10, :10] = 1  # 100 voxels
    mask[0, 12, :5] = 1  # 5: the twentieth part stays
    mask[0, 15, :4] = 1  # 4 goes
    found = apply_rules(mask, ["remove_small"], 2)
    assert found[0, 12].sum() == 5
    assert found[0, 15].sum() == 0
    assert found.sum() == 105


def test_holes_of_an_image_are_filled_and_other_structures_in_them_stay():
    mask = image(
        "11111",
        "10001",
        "10201",
        "10001",
        "11111",
    )
    expected = image(
        "11111",
        "11111",
        "11211",
        "11111",
        "11111",
    )
    for rule in ("fill_holes", "fill_holes_2d"):
        np.testing.assert_array_equal(apply_rules(mask, [rule], 3), expected)


def test_a_tube_is_a_hole_slice_by_slice_only():
    tube = np.zeros((4, 5, 5), np.uint8)
    tube[:, 1:4, 1:4] = 1
    tube[:, 2, 2] = 0
    np.testing.assert_array_equal(apply_rules(tube, ["fill_holes"], 2), tube)
    assert apply_rules(tube, ["fill_holes_2d"], 2)[:, 2, 2].all()
    closed = tube.copy()
    closed[0, 2, 2] = closed[3, 2, 2] = 1
    assert apply_rules(closed, ["fill_holes"], 2)[1:3, 2, 2].all()


def test_rules_run_in_their_order():
    mask = image(
        "111000",
        "101000",
        "111001",
    )
    both = apply_rules(mask, ["largest", "fill_holes"], 2)
    assert both.sum() == 9
    assert both[0, 2, 5] == 0


def test_void_and_absent_structures_are_left_alone():
    mask = image("1105", "0000", "1000")
    mask[mask == 5] = VOID
    found = apply_rules(mask, ["largest", "fill_holes", "remove_small"], 4)
    np.testing.assert_array_equal(found == VOID, mask == VOID)
    assert (found == 1).sum() == 2


def test_nothing_asked_for_and_nothing_known():
    mask = image("101")
    assert apply_rules(mask, [], 2) is mask
    with pytest.raises(ConfigError, match="Perhaps you meant 'largest'"):
        check_rules(["larges"])
    with pytest.raises(ConfigError, match="no rule 'x'"):
        apply_rules(mask, ["x"], 2)


@settings(deadline=None, max_examples=60)
@given(arrays(np.uint8, (3, 5, 6), elements=st.integers(0, 2)), st.sampled_from(sorted(RULES)))
def test_rules_are_idempotent_keep_their_input_and_only_fill_background(mask, rule):
    before = mask.copy()
    once = apply_rules(mask, [rule], 3)
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(apply_rules(once, [rule], 3), once)
    if rule.startswith("fill"):
        assert (once[mask > 0] == mask[mask > 0]).all()
    else:
        assert ((once == mask) | (once == 0)).all()
