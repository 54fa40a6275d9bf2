"""FDA: blocks of frequencies in closed form, phases kept, and what would do nothing refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medtl.adapters import Batch, build_adapter
from medtl.adapters.fda import low_frequencies, swap_amplitude
from medtl.errors import ConfigError, DataError
from tests.adapters.toys import domains, masks, network, segmenter


def by_hand(source: np.ndarray, target: np.ndarray, beta: float) -> np.ndarray:
    """One channel, in float64, on the shifted full spectrum with a centred block."""
    mine, theirs = np.fft.fftshift(np.fft.fftn(source)), np.fft.fftshift(np.fft.fftn(target))
    amplitude, centre = np.abs(mine), [n // 2 for n in source.shape]
    reach = [int(beta * n) for n in source.shape]
    block = tuple(slice(c - b, c + b + 1) for c, b in zip(centre, reach, strict=True))
    amplitude[block] = np.abs(theirs)[block]
    return np.fft.ifftn(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(mine)))).real


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator) ** 3


@pytest.mark.parametrize("shape", [(2, 3, 16, 20), (1, 1, 6, 15, 16), (1, 2, 9, 9)])
@pytest.mark.parametrize("beta", [0.05, 0.1, 0.26])
def test_equals_the_textbook(shape: tuple[int, ...], beta: float) -> None:
    source, target = pair(*shape)
    changed = swap_amplitude(source, target, beta)
    assert changed.dtype == torch.float32
    for n in range(shape[0]):
        for c in range(shape[1]):
            expected = by_hand(source[n, c].double().numpy(), target[n, c].double().numpy(), beta)
            np.testing.assert_allclose(changed[n, c].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 2, 16, 12), (1, 1, 7, 8, 8)])
def test_beta_0_is_the_identity_and_one_half_swaps_all(shape: tuple[int, ...]) -> None:
    source, target = pair(*shape)
    torch.testing.assert_close(swap_amplitude(source, target, 0.0), source, atol=1e-6, rtol=0)
    torch.testing.assert_close(swap_amplitude(source, source, 0.2), source, atol=1e-6, rtol=0)
    spectrum = torch.fft.fftn(swap_amplitude(source, target, 0.5).double(), dim=tuple(range(2, len(shape))))
    wanted = torch.fft.fftn(target.double(), dim=tuple(range(2, len(shape))))
    torch.testing.assert_close(spectrum.abs(), wanted.abs(), atol=1e-4, rtol=1e-4)
    # Energy (Parseval): all of the target's.
    assert float(spectrum.abs().square().sum()) == pytest.approx(float(wanted.abs().square().sum()), rel=1e-4)


def test_phase_is_kept_and_high_frequencies_are_untouched() -> None:
    source, target = pair(1, 1, 32, 32)
    before = torch.fft.rfftn(source.double(), dim=(2, 3))
    after = torch.fft.rfftn(swap_amplitude(source, target, 0.1).double(), dim=(2, 3))
    block = low_frequencies((32, 32), 0.1)
    torch.testing.assert_close((after / after.abs()), before / before.abs(), atol=1e-3, rtol=0)
    torch.testing.assert_close(after[0, 0][~block], before[0, 0][~block], atol=1e-4, rtol=0)
    theirs = torch.fft.rfftn(target.double(), dim=(2, 3)).abs()[0, 0]
    torch.testing.assert_close(after.abs()[0, 0][block], theirs[block], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "beta", "full"),
    [
        ((96, 96), 0.01, (1, 1)),  # less than one frequency: the mean alone, not nothing
        ((100, 200), 0.01, (3, 5)),
        ((224, 224), 0.01, (5, 5)),
        ((30, 30), 0.1, (7, 7)),  # 0.1 * 30 is 3, not 2.9999
        ((8, 64, 64), 0.1, (1, 13, 13)),  # a thin axis has a thinner block
    ],
)
def test_block_sizes(shape: tuple[int, ...], beta: float, full: tuple[int, ...]) -> None:
    block = low_frequencies(shape, beta)
    halved = [*full[:-1], full[-1] // 2 + 1]  # rfft keeps 0 to b of the last axis
    assert int(block.sum()) == int(np.prod(halved))
    assert bool(block[(0,) * len(shape)])


def test_smallest_beta_gives_the_targets_mean() -> None:
    source, target = pair(2, 3, 48, 48)
    changed = swap_amplitude(source, target, 0.01)
    torch.testing.assert_close(changed.mean((2, 3)), target.mean((2, 3)), atol=1e-6, rtol=1e-5)
    shift = (target.mean((2, 3)) - source.mean((2, 3)))[..., None, None]
    torch.testing.assert_close(changed, source + shift, atol=1e-5, rtol=0)


def test_trains_on_clipped_images_and_reports_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = build_adapter("fda", segmenter(), beta=0.2)
    source, target, _ = masks(6, 0)
    seen = []
    adapter.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    losses = adapter(source, Batch(image=target.image[:2]), progress=0.0)
    assert len(seen) == 1  # the source's changed images alone
    assert 0 <= float(seen[0].min()) <= float(seen[0].max()) <= 1
    assert float(losses["image_change"]) == pytest.approx(
        float((seen[0] - source.image).abs().mean()), rel=1e-5
    )
    assert losses["image_change"] > 0.1


def test_what_is_beyond_the_scan_takes_no_part_and_changes_with_it() -> None:
    source, target = (Batch(image=0.3 + 0.4 * image) for image in pair(2, 1, 12, 12))
    source.label = torch.zeros(2, dtype=torch.long)
    for batch, edge in ((source, 4), (target, 2)):
        batch.outside = torch.zeros(2, 12, 12, dtype=torch.bool)
        batch.outside[:, :edge] = True
        batch.image[:, :, :edge] = 0.0 if edge == 2 else 0.35
    adapter, seen = build_adapter("fda", network(), beta=0.01), []
    adapter.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    adapter(source, target, progress=0.0)
    torch.manual_seed(0)
    partner = torch.randint(2, (2,))
    # The mean alone is swapped: the scans get the targets' mean, without either's margin, and the margin moves along.
    mine, theirs = source.image[:, :, 4:].mean((2, 3)), target.image[partner][:, :, 2:].mean((2, 3))
    torch.testing.assert_close(seen[0], source.image + (theirs - mine)[..., None, None], atol=1e-5, rtol=0)


def test_probability_changes_some() -> None:
    adapter = build_adapter("fda", network(), beta=0.2, probability=0.5)
    source, target, _ = domains(200, 0)
    seen = []
    adapter.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    adapter(source, target, progress=0.0)
    same = (seen[0] == source.image).flatten(1).all(1)
    assert 70 < int(same.sum()) < 130


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"beta": 0.6}, {"probability": 0.0}])
def test_refuses_what_would_do_nothing(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="nothing would be swapped"):
        build_adapter("fda", network(), **options)


def test_images_of_two_sizes_are_an_error() -> None:
    source, target, _ = domains(4, 0)
    with pytest.raises(DataError, match="one size"):
        build_adapter("fda", network())(source, Batch(image=target.image[..., :4]), progress=0.0)
