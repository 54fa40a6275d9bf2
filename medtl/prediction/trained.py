"""A trained model: the header written with its weights, and loading it from the file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medtl import __version__
from medtl.adapters.contract.adapter import Adapter
from medtl.adapters.contract.discovery import available, build_adapter
from medtl.adapters.contract.test_time import TestTimeAdapter
from medtl.checkpoints import load_weights, refuse_empty, save_weights
from medtl.data.tensors.spec import Preprocess
from medtl.discovery import OWN
from medtl.errors import CheckpointError, ConfigError
from medtl.labelmap import LabelMap
from medtl.models import Classifier, Segmenter, build_classifier, build_segmenter
from medtl.record import digest_of

STATE = "state.safetensors"
"""Beside a model's weights: the state with which a test-time method ended in the run."""


def model_header(
    adapter: Adapter,
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    name: str = "",
    labels: LabelMap | None = None,
    patch: Sequence[int] | None = None,
    hparams: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The facts that `load_trained` needs besides the tensors, as JSON values.

    Args:
        adapter: the trained adapter.
        classes: names in the order of the logits.
        preprocess: of the scans.
        name: of the model, as tables and reports give it; a folder cannot hold every character of it.
        labels: values in masks, for segmentation.
        patch: size of the windows, for segmentation.
        hparams: the method's hyper-parameters, which prediction needs if it adapts again.
    """
    module, model = type(adapter).__module__.rpartition(".")[2], adapter.predictor
    header: dict[str, Any] = {
        "kind": "segmenter" if isinstance(model, Segmenter) else "classifier",
        "version": __version__,
        "name": name,
        "method": module.removeprefix(OWN),
        "own_file": module.startswith(OWN),
        "own_digest": own_digest(adapter) if module.startswith(OWN) else None,
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "model": model.spec() if isinstance(model, Classifier | Segmenter) else None,
    }
    if labels is not None:
        header |= {"labels": labels.to_dict(), "patch": list(patch or ())}
    header["hparams"] = dict(hparams or {})
    header["test_time"] = isinstance(adapter, TestTimeAdapter)
    return header


def own_digest(adapter: Adapter) -> str | None:
    """SHA-256 of the user's own file that holds the method; None if it is gone."""
    file = inspect.getfile(type(adapter))
    return digest_of(Path(file)) if Path(file).is_file() else None


@dataclass(frozen=True)
class Trained:
    """A model of a finished run, as `load_trained` reads it.

    Attributes:
        model: in eval mode.
        classes: names in the order of the logits.
        preprocess: of the scans.
        header: everything that was written with the weights.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    header: dict[str, Any]

    @property
    def labels(self) -> LabelMap | None:
        """The meaning of mask values; None for a classifier."""
        if "labels" not in self.header:
            return None
        # The network defines the order of classes; JSON objects have no guaranteed order.
        return LabelMap.from_dict(self.header["labels"]).select(self.classes[1:])


def load_trained(path: Path, method: str | None = None) -> Trained:
    """Rebuilds a model from `model.safetensors` alone: its header says what it is.

    Args:
        path: the file.
        method: your own file of the method, for a model whose head it has made of its own layers.

    Raises:
        CheckpointError: not a model of medtl, tensors that do not fit its header, or a head of unknown layers.
    """
    return load_adapter(path, method)[0]


def load_adapter(path: Path, method: str | None = None) -> tuple[Trained, Adapter]:
    """As `load_trained`, with the method that adapts the model while it predicts; else plain fine-tuning.

    Args:
        path: `model.safetensors` of a run. Beside it are what the method keeps, and where it ended in the run.
        method: your own file of the method: a run holds no code.

    Raises:
        CheckpointError: as `load_trained`, or a method of your own that is not named.
        ConfigError: the file is not the method's.
    """
    header, weights = load_weights(path)
    refuse_empty(path, weights)
    adapts = bool(header.get("test_time", False))
    try:
        own = _own_method(header, method, adapts)
        spec = _checked(header)
        build = build_segmenter if header["kind"] == "segmenter" else build_classifier
        foreign = "head" in spec and spec["head"] is None
        if foreign:
            del spec["head"]
        model: nn.Module = build(spec.pop("encoder"), spec.pop("num_classes"), weights=None, **spec)
        if not adapts and not foreign:
            model.load_state_dict(weights)
            adapter = build_adapter("finetune", model)
        else:
            adapter = build_adapter(own, model, **header["hparams"])
            if (own_file := header.get("own_digest")) is not None and own_digest(adapter) != own_file:
                raise ConfigError(
                    f"{Path(own).name} is not the file that the run was trained with: it was changed since. Name that "
                    "version of it with --method."
                )
            _load_state(adapter, path, weights)
        preprocess = Preprocess.from_dict(header["preprocess"])
        return Trained(adapter.predictor.eval(), tuple(header["classes"]), preprocess, header), adapter
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"{path.name} does not describe a model of this version of medtl ({type(error).__name__}). "
            "Expected: a model.safetensors that `medtl run` wrote."
        ) from error


RANGES: Mapping[str, tuple[int, int]] = {
    "num_classes": (2, 10_000),
    "in_channels": (1, 64),
    "neighbours": (1, 64),
    "width": (4, 1024),
    "bottleneck": (1, 65_536),
    "image_size": (8, 4096),
    "num_slices": (2, 4096),
}
"""Sizes that a header may ask for; a file from anywhere could ask for all of the memory."""


def _checked(header: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the network in a header, if what it says can be.

    Raises:
        ValueError: it cannot.
    """
    spec, classes = dict(header["model"]), header["classes"]
    texts = [header["kind"], spec["encoder"], *classes, *([spec["network"]] if "network" in spec else [])]
    if not isinstance(classes, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("names")
    if header["kind"] not in ("classifier", "segmenter"):
        raise ValueError("kind")
    if len(set(classes)) != len(classes) or len(classes) != spec["num_classes"]:
        raise ValueError("classes")
    sizes = {**spec, **header["preprocess"]}
    sizes |= {f"patch {n}": size for n, size in enumerate(header.get("patch") or ())}
    for name, size in sizes.items():
        low, high = RANGES.get(name, (1, 4096) if name.startswith("patch") else (0, 0))
        if high and size is not None and not (type(size) is int and low <= size <= high):
            raise ValueError(name)
    return spec


def _own_method(header: Mapping[str, Any], method: str | None, adapts: bool) -> str:
    """The method of a header: by its name, or the file that the user names."""
    name = str(header.get("method", ""))
    needed = adapts or dict(header.get("model") or {}).get("head", "") is None
    if not needed:
        return name
    if not header.get("own_file"):
        if name not in available():
            raise CheckpointError(
                f"This model needs a method that medtl {__version__} does not have ({name[:60]!r}): use the version "
                "that trained it."
            )
        return name
    if method is None:
        raise CheckpointError(
            f"This model needs its method {name!r}, which is a file of your own, and a run holds no code: name the "
            f"file with --method {name}.py."
        )
    if Path(method).stem != name:
        raise ConfigError(f"The run's method is {name!r}, got the file {Path(method).name!r} with --method.")
    return method


def _load_state(adapter: Adapter, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Loads the predictor's weights, what the method keeps beside them, and where it ended in the run."""
    prefix = next(name for name, module in adapter.named_modules() if module is adapter.predictor)
    state = {f"{prefix}.{key}": value for key, value in weights.items()}
    beside, ended = path.with_name("adapter.safetensors"), path.with_name(STATE)
    if beside.is_file():
        state |= load_weights(beside)[1]
    adapter.load_state_dict(state, strict=beside.is_file())
    if isinstance(adapter, TestTimeAdapter) and ended.is_file():
        kept = dict(load_weights(ended)[1])
        if not adapter.fits(kept):
            raise CheckpointError(f"{STATE} does not fit the model beside it: restore the run's own file.")
        adapter.kept = kept


def save_state(adapter: Adapter, folder: Path) -> None:
    """Writes the state with which a test-time method ended in a run, if a later prediction can go on from it.

    Args:
        adapter: after it has predicted the target's cases.
        folder: of the model.
    """
    if isinstance(adapter, TestTimeAdapter) and adapter.kept is not None:
        save_weights(folder / STATE, adapter.kept, {"kind": "test_time"})
