"""Seeds that depend on names, not on the order of calls: adding a draw somewhere never changes another."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *stream: str | int) -> int:
    """Derives the seed of a named stream of random numbers.

    Args:
        seed: The run's seed.
        *stream: Name of the stream, e.g. `"augment", "source", epoch, index`.

    Returns:
        An integer in [0, 2**63), the same on every machine and in every process.
    """
    # repr keeps 1 and "1", and ("a", "b") and ("ab",), apart.
    text = repr((int(seed), *stream)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
