"""The phases of a training step, for methods that take turns (MCD, ADDA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch import nn


@dataclass(frozen=True)
class Phase:
    """One turn of a training step: its own loss, after which a part of the networks takes a step.

    An adapter with several phases is called with `phase=NAME`, `repeats` times in each phase; in your own loop:

        for phase in adapter.phases:
            for _ in range(phase.repeats):
                optimizer.zero_grad()
                adapter(source, target, progress=p, phase=phase.name)["loss"].backward()
                adapter.keep_gradients(phase)      # of what learns in it
                optimizer.step()

    Attributes:
        name: of the phase.
        learns: attributes of the adapter that hold what learns (`model`, `model.head`, `discriminator`); all if empty.
        but: attributes within these that do not learn in it.
        repeats: how often it runs in each step.
    """

    name: str = "train"
    learns: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    repeats: int = 1

    def parameters(self, adapter: nn.Module, learning: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Those of `learning` that take a step in this phase.

        Args:
            adapter: holds the modules by name.
            learning: all parameters that learn at some time.
        """
        if not self.learns and not self.but:
            return list(learning)
        chosen = _of(adapter, self.learns) if self.learns else {id(p) for p in learning}
        chosen -= _of(adapter, self.but)
        return [p for p in learning if id(p) in chosen]


def _of(adapter: nn.Module, names: Sequence[str]) -> set[int]:
    found: set[int] = set()
    for name in names:
        part = attrgetter(name)(adapter)
        found |= {id(part)} if isinstance(part, nn.Parameter) else {id(p) for p in part.parameters()}
        if name == "model":  # what a strategy adds to the model, such as low-rank updates, learns with it
            found |= {id(p) for p in attrgetter("strategy")(adapter).parameters()}
    return found
