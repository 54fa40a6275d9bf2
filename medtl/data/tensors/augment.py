"""Augmentation of training images: one seed gives one result, whatever was drawn before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, overload

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

from medtl.data.tensors.grid import border_value
from medtl.errors import ConfigError, near_matches

Image = NDArray[Any] | Tensor
NAMES = ("none", "standard", "strong")


def augmentation(name: str, spatial_dims: int, channels: int, flip: bool = True) -> Augmentation:
    """Builds the named augmentation.

    `standard`: left-right flip, small in-plane affine, contrast, brightness, noise, blur, low resolution.
    `strong`: the same, more often and stronger, plus a bias field for grey images and a colour shift for colour
    images. All slices of a volume change alike: no slice moves against its neighbours.

    Args:
        name: `none`, `standard` or `strong`.
        spatial_dims: 2 for (C, H, W), 3 for (C, D, H, W).
        channels: 1 or 3.
        flip: whether left and right may be swapped; not if a structure is named by its side.

    Returns:
        A function of an image with values in [0, 1] and a seed; its result is float32 in [0, 1] of the
        same shape. With a label it returns image and label, moved alike.

    Raises:
        ConfigError: There is no such augmentation.
    """
    if name not in NAMES:
        raise ConfigError(f"There is no augmentation {name!r}. {near_matches(name, NAMES)}")
    if spatial_dims not in (2, 3):
        raise ConfigError(f"Augmentation is for 2 or 3 dimensions, got {spatial_dims}.")
    if name == "none":
        return Augmentation()
    return _Random(name == "strong", channels, flip)


class Augmentation:
    """Changes geometry, then grey values. The base class changes neither.

    Attributes:
        reach: How far beyond the edge of a patch its geometry can look, as a share of the patch's side.
    """

    reach: float = 0.0

    @overload
    def __call__(self, image: Image, seed: int, *, beyond: Image | None = None) -> Tensor: ...

    @overload
    def __call__(
        self, image: Image, seed: int, label: Tensor, *, beyond: Image | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self, image: Image, seed: int, label: Tensor | None = None, *, beyond: Image | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Changes an image (C, ..., H, W), and its label (..., H, W) int64 with it; see `move` for their border.

        Returns:
            The image float32, of the same shape; with a label, both.
        """
        self._seed(seed)
        tensor = _tensor(image)
        size = (int(tensor.shape[-2]), int(tensor.shape[-1]))
        moved, moved_label = self._move(tensor, label, size, beyond)
        changed = self._recolour(moved)
        return changed if moved_label is None else (changed, moved_label)

    @overload
    def move(
        self, image: Image, seed: int, label: None, size: tuple[int, int], beyond: Image | None = None
    ) -> tuple[Tensor, None]: ...

    @overload
    def move(
        self, image: Image, seed: int, label: Tensor, size: tuple[int, int], beyond: Image | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def move(
        self,
        image: Image,
        seed: int,
        label: Tensor | None,
        size: tuple[int, int],
        beyond: Image | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Changes geometry only.

        Args:
            image: (C, ..., H, W), in the plane as large as `size` or larger by the same margin on both sides:
                what turns into the patch then comes from the scan.
            seed: of the geometry.
            label: (..., H, W) int64, or None.
            size: (H, W) of the result: the middle of the image.
            beyond: (C,) what the image shows beyond its border; by default the median of the border.

        Returns:
            Image float32 and label. Where the image shows what is beyond its border, the label is 0 (background).
        """
        self._seed(seed)
        return self._move(_tensor(image), label, size, beyond)

    def recolour(self, image: Tensor, seed: int) -> Tensor:
        """Changes grey values only; `image` itself is not modified."""
        self._seed(seed)
        return self._recolour(image)

    def _seed(self, seed: int) -> None:
        pass

    def _move(
        self, image: Tensor, label: Tensor | None, size: tuple[int, int], beyond: Image | None
    ) -> tuple[Tensor, Tensor | None]:
        return _middle(image, size), None if label is None else _middle(label, size)

    def _recolour(self, image: Tensor) -> Tensor:
        return image


def _tensor(image: Image) -> Tensor:
    if isinstance(image, Tensor):
        return image.to(torch.float32, copy=True)
    # Always a copy: the source may be a read-only map. torch widens half precision several times faster than numpy.
    array = image if image.flags.writeable else np.array(image)
    return torch.from_numpy(array).to(torch.float32, copy=array is image)


def _middle(values: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = (values.shape[-2] - size[0]) // 2, (values.shape[-1] - size[1]) // 2
    return values[..., top : top + size[0], left : left + size[1]]


class _Random(Augmentation):
    """Geometry on slices as channels, then grey values on the whole; all draw from one generator."""

    def __init__(self, strong: bool, channels: int, flip: bool) -> None:
        more = 1.6 if strong else 1.0
        colour = [_RandColour(0.8)] if strong and channels == 3 else []
        bias = [RandBiasField(prob=0.4, degree=2, coeff_range=(0.0, 0.2))] if strong and channels == 1 else []
        blur = (0.3, 0.8 * more)
        # Reseeding one generator costs a tenth of giving each transform a new one, as Compose does.
        self.generator = np.random.RandomState()
        self.more, self.flip = more, flip
        # Of half a side: what a turn brings in at the corner, and the zoom; of a side: the shift.
        angle = math.radians(10) * more
        self.reach = (math.cos(angle) + math.sin(angle) - 1 + 0.1 * more) / 2 + 0.04 * more
        self.geometry: dict[tuple[int, int], list[Any]] = {}
        self.values: list[Any] = [
            *bias,
            *colour,
            RandAdjustContrast(prob=0.3 * more, gamma=(1 / (1 + 0.4 * more), 1 + 0.4 * more)),
            RandScaleIntensity(prob=0.3 * more, factors=0.2 * more),
            RandShiftIntensity(prob=0.3 * more, offsets=0.1 * more),
            RandSimulateLowResolution(
                prob=0.1 * more, downsample_mode="area", upsample_mode="bilinear", zoom_range=(0.5, 1.0)
            ),
            RandSmooth(prob=0.15 * more, sigma_x=blur, sigma_y=blur),
            RandGaussianNoise(prob=0.2 * more, std=0.04 * more),
        ]
        self._share(self.values)

    def _share(self, transforms: Sequence[Any]) -> None:
        for transform in transforms:
            transform.set_random_state(state=self.generator)

    def _seed(self, seed: int) -> None:
        self.generator.seed([seed % 2**32, seed >> 32])

    def _move(
        self, image: Tensor, label: Tensor | None, size: tuple[int, int], beyond: Image | None
    ) -> tuple[Tensor, Tensor | None]:
        geometry = self.geometry.get(size)
        if geometry is None:
            geometry = self.geometry[size] = geometric_transforms(*size, self.more, self.flip)
            self._share(geometry)
        planes = image.reshape(-1, *image.shape[-2:])
        marks = None if label is None else label.reshape(-1, *label.shape[-2:]).to(torch.float32)
        for transform in geometry:
            if not drawn(transform, planes):
                continue
            planes = transform.move(planes, _each_plane(image, beyond))
            if marks is not None:
                marks = transform.move(marks)
        moved = _middle(planes, size).reshape(*image.shape[:-2], *size)
        if marks is None or label is None:
            return moved, None
        return moved, _middle(marks, size).round().to(torch.int64).reshape(*label.shape[:-2], *size)

    def _recolour(self, image: Tensor) -> Tensor:
        planes = image.clone().reshape(-1, *image.shape[-2:])
        for transform in self.values:
            if drawn(transform, planes):
                planes = _plain(transform(planes, randomize=False))
        return planes.reshape(image.shape).clamp(0, 1).contiguous()


def _each_plane(image: Tensor, beyond: Image | None) -> Tensor:
    """(C * slices, 1, 1) double: what each plane of an image (C, ..., H, W) shows beyond its border."""
    values = torch.as_tensor(border_value(image.numpy()) if beyond is None else beyond).double()
    return values.repeat_interleave(math.prod(image.shape[1:-2])).view(-1, 1, 1)


def drawn(transform: Any, image: Tensor) -> bool:
    """Draws a transform's random numbers as its own call would, and returns whether it applies.

    Most transforms leave most images unchanged, but MONAI's call would still wrap and unwrap the image, which takes
    longer than most of the work itself.

    Args:
        transform: one of MONAI's random array transforms.
        image: what it would be applied to.
    """
    if isinstance(transform, RandBiasField):
        transform.randomize(img_size=image.shape[1:])
    elif isinstance(transform, RandGaussianNoise):
        transform.randomize(image, mean=transform.mean)
    else:
        transform.randomize(None)
    return bool(transform._do_transform)


class _Flip(RandFlip):
    """A flip without MONAI's metadata tracking, which takes longer than the flip."""

    def move(self, planes: Tensor, outside: Tensor | None = None) -> Tensor:
        """Applies the drawn flip to (C, H, W); nothing comes in from outside."""
        return planes.flip(-1)


class _Affine(RandAffine):
    """MONAI's random numbers and arithmetic without its metadata tracking."""

    def randomize(self, data: Any | None = None) -> None:
        super().randomize(data)
        if self._do_transform:
            self.rand_affine_grid.randomize()  # a second time, as its own call does

    def move(self, planes: Tensor, outside: Tensor | None = None) -> Tensor:
        """Applies the drawn map to (C, H, W).

        Args:
            planes: grey values, or labels.
            outside: (C, 1, 1) double, value of each plane beyond its border. None for labels: they come from the
                nearest pixel, and are 0 beyond the border.
        """
        size = self.spatial_size
        assert isinstance(size, tuple)
        # (3, H, W): row, column and 1, in pixels from the middle.
        grid = self.get_identity_grid(size, lazy=False).float()
        self.rand_affine_grid(grid.shape[1:], randomize=False, lazy=True)
        matrix = torch.as_tensor(self.rand_affine_grid.get_transformation_matrix(), dtype=grid.dtype)
        row, column, _ = (matrix @ grid.flatten(1)).view_as(grid).double()
        height, width = planes.shape[-2:]
        # grid_sample counts from -1 to 1 and takes the column first.
        places = torch.stack((column * (2 / max(2, width)), row * (2 / max(2, height))), dim=-1)
        values = planes.double() if outside is None else planes.double() - outside
        moved = torch.nn.functional.grid_sample(
            values[None],
            places[None],
            "nearest" if outside is None else "bilinear",
            "zeros",
            align_corners=False,
        )
        return (moved[0] if outside is None else moved[0] + outside).float()


def geometric_transforms(height: int, width: int, more: float, flip: bool) -> list[Any]:
    """Left-right flip and a small affine.

    Args:
        height: rows of the image.
        width: columns of the image.
        more: multiplies how often and how far the affine moves an image.
        flip: whether left and right may be swapped.
    """
    affine = _Affine(
        prob=0.5 * more,
        rotate_range=math.radians(10) * more,
        scale_range=(0.1 * more, 0.1 * more),
        translate_range=(0.04 * more * height, 0.04 * more * width),
        spatial_size=(height, width),
        cache_grid=True,
    )
    return [*([_Flip(prob=0.5, spatial_axis=1)] if flip else []), affine]


def _plain(image: Any) -> Tensor:
    return image.as_tensor() if hasattr(image, "as_tensor") else torch.as_tensor(image)


class RandSmooth(RandGaussianSmooth):
    """Gaussian blur with a repeated border; MONAI's own would draw a dark frame around the image."""

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """Blurs an image (C, H, W), or leaves it, as the draw says."""
        if randomize:
            self.randomize()
        if not self._do_transform:
            return img
        reach = 6  # more than the kernel's four standard deviations
        padded = torch.nn.functional.pad(_plain(img)[None], (reach,) * 4, mode="replicate")[0]
        return _plain(super().__call__(padded, randomize=False))[:, reach:-reach, reach:-reach]


class _RandColour(RandomizableTransform):
    """Changes hue, saturation and channel gains, to cover the variation of stains and white balance."""

    def __init__(self, prob: float, hue: float = 0.12, saturation: float = 0.4, gain: float = 0.15) -> None:
        super().__init__(prob)
        self.hue, self.saturation, self.gain = hue, saturation, gain

    def __call__(self, image: Any, randomize: bool = True) -> Any:
        if randomize:
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
