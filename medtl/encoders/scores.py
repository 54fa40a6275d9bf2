"""Transferability scores: how well an encoder suits a task, from frozen features and labels, without training.

Each score takes features (n, F) of labelled cases; higher is better. The scores order candidates on the same cases;
they do not predict accuracy.

- `logme`: evidence of a Bayesian linear model (You et al. 2021);
- `h_score`: the distance of the class means relative to the features' covariance (Bao et al. 2019; shrunk as in
  Ibrahim et al. 2021);
- `knn_score`: balanced accuracy of the nearest neighbours among the other patients;
- `leep`: how well the classes of the encoder's own head predict the new ones (Nguyen et al. 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEIGHBOURS = 5
_STEPS, _TOLERANCE = 200, 1e-8
_ROWS = 1024
_NEGLIGIBLE = 1e-10


def logme(features: NDArray[Any], labels: NDArray[Any]) -> float:
    """Log of the maximum evidence per case of a linear model of each class's indicator, averaged over classes.

    Source: You et al. 2021 (LogME), equations 2 to 4 and algorithm 1: y = F w + noise, w from N(0, 1/alpha), noise from
    N(0, 1/beta), alpha and beta at the fixed point of MacKay's updates (algorithm 3). It is invariant to scaling and
    rotation of the features.

    Args:
        features: (n, F).
        labels: (n,) class indices.

    Raises:
        DataError: see `check_features`.
    """
    x, y = check_features(features, labels)
    onehot = (y[:, None] == np.unique(y)).astype(np.float64)
    squares, coefficients = _spectrum(x, onehot)
    return float(
        np.mean(
            [
                _evidence(squares, z, float(t @ t), len(x))
                for z, t in zip(coefficients.T, onehot.T, strict=True)
            ]
        )
    )


def _evidence(squares: Floats, coefficients: Floats, energy: float, n: int) -> float:
    """Log evidence per case at the fixed point, from the squared singular values s2 and u'y."""
    power = coefficients**2
    outside = max(energy - float(power.sum()), 0.0)  # what no linear function of the features can fit
    alpha, beta = 1.0, 1.0
    for _ in range(_STEPS):
        ratio = alpha / beta
        gamma = float((squares / (squares + ratio)).sum())
        weights = float((squares * power / (squares + ratio) ** 2).sum())
        residual = float((power * (ratio / (squares + ratio)) ** 2).sum()) + outside
        # A model that explains nothing, or everything, has no finite fixed point.
        alpha = gamma / max(weights, _NEGLIGIBLE)
        beta = max(n - gamma, _NEGLIGIBLE) / max(residual, _NEGLIGIBLE)
        if abs(alpha / beta - ratio) <= _TOLERANCE * ratio:
            break
    ratio = alpha / beta
    weights = float((squares * power / (squares + ratio) ** 2).sum())
    residual = float((power * (ratio / (squares + ratio)) ** 2).sum()) + outside
    # F/2 log(alpha) less half the log determinant of alpha I + beta F'F leaves the r singular values alone.
    shrunk = float(np.log1p(squares / ratio).sum())
    return float((n * np.log(beta / (2 * np.pi)) - shrunk - beta * residual - alpha * weights) / (2 * n))


def h_score(features: NDArray[Any], labels: NDArray[Any]) -> float:
    """Trace of the inverse shrunk covariance times the covariance of the classes' means.

    Source: Ibrahim et al. 2021, equation 4: tr(S_a^-1 (1 - a) S_z) with S_a = (1 - a) S + a tr(S)/F I and a of Ledoit
    and Wolf 2004. Bao et al. 2019, definition 2, is the case a = 0, meaningless with more features than cases.

    Args:
        features: (n, F).
        labels: (n,) class indices.

    Returns:
        Between 0 and the number of classes less one.

    Raises:
        DataError: see `check_features`.
    """
    x, y = check_features(features, labels)
    n, width = x.shape
    x = x - x.mean(axis=0)
    classes, counts = np.unique(y, return_counts=True)
    average = (y[:, None] == classes) / np.sqrt(
        n * counts
    )  # its product with x: means, weighted by the shares
    squares, coefficients = _spectrum(x, average)
    a = _shrinkage(squares, (x**2).sum(axis=1), n, width)
    ridge = a * float(squares.sum()) / (n * width)
    return float(
        ((1 - a) * squares[:, None] * coefficients**2 / (ridge + (1 - a) * squares[:, None] / n)).sum()
    )


def _shrinkage(squares: Floats, norms: Floats, n: int, width: int) -> float:
    """Ledoit and Wolf's shrinkage (2004, lemma 3.1 to 3.4) from the singular values and the cases' squared norms."""
    second = float((squares**2).sum()) / n**2
    mean = float(squares.sum()) / (n * width)
    spread = second / width - mean**2
    noise = min((float((norms**2).sum()) / n - second) / (n * width), spread)
    return noise / spread if noise > 0 else 0.0


def _spectrum(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Squared singular values (r,) of x (n, F), and U'y (r, K), by way of the smaller of its two Gram matrices."""
    wide = x.shape[0] <= x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = squares > squares[-1] * 1e-12
    squares, vectors = squares[kept], vectors[:, kept]
    coefficients = vectors.T @ y if wide else (vectors.T @ (x.T @ y)) / np.sqrt(squares)[:, None]
    return squares, coefficients


def knn_score(
    features: NDArray[Any], labels: NDArray[Any], patients: NDArray[Any], *, neighbours: int = NEIGHBOURS
) -> float:
    """Balanced accuracy of a vote of the nearest cases of all other patients, by cosine similarity.

    Every patient is its own fold, so that none is recognised by another of its scans. Ties go to the nearest case.

    Args:
        features: (n, F).
        labels: (n,) class indices.
        patients: (n,) patient of each case.
        neighbours: number of cases that vote.

    Raises:
        DataError: see `check_features`; or a class with a single patient.
    """
    x, y = check_features(features, labels)
    classes, own = np.unique(y, return_inverse=True)
    who = np.unique(patients, return_inverse=True)[1]
    check_patients(own, who)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    called = np.empty(len(x), dtype=np.int64)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        near = x[rows] @ x.T
        near[who[rows, None] == who] = -np.inf
        order = np.argsort(-near, axis=1, kind="stable")[:, :neighbours]
        usable = np.take_along_axis(near, order, axis=1) > -np.inf
        # Each vote is slightly less than 1 by its distance, which only breaks ties.
        vote = usable * (1 - 1e-3 * np.arange(order.shape[1]))
        tally = np.stack([(vote * (own[order] == k)).sum(axis=1) for k in range(len(classes))], axis=1)
        called[rows] = tally.argmax(axis=1)
    return float(np.mean([(called[own == k] == k).mean() for k in range(len(classes))]))


def leep(source_probs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Log expected empirical prediction: mean log probability of the labels, predicted through the encoder's classes.

    Source: Nguyen et al. 2020, equations 1 and 2: the head's probabilities assign each case to source classes, and the
    empirical conditional distribution assigns labels to source classes.

    Args:
        source_probs: (n, Z) the head's probabilities of its own classes.
        labels: (n,) class indices.

    Returns:
        At most 0.

    Raises:
        DataError: see `check_features`; or rows that are not probabilities.
    """
    theta, y = check_features(source_probs, labels, constant=True)
    if theta.min() < 0 or np.abs(theta.sum(axis=1) - 1).max() > 1e-3:
        raise DataError(
            "LEEP takes probabilities of the encoder's own classes, which sum to 1 in each row; got rows that sum to "
            f"{theta.sum(axis=1).min():.3g} to {theta.sum(axis=1).max():.3g}. Apply a softmax to the head's logits."
        )
    classes, own = np.unique(y, return_inverse=True)
    joint = np.stack([theta[own == k].sum(axis=0) for k in range(len(classes))])
    given = joint / np.maximum(joint.sum(axis=0), 1e-300)
    return float(np.log(np.maximum((theta * given[own]).sum(axis=1), 1e-300)).mean())


def check_features(
    features: NDArray[Any], labels: NDArray[Any], *, constant: bool = False
) -> tuple[Floats, NDArray[Any]]:
    """Returns the features in float64 and the labels, after checking that scores are defined for them.

    Args:
        features: (n, F).
        labels: (n,).
        constant: whether they may be the same in all cases.

    Raises:
        DataError: other shapes, values that are not finite, fewer cases than classes or a single class, or features
            that are the same in all cases.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise DataError(f"Expected features (n, F) and labels (n,), got {x.shape} and {y.shape}.")
    num_classes = len(np.unique(y))
    if num_classes < 2 or len(y) <= num_classes:
        raise DataError(
            f"{len(y)} cases of {num_classes} classes cannot rank encoders: at least two classes and more cases "
            "than classes are needed. Add labelled cases, or leave rare classes out with --classes."
        )
    if not np.isfinite(x).all():
        raise DataError("Some features are not finite: the encoder's weights or the scans are damaged.")
    if not constant and float(np.ptp(x, axis=0).max(initial=0.0)) <= 1e-9 * float(np.abs(x).max(initial=0.0)):
        raise DataError(
            "The features are the same in all cases: the encoder sees no difference between the scans. Check the "
            "scans and --intensity (a window that cuts everything off), and the weights."
        )
    return x, y


def check_patients(labels: NDArray[Any], patients: Ints) -> None:
    """Raises `DataError` if a class has cases of only one patient."""
    alone = [k for k in np.unique(labels) if len(set(patients[labels == k])) < 2]
    if alone:
        raise DataError(
            f"{len(alone)} of {len(np.unique(labels))} classes have cases of one patient only, expected two or more: "
            "each patient is predicted from the others. Add patients, or leave the class out with --classes."
        )
