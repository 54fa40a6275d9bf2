"""Test-time consistency of segmentation under random views."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtl.adapters.contract.norm import Statistics
from medtl.adapters.contract.parts import encoder_of, norm_parameters
from medtl.adapters.contract.test_time import Reset, TestTimeAdapter
from medtl.errors import ConfigError

Params = Literal["all", "norms", "encoder"]


def random_affine(num: int, dims: int, strength: float, generator: torch.Generator) -> Tensor:
    """Returns (num, dims + 1, dims + 1) affine maps near the identity; coordinates run from -1 to 1 over the patch."""
    matrix = torch.eye(dims + 1).repeat(num, 1, 1)
    matrix[:, :dims] += strength * torch.randn(num, dims, dims + 1, generator=generator)
    return matrix


def warp(values: Tensor, matrix: Tensor, *, padding: str = "border") -> Tensor:
    """Resamples (N, C, *S) linearly: the output at x is the input at `matrix` x."""
    grid = F.affine_grid(matrix[:, :-1].to(values), list(values.shape), align_corners=False)
    return F.grid_sample(values, grid, padding_mode=padding, align_corners=False)


def soft_dice(p: Tensor, q: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice of two predictions (N, K, *S) within a mask (N, 1, *S), averaged over cases and classes.

    2 sum(pq) / (sum(p^2) + sum(q^2)) (Milletari et al. 2016). It is 1 if and only if the two are equal, so two views
    that agree that a class is absent are not pushed to find it.
    """
    axes = tuple(range(2, p.ndim))
    both = (p * q * mask).sum(axes)
    each = ((p * p + q * q) * mask).sum(axes)
    return ((2 * both + 1e-5) / (each + 1e-5)).mean()


class Consistency(TestTimeAdapter):
    """Makes a segmentation agree with itself under random views at test time (DG-TTA: Weihsbach et al. 2023).

    Each batch is seen in two random views, which differ by an affine map and by their grey values. The predictions are
    mapped back, and the model maximises their agreement: the soft Dice of the structures (without the background)
    where both views show the same content. Works in 2D and 3D. The views depend on the step number alone.

    A constant prediction also agrees with itself: if the learning rate is too high or there are too many steps,
    structures vanish. Compare their volumes before and after.

    Three differences from the paper and its code: contrast changes replace its random networks, there is no ensemble,
    and the soft Dice has squared probabilities in its denominator, see `soft_dice`.

    Args:
        model: trained on the source.
        params: what adapts: `all` weights, the scales and offsets of the `norms`, or the `encoder`.
        strength: standard deviation of the affine map's entries, in half patches.
        intensity: standard deviation of log gain and log gamma; half of it is that of the offset.
        lr: learning rate of AdamW.
        steps: updates per batch.
        reset: the model returns to its start for each `patient` or for each `site`.
        statistics: BatchNorm statistics of the source (`running`) or of the group (`target`), which then needs many
            images; see `medtl.adapters.contract.test_time`.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    why_not: ClassVar[str] = "it compares where structures lie, and a class label has no location"

    def __init__(
        self,
        model: nn.Module,
        *,
        params: Params = "all",
        strength: float = 0.05,
        intensity: float = 0.2,
        lr: float = 1e-5,
        steps: int = 4,
        reset: Reset = "patient",
        statistics: Statistics = "running",
    ) -> None:
        if params not in get_args(Params):
            raise ConfigError(f"Consistency: params is {params!r}; expected all, norms or encoder.")
        if not 0 <= strength <= 0.2 or intensity < 0 or strength + intensity == 0:
            raise ConfigError(
                f"Consistency: strength is {strength} and intensity {intensity}; expected strength from 0 to 0.2, "
                "intensity of at least 0, and not both 0: two equal views always agree."
            )
        super().__init__(
            model, _chosen(model, params), lr=lr, steps=steps, reset=reset, statistics=statistics
        )
        self.params, self.strength, self.intensity = params, strength, intensity

    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """Computes 1 - soft Dice of two views."""
        generator = torch.Generator().manual_seed(int(self.step))
        views = [self._view(image, generator) for _ in range(2)]
        with torch.autocast(image.device.type, enabled=False):
            (p, p_seen), (q, q_seen) = views
            shared = ((p_seen > 0.999) & (q_seen > 0.999)).float()
            dice = soft_dice(p[:, 1:], q[:, 1:], shared)
        return {"loss": 1 - dice, "dice": dice.detach(), "shared": shared.mean()}

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(parameters, lr=self.lr)

    def _view(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns probabilities (N, K, *S) in the batch's frame, and which voxels (N, 1, *S) the view contained."""
        matrix = random_affine(len(image), image.ndim - 2, self.strength, generator)
        seen = warp(torch.ones_like(image[:, :1]), matrix, padding="zeros")
        shape = (*image.shape[:2], *[1] * (image.ndim - 2))
        gain, gamma, offset = (torch.randn(shape, generator=generator).to(image) for _ in range(3))
        grey = warp(image, matrix).clamp(0, 1) ** torch.exp(self.intensity * gamma)
        grey = grey * torch.exp(self.intensity * gain) + self.intensity * offset / 2
        logits = self.model(grey.clamp(0, 1)).logits
        if logits.ndim == 2:
            self._check_task("multiclass")
        back = torch.linalg.inv(matrix)
        return warp(torch.softmax(logits.float(), dim=1), back), warp(seen, back, padding="zeros")


def _chosen(model: nn.Module, params: Params) -> list[nn.Parameter]:
    if params == "all":
        return list(model.parameters())
    if params == "norms":
        chosen = norm_parameters(model)
    else:
        encoder = encoder_of(model)
        chosen = [] if encoder is None else list(encoder.parameters())
    if not chosen:
        raise ConfigError(
            f"Consistency with params={params}: {type(model).__name__} has no such parameters, so it would change "
            "nothing. Use params=all."
        )
    return chosen
