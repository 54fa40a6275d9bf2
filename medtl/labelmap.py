"""What the numbers in a mask mean: names of structures, background, and what is not to be judged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ConfigError, near_matches

VOID = 255
"""Class index of voxels that are neither trained on nor judged."""
BACKGROUND = "background"
FILE_NAME = "labels.json"


@dataclass(frozen=True)
class LabelMap:
    """Names of structures and the values that stand for them in stored masks.

    Class 0 is the background; structures are classes 1, 2, ... in the order of `structures`.

    Attributes:
        structures: name of each structure and its stored values; the first is the one that is written.
        background: stored values of the background; the first is the one that is written.
        void: stored values that are neither trained on nor judged.
    """

    structures: Mapping[str, tuple[int, ...]] = field(hash=False)
    background: tuple[int, ...] = (0,)
    void: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.structures:
            raise ConfigError(
                "There is no structure to segment: name one, for example --structures lesion=1."
            )
        if len(self.structures) >= VOID:
            raise ConfigError(f"{len(self.structures)} structures; at most {VOID - 1} are supported.")
        if not self.background:
            raise ConfigError("The background needs a value, usually 0.")
        owner: dict[int, str] = {}
        for name, values in {**self.structures, BACKGROUND: self.background, "void": self.void}.items():
            if name != "void" and not values:
                raise ConfigError(f"Structure {name!r} has no value.")
            for value in values:
                if value in owner:
                    raise ConfigError(f"The value {value} stands for both {owner[value]!r} and {name!r}.")
                owner[value] = name

    @property
    def classes(self) -> tuple[str, ...]:
        """`background` and the structures, in the order of the network's outputs."""
        return (BACKGROUND, *self.structures)

    @property
    def values(self) -> tuple[int, ...]:
        """The value that is written for each class."""
        return (self.background[0], *(values[0] for values in self.structures.values()))

    def encode(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """Class indices of stored integers; `VOID` for void and for values that are not known."""
        named = {
            v: i for i, values in enumerate((self.background, *self.structures.values())) for v in values
        }
        result = np.full(stored.shape, VOID, dtype=np.uint8)
        if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
            for value, index in named.items():
                result[stored == value] = index
            return result
        # One look at each voxel, however many structures there are.
        kind = np.iinfo(stored.dtype)
        table = np.full(kind.max - kind.min + 1, VOID, dtype=np.uint8)
        for value, index in named.items():
            if kind.min <= value <= kind.max:
                table[value] = index  # a negative value counts from the end, as it does on reading
        for part in slabs(stored):
            result[part] = table[stored[part]]
        return result

    def unknown(self, stored: NDArray[Any]) -> dict[int, int]:
        """Stored integers that the map does not name, and how many voxels hold each."""
        known = {*self.background, *self.void, *(v for values in self.structures.values() for v in values)}
        return {value: count for value, count in count_values(stored).items() if value not in known}

    def agrees(self, other: LabelMap) -> bool:
        """Whether both give every value the same meaning; order, and which of several values is written, are free."""
        return self._meaning() == other._meaning()

    def _meaning(self) -> dict[str, set[int]]:
        named = {BACKGROUND: self.background, **self.structures, **({"void": self.void} if self.void else {})}
        return {name: set(values) for name, values in named.items()}

    def within(self, other: LabelMap) -> bool:
        """Whether each structure has the values that it has in the other map, as in a selection from it."""
        mine, others = self._meaning(), other._meaning()
        return all(others.get(name) == mine[name] for name in self.structures)

    def text(self) -> str:
        """In one line, for messages: `background 0, lesion 1, void 255`."""
        named = {BACKGROUND: self.background, **self.structures, **({"void": self.void} if self.void else {})}
        return ", ".join(f"{name} {'/'.join(map(str, values))}" for name, values in named.items())

    def decode(self, index: NDArray[np.uint8]) -> NDArray[Any]:
        """Stored values of class indices, uint8 or the smallest type that holds them; void as its own value or 0."""
        void = self.void[0] if self.void else self.background[0]
        values = np.full(256, void)
        values[: len(self.values)] = self.values
        low, high = int(values.min()), int(values.max())
        for kind in (np.uint8, np.int16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                table, stored = values.astype(kind), np.empty(index.shape, dtype=kind)
                for part in slabs(index):
                    stored[part] = table[index[part]]
                return stored
        raise ConfigError(f"The values of a mask run from {low} to {high}, beyond 32 bits.")

    def select(self, names: Sequence[str]) -> LabelMap:
        """The map of these structures alone, in this order; the others become background.

        Raises:
            ConfigError: a name that is not in the map.
        """
        for name in names:
            if name not in self.structures:
                raise ConfigError(
                    f"The masks have no structure {name!r}. {near_matches(name, self.structures)}"
                )
        others = tuple(v for n, values in self.structures.items() if n not in names for v in values)
        return LabelMap({n: self.structures[n] for n in names}, (*self.background, *others), self.void)

    def to_dict(self) -> dict[str, Any]:
        """As `labels.json` holds it: names to a value or a list of values, with `background` and `void`."""
        named = {BACKGROUND: self.background, **self.structures, **({"void": self.void} if self.void else {})}
        return {name: values[0] if len(values) == 1 else list(values) for name, values in named.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelMap:
        """The inverse of `to_dict`; `ignore` is another name for `void`.

        Raises:
            ConfigError: something that is not an integer or a list of integers, or a value that is named twice.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, value in values.items():
            listed = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(v, int) and not isinstance(v, bool) for v in listed):
                raise ConfigError(
                    f"labels: {name!r} is {value!r}; expected an integer or a list of integers."
                )
            text = str(name).strip()
            if not text or text in found:
                what = f"the structure {text!r} is named twice" if text else "there is a value without a name"
                raise ConfigError(f"labels: {what}.")
            found[text] = tuple(listed)
        background = found.pop(BACKGROUND, (0,))
        void = (*found.pop("void", ()), *found.pop("ignore", ()))
        return cls(found, background, void)

    @classmethod
    def read(cls, path: Path) -> LabelMap:
        """Reads `labels.json`, or a `dataset.json` with a key `labels`.

        Raises:
            ConfigError: no such file, not JSON, or not a map of names to integers.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"The label file {path.name} cannot be read ({type(error).__name__})."
            ) from error
        values = values.get("labels", values) if isinstance(values, dict) else values
        if not isinstance(values, dict):
            raise ConfigError(f'{path.name} holds no map of names to values; expected {{"lesion": 1}}.')
        if values and all(re.fullmatch(r"-?\d+", k) and isinstance(v, str) for k, v in values.items()):
            # The other way round, as the Medical Segmentation Decathlon's dataset.json has it.
            turned: dict[str, list[int]] = {}
            for value, name in values.items():
                turned.setdefault(name, []).append(int(value))
            return cls.from_dict(turned)
        return cls.from_dict(values)

    @classmethod
    def parse(cls, pairs: Iterable[str]) -> LabelMap:
        """Reads `nucleus=255`, `tumour=1,2`, `void=9`, as flags give them.

        Raises:
            ConfigError: not NAME=VALUE, or what `from_dict` raises.
        """
        values: dict[str, list[int]] = {}
        for pair in pairs:
            match = re.fullmatch(r"\s*([^=]+?)\s*=\s*(-?\d+(?:,-?\d+)*)\s*", pair)
            if not match:
                raise ConfigError(
                    f"--structures takes NAME=VALUE, got {pair!r}; for example nucleus=255 or tumour=1,2."
                )
            values.setdefault(match[1], []).extend(int(v) for v in match[2].split(","))
        return cls.from_dict(values)


def slabs(array: NDArray[Any], size: int = 1 << 22) -> Iterator[slice]:
    """Parts of the first axis of about `size` values: NumPy makes 8-byte copies of what it counts or looks up."""
    step = max(1, size * len(array) // max(1, array.size))
    return (slice(start, start + step) for start in range(0, len(array), step))


def count_values(stored: NDArray[Any]) -> dict[int, int]:
    """The integers of an array and how many voxels hold each, in rising order."""
    if not stored.size:
        return {}
    low, high = int(stored.min()), int(stored.max())
    if high - low < 1 << 16:
        counts = np.zeros(high - low + 1, dtype=np.int64)
        for part in slabs(stored):
            counts += np.bincount(stored[part].ravel().astype(np.int64) - low, minlength=len(counts))
        return {int(v) + low: int(counts[v]) for v in np.flatnonzero(counts)}
    found, numbers = np.unique(stored, return_counts=True)
    return {int(v): int(n) for v, n in zip(found, numbers, strict=True)}
