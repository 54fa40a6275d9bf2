"""A trained model: the header written with its weights, and loading it from the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medtl import __version__
from medtl.adapters.contract.adapter import Adapter
from medtl.checkpoints import load_weights
from medtl.data.tensors.spec import Preprocess
from medtl.errors import CheckpointError
from medtl.labelmap import LabelMap
from medtl.models import Classifier, Segmenter, build_classifier, build_segmenter


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
        hparams: hyper-parameters of a test-time method, which prediction needs to adapt again.
    """
    method, model = type(adapter).__module__.rpartition(".")[2].removeprefix("medtl_method_"), adapter.model
    header: dict[str, Any] = {
        "kind": "segmenter" if isinstance(model, Segmenter) else "classifier",
        "version": __version__,
        "name": name,
        "method": method,
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "model": model.spec() if isinstance(model, Classifier | Segmenter) else None,
    }
    if labels is not None:
        header |= {"labels": labels.to_dict(), "patch": list(patch or ())}
    if adapter.test_time:
        header["test_time"] = dict(hparams or {})
    return header


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


def load_trained(path: Path) -> Trained:
    """Rebuilds a model from `model.safetensors` alone: its header says what it is.

    Args:
        path: the file.

    Raises:
        CheckpointError: not a model of medtl, or tensors that do not fit its header.
    """
    header, weights = load_weights(path)
    try:
        spec = dict(header["model"])
        build = build_segmenter if header["kind"] == "segmenter" else build_classifier
        model: nn.Module = build(spec.pop("encoder"), spec.pop("num_classes"), weights=None, **spec)
        model.load_state_dict(weights)
        return Trained(
            model.eval(), tuple(header["classes"]), Preprocess.from_dict(header["preprocess"]), header
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} does not describe a model of this version of medtl ({type(error).__name__}). "
            "Expected: a model.safetensors that `medtl run` wrote."
        ) from error
