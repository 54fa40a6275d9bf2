"""What a method is told about the data of a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Facts about the data of a training, the same in a run that is resumed.

    Attributes:
        sites: names of all sites; `Batch.site` holds places in it.
        source_sites: those of the source.
        target_sites: those of the target; empty without a target.
        classes: names of the classes in the order of the logits; empty if the data set does not name them.
        shares: of the classes among the source's training cases; empty in segmentation and with several findings.
        num_source: number of training cases of the source.
        num_target: number of cases of the target.
        num_labelled_target: number of its cases with a label that training may use.
        num_steps: steps of the whole training.
    """

    sites: tuple[str, ...] = ()
    source_sites: tuple[str, ...] = ()
    target_sites: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    num_source: int = 0
    num_target: int = 0
    num_labelled_target: int = 0
    num_steps: int = 0
