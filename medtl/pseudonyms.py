"""Pseudonyms: digests keyed by a secret of the project, so that nobody can check a name or an id that he guesses.

The secret is 32 random bytes, made when the first pseudonym is needed, in `.medtl/secret` of the working directory or
in the file that the environment variable `MEDTL_SECRET_FILE` names. Only the user can read it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from medtl.errors import ConfigError
from medtl.files import write_once

SIZE = 32
"""Bytes of a secret."""
VARIABLE = "MEDTL_SECRET_FILE"
"""The environment variable that names another file."""
_LETTERS = 8


def pseudonyms(keys: Iterable[str]) -> dict[str, str]:
    """A pseudonym of each key, the same in every run of the project: `p` and eight letters or digits.

    They do not follow the order of the keys. Should two of them be equal, all get longer.
    """
    words = {key: base64.b32encode(keyed_digest("patient", key)).decode().lower() for key in keys}
    length = next(n for n in range(_LETTERS, 53) if len({w[:n] for w in words.values()}) == len(words))
    return {key: f"p{word[:length]}" for key, word in words.items()}


def keyed_digest(purpose: str, text: str) -> bytes:
    """The digest of a text under the project's secret; digests for two purposes cannot be compared."""
    data = text.encode(errors="surrogateescape")
    return hashlib.blake2b(data, digest_size=32, key=_secret(*_places()), person=purpose.encode()).digest()


def _places() -> tuple[Path, ...]:
    """Where the secret may be, the best place first."""
    if given := os.environ.get(VARIABLE):
        return (Path(given).absolute(),)
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return Path.cwd() / ".medtl" / "secret", state / "medtl" / "secret"


@cache
def _secret(*places: Path) -> bytes:
    why = ""
    for place in places:
        try:
            if not place.exists():
                _make(place)
            found = place.read_bytes()
        except OSError as error:
            why = error.strerror or type(error).__name__
            continue
        if len(found) < SIZE:
            raise ConfigError(
                f"The file of the project's secret, {place.name!r}, holds {len(found)} bytes, expected {SIZE}: "
                "delete it, and a new one is made. Pseudonyms change with it."
            )
        return found[:SIZE]
    raise ConfigError(
        f"There is no place for the project's secret, from which pseudonyms are made ({why}): set {VARIABLE} to a file "
        "that can be written."
    )


def _make(place: Path) -> None:
    """Makes a secret; of two processes that do so at once, the first one's is kept."""
    if VARIABLE not in os.environ:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    write_once(place, secrets.token_bytes(SIZE))
