"""Array types and the few numeric helpers that every part of the evaluation shares."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Strings = NDArray[Any]


def log_softmax(logits: Floats) -> Floats:
    """Log probabilities of each row; (n, K) to (n, K), without overflow."""
    top = logits.max(axis=1, keepdims=True)
    shifted = logits - top
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def log_odds(logits: Floats, column: int) -> Floats:
    """Log odds of one class against all others, (n,): strictly increasing in its probability.

    Probabilities saturate at 1.0 and make ties that the logits do not have, so ranks are taken here.
    """
    others = np.delete(logits, column, axis=1)
    top = others.max(axis=1, keepdims=True)
    rest = top[:, 0] + np.log(np.exp(others - top).sum(axis=1))
    return np.asarray(logits[:, column] - rest)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


def divide(top: Floats, bottom: Floats) -> Floats:
    """The quotient, nan where `bottom` is 0."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))


def sum_by_patient(values: Floats, patient: Ints, num_patients: int) -> Floats:
    """Sums rows by patient: (n, q) to (P, q). A resample of patients is then one matrix product."""
    out = np.zeros((num_patients, values.shape[1]))
    np.add.at(out, patient, values)
    return out


def seed_from(*parts: object) -> int:
    """A 64-bit seed from any printable parts: adding a model or a site leaves the other streams alone."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
