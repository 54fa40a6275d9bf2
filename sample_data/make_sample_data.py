"""Make the sample data: two small simulated hospitals with a real domain shift.

    python sample_data/make_sample_data.py [--out FOLDER]

Needs nilearn (for the MNI152 template in its wheel), nibabel, pydicom and scipy; no network. Everything
derives from `SEED` and the settings below, so the same versions of the libraries write the same bytes. What
differs between the sites stands in `SITE_A`, `SITE_B` and the two vendors, and nowhere else.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shutil
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np
import numpy.typing as npt
import pydicom
import scipy
from scipy import ndimage
from simulated_predictions import write_predictions
from write_scans import Grid, Person, Vendor, write_dicom_series, write_nifti

SEED = 20240611
PATIENTS_PER_SITE = 40
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Site:
    """What one hospital's scanner and protocol make of a head.

    Intensities are relative to each other (the scale is arbitrary in MR); lengths are in mm. A pair is a
    range from which each patient, or each lesion, draws uniformly.
    """

    name: str
    letter: str
    # Contrast: the signal of each tissue, and how much it varies from patient to patient (relative SD).
    white: float
    grey: float
    csf: float
    fat: float
    bone: float
    tissue_spread: float
    # Field and noise.
    bias: float  # SD of each term of the log of the receive field's polynomial
    coil: float  # how much brighter the coil sees the brain's surface than its centre
    noise: float  # SD of the real and of the imaginary part
    noise_smooth: float  # SD in pixels of the noise's own smoothing, as interpolating reconstructions have
    air_floor: float  # air below this signal becomes 0, as some vendors do; 0 keeps its noise
    # Resolution and geometry.
    blur: float  # SD in mm of the in-plane point spread
    pixel: tuple[float, float]  # spacing between rows, between columns
    matrix: tuple[int, int]  # rows, columns
    slices: int
    spacing: float
    tilt: float  # degrees; the slab's rotation about the left-right axis
    scale: tuple[float, float]  # stored units per unit of white
    # Lesions.
    lesion: float  # signal of a complete lesion
    lesion_contrast: tuple[float, float]  # how complete: 0 leaves the white matter, 1 gives `lesion`
    lesion_radius: tuple[float, float]
    lesion_count: tuple[int, int]


SITE_A = Site(
    name="site_a",
    letter="A",
    white=1.0,
    grey=1.22,
    csf=0.30,
    fat=1.25,
    bone=0.12,
    tissue_spread=0.04,
    bias=0.06,
    coil=0.0,
    noise=0.035,
    noise_smooth=0.0,
    air_floor=0.0,
    blur=0.8,
    pixel=(2.1, 2.2),
    matrix=(102, 82),
    slices=8,
    spacing=5.0,
    tilt=-8.0,
    scale=(700.0, 1100.0),
    lesion=2.2,
    lesion_contrast=(0.75, 1.0),
    lesion_radius=(4.5, 9.0),
    lesion_count=(3, 6),
)

SITE_B = Site(
    name="site_b",
    letter="B",
    white=1.0,
    grey=1.35,
    csf=0.70,
    fat=2.0,
    bone=0.25,
    tissue_spread=0.05,
    bias=0.12,
    coil=0.35,
    noise=0.07,
    noise_smooth=0.4,
    air_floor=0.2,
    blur=1.2,
    pixel=(2.3, 2.3),
    matrix=(94, 78),
    slices=9,
    spacing=4.0,
    tilt=0.0,
    scale=(150.0, 420.0),
    lesion=2.2,
    lesion_contrast=(0.75, 1.0),
    lesion_radius=(4.5, 9.0),
    lesion_count=(3, 6),
)

VENDOR_A = Vendor("Simulated Imaging North", "SimMR 1500", 1.5, 9000.0, 120.0, "AX FLAIR SIM", slope=1.0)
VENDOR_B = Vendor("Simulated Imaging South", "SimMR 3000", 3.0, 4800.0, 35.0, "Ax PD SIM", slope=0.25)
B_DICOM = 12  # the other patients of site_b are NIfTI


@dataclass(frozen=True)
class Template:
    """The anatomy on the template's 1 mm grid (x, y, z), and what is derived from it."""

    origin: tuple[float, float, float]
    white: Array
    grey: Array
    depth: Array  # mm outside the brain's smoothed surface; negative inside
    widen: Array  # (3, x/4, y/4, z/4) unit displacement that points at the ventricles


@dataclass(frozen=True)
class Scan:
    """One simulated scan: signal in units of white matter, lesion mask, and where it lies."""

    signal: Array  # (k, j, i)
    mask: npt.NDArray[np.uint8]
    grid: Grid


def generator(*key: object) -> np.random.Generator:
    """Return the generator of one named stream: no patient depends on how many came before."""
    digest = blake2b(repr((SEED, *key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


@lru_cache(maxsize=1)
def load_template() -> Template:
    """Read the template's tissue maps out of nilearn's wheel, cropped to the levels the slabs can reach."""
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    name = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
    images = [nib.load(folder / name.format(part)) for part in ("t1", "gm", "wm")]
    low, high = 32, 152  # z from -40 to 80 mm
    t1, grey, white = (np.asarray(image.dataobj)[:, :, low:high] for image in images)
    x, y, z = (float(v) for v in images[0].affine[:3, 3])
    brain = ndimage.gaussian_filter((t1 > 0).astype(np.float32), 4.0) > 0.5
    depth = ndimage.distance_transform_edt(~brain) - ndimage.distance_transform_edt(brain)
    grey, white = grey.astype(np.float32) / 255, white.astype(np.float32) / 255
    ventricles = ((1 - grey - white) > 0.6) & (depth < -28)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(ventricles.astype(np.float32), 5.0)))
    slope /= np.sqrt((slope**2).sum(0)).max()
    return Template((x, y, z + low), white, grey, depth.astype(np.float32), slope[:, ::4, ::4, ::4].copy())


def at(volume: Array, index: Array, step: float = 1.0) -> Array:
    """Interpolate `volume`, whose spacing is `step` mm, at `index` (3, ...) of the 1 mm grid."""
    out = ndimage.map_coordinates(volume, index / np.float32(step), order=1, mode="nearest")
    return np.asarray(out, np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], nodes: tuple[int, ...]) -> Array:
    """Return a smooth random field of unit scale: cubic interpolation of independent nodes."""
    field = rng.standard_normal(nodes).astype(np.float32)
    factors = [size / count for size, count in zip(shape, nodes, strict=True)]
    return np.asarray(ndimage.zoom(field, factors, order=3), np.float32)


def place_grid(site: Site, rng: np.random.Generator) -> Grid:
    """Plan one slab through the ventricles, tilted as the site's protocol has it, give or take a little."""
    angle = np.deg2rad(site.tilt + rng.uniform(-1.5, 1.5))
    left = np.array([-1.0, 0.0, 0.0])  # RAS: a row of pixels runs to the patient's left
    down = np.array([0.0, -np.cos(angle), -np.sin(angle)])  # and a column to the back
    normal = np.cross(left, down)
    centre = np.array([rng.uniform(-2, 2), -18 + rng.uniform(-2, 2), 20 + rng.uniform(-3, 3)])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = left * site.pixel[1], down * site.pixel[0]
    affine[:3, 2] = normal * site.spacing
    last = np.array([site.matrix[1], site.matrix[0], site.slices]) - 1
    affine[:3, 3] = centre - affine[:3, :3] @ (last / 2)
    return Grid(affine=np.round(affine, 4), shape=(site.slices, *site.matrix))


def head_coordinates(template: Template, points: Array, rng: np.random.Generator) -> Array:
    """Map points (3, ...) in mm to indices of the template: one patient's pose, size and shape."""
    turn = np.deg2rad(rng.normal(0, 3, 3))
    (cx, cy, cz), (sx, sy, sz) = np.cos(turn), np.sin(turn)
    rotation = (
        np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    )
    matrix = rotation @ np.diag(rng.uniform(0.95, 1.07, 3))
    shift = rng.normal(0, 1.5, 3) - np.array(template.origin)
    # Written out, because a BLAS may sum in another order on another machine.
    index = np.stack(
        [sum(np.float32(matrix[r, c]) * points[c] for c in range(3)) + np.float32(shift[r]) for r in range(3)]
    )
    shape = template.widen.shape[1:]
    warp = np.stack([smooth_noise(rng, shape, (6, 7, 5)) for _ in range(3)]) * np.float32(2.5)
    warp += template.widen * np.float32(rng.uniform(-1.5, 4.5))
    return index + np.stack([at(field, index, 4.0) for field in warp])


def lesion_weight(site: Site, points: Array, white: Array, rng: np.random.Generator) -> Array:
    """Return the lesions' weight in [0, 1] on the fine points: ragged ellipsoids in the white matter."""
    slices = white.shape[0]
    core = ndimage.uniform_filter(white, 5)
    core[: slices // 5] = 0  # a lesion belongs well inside the slab, or a label could rest on half a voxel
    core[slices - slices // 5 :] = 0
    candidates = np.flatnonzero(core > 0.85)
    flat = points.reshape(3, -1)
    weight = np.zeros(white.shape, np.float32)
    ragged = smooth_noise(rng, white.shape, (6, 24, 20)) * np.float32(0.12)
    for _ in range(rng.integers(site.lesion_count[0], site.lesion_count[1] + 1)):
        centre = flat[:, rng.choice(candidates)].reshape(3, 1, 1, 1)
        radius = rng.uniform(*site.lesion_radius) * rng.uniform(0.8, 1.25, 3).reshape(3, 1, 1, 1)
        distance = np.sqrt((((points - centre) / radius.astype(np.float32)) ** 2).sum(0)) + ragged
        contrast = np.float32(rng.uniform(*site.lesion_contrast))
        weight = np.maximum(weight, contrast / (1 + np.exp(np.clip((distance - 1) * 9, -50, 50))))
    return weight * np.clip(white * 1.5, 0, 1)


def tissue_signal(
    site: Site, template: Template, index: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return the noiseless signal and the white matter's share at `index` (3, ...)."""
    white, grey, depth = (at(v, index) for v in (template.white, template.grey, template.depth))
    # The template averages many heads, which blurs the tissues' borders; the power sharpens them again.
    parts = np.stack([white, grey, np.clip(1 - white - grey, 0, 1)]) ** np.float32(1.6)
    parts /= parts.sum(0) + np.float32(1e-6)

    def level(value: float) -> np.float32:
        return np.float32(value * np.exp(rng.normal(0, site.tissue_spread)))

    brain = parts[0] * level(site.white) + parts[1] * level(site.grey) + parts[2] * level(site.csf)
    texture = smooth_noise(rng, brain.shape, (6, 40, 34))
    brain *= 1 + np.float32(0.02) * texture
    inner, outer = rng.uniform(2.0, 3.5), rng.uniform(7.0, 9.5)
    skin = outer + rng.uniform(3.5, 6.5) + texture * np.float32(0.4)
    marrow = np.abs(depth - (inner + outer) / 2) < (outer - inner) / 5
    bone, fat = level(site.bone), level(site.fat)
    signal = np.where(depth < inner, brain, np.where(marrow, bone + (fat - bone) * np.float32(0.35), bone))
    signal = np.where(depth > outer, fat * (1 + np.float32(0.12) * texture), signal)
    return np.where(depth > skin, np.float32(0), signal).astype(np.float32), parts[0] * (depth < 0)


def simulate(site: Site, number: int, lesions: bool) -> Scan:
    """Simulate patient `number` of `site`: anatomy, lesions, contrast, blur, field, noise."""
    template = load_template()
    rng = generator(site.letter, number)
    grid = place_grid(site, rng)
    (nk, nj, ni), fine = grid.shape, (2, 2, 2)
    axes = [(np.arange(n * f) + 0.5) / f - 0.5 for n, f in zip(grid.shape, fine, strict=True)]
    k, j, i = np.meshgrid(*axes, indexing="ij")
    rows = [row[0] * i + row[1] * j + row[2] * k + row[3] for row in grid.affine[:3]]
    points = np.stack(rows).astype(np.float32)
    index = head_coordinates(template, points, rng)
    signal, white = tissue_signal(site, template, index, rng)
    weight = lesion_weight(site, points, white, rng) if lesions else np.zeros_like(signal)
    signal = signal + weight * (np.float32(site.lesion) - signal)
    blur = [0.0, *(site.blur * f / p for f, p in zip(fine[1:], site.pixel, strict=True))]
    signal = ndimage.gaussian_filter(signal, blur)

    def shrink(volume: Array) -> Array:
        return np.asarray(volume.reshape(nk, 2, nj, 2, ni, 2).mean((1, 3, 5)), np.float32)

    signal = shrink(signal) * field(site, shrink(at(template.depth, index)), rng)
    noise = rng.standard_normal((2, *grid.shape)).astype(np.float32)
    if site.noise_smooth:
        noise = ndimage.gaussian_filter(noise, (0, 0, site.noise_smooth, site.noise_smooth))
        noise /= noise.std()
    noise *= np.float32(site.noise)
    signal = np.sqrt((signal + noise[0]) ** 2 + noise[1] ** 2)  # the magnitude of a complex image: Rician
    if site.air_floor:
        signal = np.where(ndimage.uniform_filter(signal, (1, 3, 3)) < site.air_floor, 0, signal)
    return Scan(signal.astype(np.float32), (shrink(weight) > 0.4).astype(np.uint8), grid)


def field(site: Site, depth: Array, rng: np.random.Generator) -> Array:
    """Return the receive field (k, j, i): a smooth bias of low order, and a coil brighter at the surface."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in depth.shape), indexing="ij")
    terms = rng.standard_normal(6).astype(np.float32)
    basis = (x, y, z * np.float32(0.5), x * x - y * y, x * y, x * x + y * y)
    poly = sum(term * part for term, part in zip(terms, basis, strict=True))
    coil = 1 + np.float32(site.coil) * np.exp(np.clip(depth, -80, 0) / np.float32(18))
    return np.asarray(np.exp(np.float32(site.bias) * poly) * coil, np.float32)


def cohort(site: Site) -> list[tuple[Person, str]]:
    """Return the fictitious patients of a site with their labels, half of them `lesion`, in a drawn order."""
    rng = generator(site.letter, "cohort")
    labels = np.array(["lesion", "normal"] * (PATIENTS_PER_SITE // 2))
    rng.shuffle(labels)
    sexes = rng.permutation(["F", "M"] * (PATIENTS_PER_SITE // 2))
    ages = rng.integers(24, 82, PATIENTS_PER_SITE)
    return [
        (Person(site.letter, n, str(sex), int(age)), str(label))
        for n, (label, sex, age) in enumerate(zip(labels, sexes, ages, strict=True), start=1)
    ]


def is_dicom(site: Site, number: int) -> bool:
    """Return whether the patient's scan is stored as DICOM: all of site_a, `B_DICOM` of site_b."""
    return site.letter == "A" or number * B_DICOM % PATIENTS_PER_SITE < B_DICOM  # spread evenly


def write_patient(site: Site, person: Person, label: str, out: Path) -> None:
    """Simulate one patient and write the scan and the lesion mask below `out`/<site>."""
    scan = simulate(site, person.number, lesions=label == "lesion")
    rng = generator(site.letter, person.number, "storage")
    stored = scan.signal * np.float32(rng.uniform(*site.scale))
    scans, masks = out / site.name / "scans", out / site.name / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    axes = "LPS"
    if is_dicom(site, person.number):
        vendor = VENDOR_A if site.letter == "A" else VENDOR_B
        write_dicom_series(scans / person.case, stored, scan.grid, person, vendor, site.spacing * 0.9)
    else:
        axes = ("RAS", "LPS", "LAS", "RPI")[person.number % 4]
        kind = ("int16", "scaled", "int16", "float32", "scaled")[person.number % 5]
        write_nifti(scans / f"{person.case}.nii.gz", stored, scan.grid, axes=axes, kind=kind)
    write_nifti(masks / f"{person.case}.nii.gz", scan.mask, scan.grid, axes=axes, kind="uint8")


def main() -> None:
    """Write everything below the output folder; what an earlier run left there is replaced."""
    parser = argparse.ArgumentParser(description="Make the two simulated hospitals and the predictions.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, metavar="FOLDER")
    out: Path = parser.parse_args().out
    for site in (SITE_A, SITE_B):
        shutil.rmtree(out / site.name, ignore_errors=True)
        people = cohort(site)
        for person, label in people:
            write_patient(site, person, label, out)
        (out / site.name / "labels.json").write_text('{"background": 0, "lesion": 1}\n', encoding="utf-8")
        with (out / site.name / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["case", "patient", "label", "group_sex", "group_age"])
            rows.writerows([p.case, p.patient_id, label, p.sex, p.age_group] for p, label in people)
        print(f"{site.name}: {len(people)} patients")
    write_predictions(out / "predictions.csv", generator("predictions"))
    modules = (nib, nilearn, np, pydicom, scipy)
    versions = {m.__name__: m.__version__ for m in modules} | {"python": platform.python_version()}
    settings = {"seed": SEED, "versions": versions, "sites": [asdict(SITE_A), asdict(SITE_B)]}
    (out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
