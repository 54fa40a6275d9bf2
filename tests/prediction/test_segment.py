from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data.utils import compute_importance_map
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from medtl.adapters import TestTimeAdapter, build_adapter
from medtl.data.cases.table import Case
from medtl.data.tensors.cache import VolumeCache
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.spec import Preprocess
from medtl.errors import CheckpointError, ConfigError
from medtl.labelmap import LabelMap
from medtl.models import with_features
from medtl.models.output import Output
from medtl.prediction import segment as segmenting
from medtl.prediction.segment import adapt_cases, segment_cases
from medtl.scans.catalog import scan_folder
from medtl.scans.readers.dicom_seg import read_seg, write_seg
from medtl.scans.volume import read_volume
from medtl.scans.write import write_mask
from tests.scans.make_scans import write_image, write_nifti, write_series


class Pointwise(nn.Module):
    """Logits of each voxel from its own value: windows cannot matter."""

    task = "segmentation"

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.gain = nn.Parameter(torch.tensor(12.0))

    def forward(self, image: Tensor) -> Output:
        value = image[:, :1]
        centres = torch.linspace(0.1, 0.9, self.num_classes).view(1, -1, *[1] * (image.ndim - 2))
        return Output(-self.gain * (value - centres).abs(), value)


class Convolution(nn.Module):
    """A convolution that sees its neighbourhood, and the border of its window."""

    task = "segmentation"

    def __init__(self, dims: int, kernel: int | tuple[int, ...] = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind = nn.Conv2d if dims == 2 else nn.Conv3d
        kernel = (kernel,) * dims if isinstance(kernel, int) else kernel
        self.layer = kind(1, 3, kernel, padding=tuple(k // 2 for k in kernel))

    def forward(self, image: Tensor) -> Output:
        return Output(5 * self.layer(image), image)


def dataset(folder: Path, shapes, spec: Preprocess, *, sites=None, patients=None) -> CaseDataset:
    """Scans of smooth noise as a data set: images (h, w) or volumes (k, j, i)."""
    rng = np.random.default_rng(0)
    cases = []
    for number, shape in enumerate(shapes):
        values = rng.integers(0, 255, shape).astype(np.uint8)
        site = folder / f"case{number}"
        if len(shape) == 2:
            write_image(site / f"c{number}.png", values)
        else:
            matrix = np.diag([-1.0, -1.0, 2.0, 1.0])
            write_nifti(site / f"c{number}.nii.gz", values, matrix)
        (item,) = scan_folder(site).items
        cases.append(
            Case(
                f"c{number}",
                patients[number] if patients else f"p{number}",
                sites[number] if sites else "a",
                "target",
                item.path,
                item=item,
            )
        )
    return CaseDataset(cases, VolumeCache(folder / "cache", spec), classes=("a", "b"), with_labels=False)


VOLUMES = Preprocess(image_size=16, num_slices=8, intensity="unit", spacing=(2.0, 1.0, 1.0))
IMAGES = Preprocess(image_size=16, intensity="unit")


def test_a_pointwise_network_gives_the_scan_back_whatever_the_windows(tmp_path):
    shapes = [(9, 20, 13), (3, 6, 5), (17, 8, 30)]
    data = dataset(tmp_path, shapes, VOLUMES)
    model = Pointwise()
    for overlap in (0.0, 0.5, 0.8):
        for patch in ((8, 8, 8), (4, 12, 16), (1, 9, 9), (32, 32, 32)):
            for found, shape in zip(
                segment_cases(model, data, patch=patch, overlap=overlap), shapes, strict=True
            ):
                image = torch.from_numpy(data.cache.get(found.case.item).astype(np.float32))
                expected = model(image[None]).logits[0].softmax(0)
                assert found.probabilities.dtype == np.float16
                np.testing.assert_allclose(found.probabilities, expected.detach().numpy(), atol=2e-3)
                assert found.mask.shape == shape
                assert found.mask.dtype == np.uint8
                back = found.grid.argmax_native(expected.detach())
                assert (found.mask == back).mean() > 0.995  # float16 decides ties


def test_rows_of_windows_are_the_same_average_as_all_windows_at_once(tmp_path):
    """The slab-wise sum equals MONAI's over the whole volume, with the same separable Gaussian weights."""
    data = dataset(tmp_path, [(21, 19, 26)], VOLUMES)
    model, patch = Convolution(3), (8, 8, 16)
    image = torch.from_numpy(data.cache.get(data.cases[0].item).astype(np.float32))
    weights = compute_importance_map((8,), mode="gaussian").view(-1, 1, 1)
    weights = weights * compute_importance_map((8, 16), mode="gaussian")
    with torch.no_grad():
        whole = sliding_window_inference(
            image[None],
            patch,
            3,
            lambda x: model(x).logits.softmax(1),
            overlap=0.5,
            mode="gaussian",
            roi_weight_map=weights[None, None],
        )
    (found,) = segment_cases(model, data, patch=patch)
    np.testing.assert_allclose(found.probabilities, whole[0].numpy(), atol=1e-3)


def test_an_image_within_the_patch_is_one_pass_of_the_network(tmp_path):
    data = dataset(tmp_path, [(16, 16), (16, 11), (30, 20)], IMAGES)
    model = Convolution(2)
    segmented = list(segment_cases(model, data, patch=(16, 16)))
    assert len(segmented) == 3
    for found in segmented:
        image = torch.from_numpy(data.cache.get(found.case.item).astype(np.float32))
        with torch.no_grad():
            expected = model(image[None]).logits[0].softmax(0).numpy()
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-3)
        assert found.mask.shape == found.case.item.shape


@pytest.mark.parametrize(
    ("shape", "patch"), [((5, 9, 11), (8, 16, 16)), ((6, 20, 9), (8, 16, 16)), ((11, 13), (24, 23))]
)
def test_a_small_scan_has_the_same_surroundings_as_in_training(tmp_path, shape, patch):
    """Training, prediction and test-time methods see the same window, bit for bit."""
    spec = Preprocess(16, intensity="unit") if len(shape) == 2 else VOLUMES
    data = dataset(tmp_path, [shape], spec)
    (item,) = (case.item for case in data.cases)
    data.cache.labels = LabelMap({"a": (1,)})
    training = CaseDataset(data.cases, data.cache, classes=("a", "b"), with_labels=False, patch=patch)[0]
    data.cache.labels = None
    array = data.cache.get(item)
    model, seen = Pointwise(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    (found,) = segment_cases(model, data, patch=patch)
    if all(length >= size for length, size in zip(patch, array.shape[1:], strict=True)):
        (window,) = seen
        assert torch.equal(window, training.image)
        assert float(window[:, training.outside].std()) == 0
        assert float(window[:, training.outside].mean()) == float(found.grid.beyond(array)[0])
    expected = model(torch.from_numpy(array[None].astype(np.float32))).logits[0].softmax(0)
    np.testing.assert_allclose(found.probabilities, expected.detach().numpy(), atol=2e-3)
    seen.clear()
    adapter = Shifting("patient", model)
    list(adapt_cases(adapter, data, patch=patch))
    assert seen[0].shape == training.image.shape
    assert float((seen[0] == found.grid.beyond(array)[0]).float().mean()) > 0.2


def test_images_of_one_size_share_a_batch(tmp_path, monkeypatch):
    data = dataset(tmp_path, [(16, 16)] * 5, IMAGES)
    monkeypatch.setattr(segmenting, "_WINDOW_VOXELS", 16 * 16 * 3)
    model, sizes = Pointwise(), []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    together = list(segment_cases(model, data, patch=(16, 16)))
    assert sizes == [3, 2]
    monkeypatch.setattr(segmenting, "_WINDOW_VOXELS", 1)
    for one, other in zip(together, segment_cases(model, data, patch=(16, 16)), strict=True):
        assert one.case == other.case
        np.testing.assert_array_equal(one.mask, other.mask)


@pytest.mark.parametrize("dims", [2, 3])
def test_flips_average_probabilities_over_rows_and_columns(tmp_path, dims):
    shapes, spec, patch = (
        ([(16, 16)], IMAGES, (16, 16)) if dims == 2 else ([(8, 16, 16)], VOLUMES, (8, 16, 16))
    )
    data = dataset(tmp_path, shapes, spec)
    model = Convolution(dims)
    (found,) = segment_cases(model, data, patch=patch, flips=True)
    image = torch.from_numpy(data.cache.get(data.cases[0].item).astype(np.float32))[None]
    with torch.no_grad():
        views = [model(image.flip(f)).logits.softmax(1).flip(f) for f in ((), (-1,), (-2,), (-2, -1))]
    np.testing.assert_allclose(found.probabilities, torch.stack(views).mean(0)[0].numpy(), atol=1e-3)


def test_the_same_input_gives_the_same_bits(tmp_path):
    data = dataset(tmp_path, [(11, 14, 15)], VOLUMES)
    (first,), (second,) = (segment_cases(Convolution(3), data, patch=(4, 8, 8)) for _ in range(2))
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_probability_in_the_scans_own_grid(tmp_path):
    data = dataset(tmp_path, [(6, 9, 10)], VOLUMES)
    (found,) = segment_cases(Pointwise(2), data, patch=(8, 16, 16))
    ones = sum(found.probability(k) for k in range(2))
    assert found.probability(0).shape == (6, 9, 10)
    assert found.probability(0).dtype == np.float32
    np.testing.assert_allclose(ones, 1, atol=2e-3)
    np.testing.assert_array_equal(found.mask == 1, found.probability(1) > found.probability(0))


def test_rules_are_applied_in_the_scans_grid(tmp_path):
    data = dataset(tmp_path, [(6, 9, 10)], VOLUMES)
    model = Pointwise(12)  # many classes: structures of noise in many pieces
    (plain,), (cleaned,) = (
        list(segment_cases(model, data, patch=(8, 16, 16), rules=rules)) for rules in ((), ("largest",))
    )
    assert (cleaned.mask != plain.mask).any()
    assert ((cleaned.mask == plain.mask) | (cleaned.mask == 0)).all()
    np.testing.assert_array_equal(cleaned.probabilities, plain.probabilities)


def test_modes_are_restored_and_no_graph_is_kept(tmp_path):
    data = dataset(tmp_path, [(16, 16)] * 2, IMAGES)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5))
    wrapped = Wrapped(model)
    wrapped.train()
    model[0].eval()
    seen = []
    for _ in segment_cases(wrapped, data, patch=(16, 16)):
        seen.append((wrapped.training, model[0].training, model[1].training, torch.is_grad_enabled()))
    assert seen == [(True, False, True, True)] * 2
    assert wrapped.was == [(False, False)]
    assert float(model[0].num_batches_tracked) == 0


class Wrapped(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.was = body, []

    def forward(self, image: Tensor) -> Output:
        self.was.append((self.training, torch.is_grad_enabled()))
        return Output(torch.cat([self.body(image), image], 1), image)


def test_what_is_wrong_is_said_before_anything_is_computed(tmp_path):
    data = dataset(tmp_path, [(16, 16)], IMAGES)
    model = Pointwise()
    with pytest.raises(ConfigError, match=r"The patch is 8 x 8 x 8; the scans have 2 axes"):
        segment_cases(model, data, patch=(8, 8, 8))
    with pytest.raises(ConfigError, match="overlap is 1"):
        segment_cases(model, data, patch=(8, 8), overlap=1)
    with pytest.raises(ConfigError, match="no rule 'best'"):
        segment_cases(model, data, patch=(8, 8), rules=["best"])
    classifier = Wrapped(nn.Identity())
    classifier.forward = lambda x: Output(x.mean((2, 3)), x)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="segmentation needs one for each voxel"):
        list(segment_cases(classifier, data, patch=(16, 16)))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_diverged_network_is_an_error_and_not_an_empty_mask(tmp_path, dims):
    shapes, spec = ([(16, 16)], IMAGES) if dims == 2 else ([(8, 16, 16)], VOLUMES)
    model = Pointwise()
    nn.init.constant_(model.gain, float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        list(segment_cases(model, dataset(tmp_path, shapes, spec), patch=(8,) * dims))


class Segmenterish(Convolution):
    """Says how it treats slices, as medtl's own networks do."""

    def __init__(self, network: str, neighbours: int) -> None:
        super().__init__(3, (2 * neighbours + 1, 3, 3))
        self.network, self.neighbours = network, neighbours


@pytest.mark.parametrize(
    ("network", "neighbours", "rows"), [("unet", 0, 3), ("unet_2.5d", 1, 4), ("unet_3d", 1, 5)]
)
def test_rows_overlap_no_more_than_the_network_needs(tmp_path, network, neighbours, rows):
    data = dataset(tmp_path, [(24, 8, 8)], VOLUMES)
    model, calls = Segmenterish(network, neighbours), []
    model.register_forward_hook(lambda *_: calls.append(1))
    (found,) = segment_cases(model, data, patch=(8, 8, 8))
    assert len(calls) == rows
    image = torch.from_numpy(data.cache.get(data.cases[0].item).astype(np.float32))[None]
    with torch.no_grad():
        whole = model(image).logits.softmax(1)[0].numpy()
    # What a window lacks beyond its first and last slice has next to no weight.
    np.testing.assert_allclose(found.probabilities, whole, atol=1e-3 if neighbours == 0 else 0.06)


class Shifting(TestTimeAdapter):
    """Counts what it is given; adapting shifts its model."""

    def __init__(self, per: str, model: Pointwise | None = None) -> None:
        model = model or Pointwise()
        super().__init__(model, [model.gain], lr=1.0, reset=per)
        self.log: list[object] = []

    def losses(self, image: Tensor) -> dict[str, Tensor]:
        return {"loss": -self.model.gain * image.mean()}

    def reset(self) -> None:
        log = self.log
        super().reset()
        self.log = [*log, "reset"]

    def adapt_batch(self, image: Tensor) -> Output:
        self.log.append(tuple(image.shape))
        return super().adapt_batch(image)


@pytest.mark.parametrize(
    ("per", "groups"),
    [("case", [[0], [1], [2], [3]]), ("patient", [[0, 2], [1], [3]]), ("site", [[0, 2, 3], [1]])],
)
def test_test_time_methods_adapt_to_each_group_by_itself(tmp_path, per, groups):
    data = dataset(
        tmp_path, [(16, 16)] * 4, IMAGES, sites=["a", "b", "a", "a"], patients=["p1", "p1", "p1", "p2"]
    )
    adapter = Shifting(per)
    found = list(adapt_cases(adapter, data, patch=(16, 16)))
    order = [n for group in groups for n in group]
    assert [f.case.case for f in found] == [f"c{n}" for n in order]
    assert adapter.log == [x for g in groups for x in ("reset", (len(g), 1, 16, 16))] + ["reset"]
    assert adapter.model.gain.item() == 12
    # A case alone in its group comes out the same whatever else is in the data set.
    alone = dataset(tmp_path / "x", [(16, 16)] * 4, IMAGES)
    last = groups[-1][-1]
    single = CaseDataset([alone.cases[last]], alone.cache, classes=("a",), with_labels=False)
    (again,) = adapt_cases(Shifting(per), single, patch=(16, 16))
    np.testing.assert_array_equal(found[-1].probabilities, again.probabilities)


@pytest.mark.parametrize("method", ["tent", "consistency"])
def test_the_methods_of_medtl_adapt_and_come_back(tmp_path, method):
    data = dataset(tmp_path, [(8, 16, 16)] * 2, VOLUMES)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU())
    model = with_features(nn.Sequential(body, nn.Conv3d(6, 3, 1)))
    adapter = build_adapter(method, model, lr=0.05)
    start = copy.deepcopy(model.state_dict())
    plain = list(segment_cases(model, data, patch=(8, 8, 8)))
    first, second = (list(adapt_cases(adapter, data, patch=(8, 8, 8))) for _ in range(2))
    for before, one, other in zip(plain, first, second, strict=True):
        assert np.abs(one.probabilities - before.probabilities).max() > 0.01
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    for key, value in model.state_dict().items():
        assert torch.equal(value, start[key]), key


def test_patches_to_adapt_on_cover_the_scan_and_leave_air_out(tmp_path):
    data = dataset(tmp_path, [(8, 24, 24)], VOLUMES)
    item = data.cases[0].item
    array = data.cache.get(item).copy()
    array[..., :, :8] = 0  # a third of it is air
    data.cache.get = lambda _: array  # type: ignore[method-assign, assignment]
    adapter = Shifting("patient")
    list(adapt_cases(adapter, data, patch=(8, 8, 8)))
    shapes = [x for x in adapter.log if x != "reset"]
    assert sum(s[0] for s in shapes) == 6
    assert {s[1:] for s in shapes} == {(1, 8, 8, 8)}


def test_a_large_site_gives_few_patches_a_case(tmp_path, monkeypatch):
    monkeypatch.setattr(segmenting, "_ADAPT_GROUP", 8)
    data = dataset(tmp_path, [(8, 24, 24)] * 4, VOLUMES)
    adapter = Shifting("site")
    list(adapt_cases(adapter, data, patch=(8, 8, 8)))
    assert sum(x[0] for x in adapter.log if x != "reset") == 8


def test_a_method_that_is_never_reset_goes_on(tmp_path):
    data = dataset(tmp_path, [(16, 16)] * 40, IMAGES)
    adapter = Shifting("never")
    found = list(adapt_cases(adapter, data, patch=(16, 16)))
    assert len(found) == 40
    assert [x if x == "reset" else x[0] for x in adapter.log] == ["reset", *[10] * 4, "reset"]
    kept = float(adapter.kept["model.gain"])
    assert kept == pytest.approx(16, abs=0.1)  # four steps of Adam, each of the learning rate
    again = Shifting("never")
    again.kept = adapter.kept
    list(adapt_cases(again, data, patch=(16, 16)))
    assert float(again.kept["model.gain"]) > kept + 3


def test_other_adapters_predict_with_their_model(tmp_path):
    data = dataset(tmp_path, [(16, 16)], IMAGES)
    adapter = build_adapter("finetune", Pointwise())
    (one,), (other,) = (
        list(f)
        for f in (
            adapt_cases(adapter, data, patch=(8, 8)),
            segment_cases(adapter.predictor, data, patch=(8, 8)),
        )
    )
    np.testing.assert_array_equal(one.mask, other.mask)


def test_from_an_oblique_series_to_a_mask_that_overlays_it(tmp_path):
    """Resampled for the network and brought back: NIfTI and SEG show the structure where the series has it."""
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    shape, spacing, step = (12, 30, 24), (0.8, 1.3), 3.0
    z, y, x = (np.arange(n) for n in shape)
    radius = np.sqrt(
        ((z[:, None, None] - 4) * step) ** 2 + ((y[:, None] - 17) * 0.8) ** 2 + ((x - 9) * 1.3) ** 2
    )
    volume = np.where(radius < 8, 900, 100).astype(np.uint16)
    write_series(
        tmp_path / "scan",
        volume,
        orientation=(*turn[:, 0], *turn[:, 1]),
        first=(20, -70, 33),
        step=-step * turn[:, 2],
        spacing=spacing,
        FrameOfReferenceUID="1.2.3.9",
    )
    (item,) = scan_folder(tmp_path / "scan").items
    spec = Preprocess(16, 8, intensity="window:0,1000", spacing=(2.0, 1.0, 1.0))
    case = Case("c", "p", "a", "target", item.path, item=item)
    data = CaseDataset([case], VolumeCache(tmp_path / "cache", spec), classes=("a",), with_labels=False)
    (found,) = segment_cases(Pointwise(2), data, patch=(8, 16, 16))
    truth = (read_volume(item).array > 500).astype(np.uint8)
    assert truth.sum() == (volume > 500).sum()
    assert 2 * (found.mask & truth).sum() / (found.mask.sum() + truth.sum()) > 0.93

    labels = LabelMap({"ball": (5,)})
    seg = write_seg(tmp_path / "a.dcm", found.mask, item, labels)
    np.testing.assert_array_equal(read_seg(seg, item.shape, item.affine)[0], found.mask)
    nifti = sitk.ReadImage(str(write_mask(tmp_path / "a", found.mask, item, labels)))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(item.root / f) for f in item.files])
    source = reader.Execute()
    moved = sitk.GetArrayFromImage(sitk.Resample(nifti, source, sitk.Transform(), sitk.sitkNearestNeighbor))
    bright = sitk.GetArrayFromImage(source) > 500
    assert 2 * ((moved == 5) & bright).sum() / ((moved == 5).sum() + bright.sum()) > 0.93


MEASURE = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
import torch
from torch import nn
from medtl.data.tensors.cache import VolumeCache
from medtl.scans.catalog import scan_folder
from medtl.data.tensors.dataset import CaseDataset
from medtl.data.tensors.preprocess import suggest_preprocess
from medtl.data.cases.table import Case
from medtl.scans.write import write_mask
from medtl.labelmap import LabelMap
from medtl.models import with_features
from medtl.models.output import Output
from medtl.prediction.segment import segment_cases

class Tiny(nn.Module):
    task = "segmentation"
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.0, 0.3, 0.6]).view(1, 3, 1, 1, 1))
    def forward(self, image):
        return Output(-30 * (image - self.centres).abs(), image)

torch.set_num_threads(1)
folder = Path(sys.argv[1])
(item,) = scan_folder(folder / "scan").items
spec = suggest_preprocess([item], 96, None, "soft_tissue", keep_spacing=True)
data = CaseDataset(
    [Case("c", "p", "a", "target", item.path, item=item)], VolumeCache(folder / "cache", spec),
    classes=("a", "b"), with_labels=False,
)
start = time.process_time()
data.cache.get(item)
prepared = time.process_time()
rules = ("largest", "fill_holes", "remove_small")
(found,) = segment_cases(Tiny(), data, patch=(96, 96, 96), rules=rules)
segmented = time.process_time()
path = write_mask(folder / "mask", found.mask, item, LabelMap({"a": (1,), "b": (2,)}))
written = time.process_time()
print(json.dumps({
    "classes": np.bincount(found.mask.reshape(-1)).tolist(),
    "shape": list(found.mask.shape), "network": list(found.probabilities.shape),
    "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "seconds": [round(b - a, 1) for a, b in ((start, prepared), (prepared, segmented), (segmented, written))],
}))
"""


@pytest.mark.slow
def test_a_ct_of_512_x_512_x_600_stays_within_6_gib(tmp_path):
    """Reading, preprocessing, windows, way back, rules and file; the network's grid is as fine as the scan's."""
    y, x = np.ogrid[:512, :512]
    volume = np.full((600, 512, 512), -1000, np.int16)
    inside = ((y - 256) / 200) ** 2 + ((x - 256) / 240) ** 2 < 1
    noise = np.random.default_rng(0).integers(-80, 120, (512, 512)).astype(np.int16)
    for k in range(600):
        volume[k] = np.where(inside, np.roll(noise, k, 0), -1000)
    write_nifti(tmp_path / "scan" / "ct.nii.gz", volume, np.diag([-0.8, -0.8, 0.8, 1.0]))
    del volume
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    print(found)
    assert found["shape"] == [600, 512, 512]
    assert found["network"] == [3, 600, 512, 512]
    assert min(found["classes"]) > 1e7
    assert found["gib"] < 6
