"""Rules that clean a mask after prediction, by name; each is applied to every structure separately.

largest       keeps the largest component
remove_small  drops components of less than a twentieth of the structure's largest
fill_holes    fills holes that are enclosed on all sides; in a volume, also above and below
fill_holes_2d fills holes that are enclosed within a slice: a tube along the slices is filled

Components are connected at faces, edges and corners, in three dimensions for volumes. Only background is filled: a
structure inside another (a nucleus in its cytoplasm) stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, find_objects
from skimage import measure

from medtl.errors import ConfigError, near_matches

SMALL = 0.05
"""`remove_small` drops components smaller than this share of the largest one."""

Rule = Callable[[NDArray[np.bool_]], NDArray[np.bool_]]


def _largest(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    components, sizes = _components(inside)
    return np.asarray(components == sizes.argmax())


def _remove_small(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    components, sizes = _components(inside)
    kept = sizes >= SMALL * sizes.max()
    kept[0] = False
    return np.asarray(kept[components])


def _components(inside: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels the components and counts their voxels; label 0 is the outside, with size 0."""
    find: Any = measure.label
    components = find(inside, connectivity=inside.ndim)
    sizes = np.bincount(components.reshape(-1))
    sizes[0] = 0
    return components, sizes


def _fill_holes(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if inside.shape[0] == 1:  # beyond the first and last slice all is outside: an image would have no holes
        return _fill_holes_2d(inside)
    return np.asarray(binary_fill_holes(inside))


def _fill_holes_2d(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.stack([binary_fill_holes(plane) for plane in inside])


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "largest": _largest,
        "remove_small": _remove_small,
        "fill_holes": _fill_holes,
        "fill_holes_2d": _fill_holes_2d,
    }
)
"""All rules by name."""


def check_rules(rules: Sequence[str]) -> None:
    """Checks names before anything is computed.

    Raises:
        ConfigError: there is no such rule.
    """
    for name in rules:
        if name not in RULES:
            raise ConfigError(f"There is no rule {name!r}. {near_matches(name, RULES)}")


def apply_rules(mask: NDArray[np.uint8], rules: Sequence[str], num_classes: int) -> NDArray[np.uint8]:
    """Applies rules to a mask in order, to one structure after the other.

    Args:
        mask: (k, j, i) class indices; void is not changed.
        rules: names of `RULES`.
        num_classes: K, background included.

    Returns:
        (k, j, i) class indices; the mask itself if there is nothing to do.

    Raises:
        ConfigError: there is no such rule.
    """
    check_rules(rules)
    if not rules:
        return mask
    result = mask.copy()
    # The bounding boxes of the input suffice: no rule extends a structure beyond its own box.
    for number, box in enumerate(find_objects(mask, max_label=num_classes - 1), start=1):
        if box is None:
            continue
        part = result[box]
        inside = part == number
        for name in rules:
            inside = RULES[name](inside) & ((part == 0) | (part == number)) if inside.any() else inside
        part[(part == number) & ~inside] = 0
        part[inside] = number
    return result
