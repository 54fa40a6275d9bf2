"""Random changes of training images: one seed gives one result, whatever was drawn before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandShiftIntensity,
)
from monai.transforms.spatial.array import RandAffine, RandFlip, RandSimulateLowResolution
from monai.transforms.transform import RandomizableTransform
from numpy.typing import NDArray
from torch import Tensor

from medtl.errors import ConfigError, near_matches

Augmentation = Callable[[NDArray[Any] | Tensor, int], Tensor]
NAMES = ("none", "standard", "strong")


def augmentation(name: str, spatial_dims: int, channels: int) -> Augmentation:
    """Builds the augmentation of a name.

    `standard`: left-right flip, small in-plane affine, contrast, brightness, noise, blur, low resolution.
    `strong`: the same more often and further, a bias field for grey and a colour shift for colour images.
    Volumes are changed alike in all slices: a slice is not moved against its neighbours.

    Args:
        name: `none`, `standard` or `strong`.
        spatial_dims: 2 for (C, H, W), 3 for (C, D, H, W).
        channels: 1 or 3.

    Returns:
        A function of an image with values in [0, 1] and a seed; its result is float32 in [0, 1] of the
        same shape.

    Raises:
        ConfigError: There is no such augmentation.
    """
    if name not in NAMES:
        raise ConfigError(f"There is no augmentation {name!r}. {near_matches(name, NAMES)}")
    if spatial_dims not in (2, 3):
        raise ConfigError(f"Augmentation is for 2 or 3 dimensions, got {spatial_dims}.")
    if name == "none":
        return _unchanged
    return _Augmentation(name == "strong", channels)


def _unchanged(image: NDArray[Any] | Tensor, seed: int) -> Tensor:
    return _tensor(image)


def _tensor(image: NDArray[Any] | Tensor) -> Tensor:
    if isinstance(image, Tensor):
        return image.to(torch.float32, copy=True)
    return torch.from_numpy(np.array(image, dtype=np.float32))  # a copy: the source may be a read-only map


class _Augmentation:
    """Geometry on slices as channels, then grey values on the whole; all draw from one generator."""

    def __init__(self, strong: bool, channels: int) -> None:
        more = 1.6 if strong else 1.0
        colour = [_RandColour(0.8)] if strong and channels == 3 else []
        bias = [RandBiasField(prob=0.4, degree=2, coeff_range=(0.0, 0.2))] if strong and channels == 1 else []
        blur = (0.3, 0.8 * more)
        # Reseeding one generator costs a tenth of giving each transform a new one, as Compose does.
        self.generator = np.random.RandomState()
        self.more = more
        self.geometry: dict[tuple[int, int], list[RandomizableTransform]] = {}
        self.values: list[RandomizableTransform] = [
            *bias,
            *colour,
            RandAdjustContrast(prob=0.3 * more, gamma=(1 / (1 + 0.4 * more), 1 + 0.4 * more)),
            RandScaleIntensity(prob=0.3 * more, factors=0.2 * more),
            RandShiftIntensity(prob=0.3 * more, offsets=0.1 * more),
            RandSimulateLowResolution(
                prob=0.1 * more, downsample_mode="area", upsample_mode="bilinear", zoom_range=(0.5, 1.0)
            ),
            _RandSmooth(prob=0.15 * more, sigma_x=blur, sigma_y=blur),
            RandGaussianNoise(prob=0.2 * more, std=0.04 * more),
        ]
        self._share(self.values)

    def _share(self, transforms: list[RandomizableTransform]) -> None:
        for transform in transforms:
            transform.set_random_state(state=self.generator)

    def __call__(self, image: NDArray[Any] | Tensor, seed: int) -> Tensor:
        tensor = _tensor(image)
        shape = tensor.shape
        height, width = int(shape[-2]), int(shape[-1])
        geometry = self.geometry.get((height, width))
        if geometry is None:
            geometry = self.geometry[height, width] = _geometry(height, width, self.more)
            self._share(geometry)
        self.generator.seed([seed % 2**32, seed >> 32])
        planes = tensor.reshape(-1, height, width)
        for transform in (*geometry, *self.values):
            planes = _plain(transform(planes))
        return planes.reshape(shape).clamp(0, 1).contiguous()


def _geometry(height: int, width: int, more: float) -> list[RandomizableTransform]:
    """Left-right flip and a small affine; the border is repeated, so no black corners give it away."""
    affine = RandAffine(
        prob=0.5 * more,
        rotate_range=math.radians(10) * more,
        scale_range=(0.1 * more, 0.1 * more),
        translate_range=(0.04 * more * height, 0.04 * more * width),
        spatial_size=(height, width),
        mode="bilinear",
        padding_mode="border",
        cache_grid=True,
    )
    return [RandFlip(prob=0.5, spatial_axis=1), affine]


def _plain(image: Any) -> Tensor:
    return image.as_tensor() if hasattr(image, "as_tensor") else torch.as_tensor(image)


class _RandSmooth(RandGaussianSmooth):
    """The blur with its border repeated outwards; alone it would draw a dark frame round the image."""

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        self.randomize()
        if not self._do_transform:
            return img
        reach = 6  # more than the kernel's four standard deviations
        padded = torch.nn.functional.pad(_plain(img)[None], (reach,) * 4, mode="replicate")[0]
        return _plain(super().__call__(padded, randomize=False))[:, reach:-reach, reach:-reach]


class _RandColour(RandomizableTransform):
    """Turns hue, stretches saturation, scales channels: the spread of stains and white balances."""

    def __init__(self, prob: float, hue: float = 0.12, saturation: float = 0.4, gain: float = 0.15) -> None:
        super().__init__(prob)
        self.hue, self.saturation, self.gain = hue, saturation, gain

    def __call__(self, image: Any) -> Any:
        self.randomize(None)
        if not self._do_transform:
            return image
        angle = 2 * math.pi * self.R.uniform(-self.hue, self.hue)
        stretch = self.R.uniform(1 - self.saturation, 1 + self.saturation)
        gains = self.R.uniform(1 - self.gain, 1 + self.gain, 3)
        # A turn about the grey axis of RGB (Rodrigues' formula), its perpendicular part stretched.
        grey = np.full((3, 3), 1 / 3)
        cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        turn = grey + stretch * (math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * cross)
        matrix = torch.as_tensor(gains[:, None] * turn, dtype=image.dtype)
        return (matrix @ _plain(image).reshape(3, -1)).reshape(image.shape)
