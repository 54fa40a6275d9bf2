"""Makes case names and paths safe to show: parts that contain a patient's id or name become a short hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

# Words that anonymisers write into PatientName: replacing them would hide nothing and rename everything.
_COMMON = frozenset(
    {
        *(
            "anon",
            "anonym",
            "anonymous",
            "anonymized",
            "anonymised",
            "case",
            "patient",
            "pat",
            "subject",
            "subj",
        ),
        *(
            "sub",
            "phantom",
            "test",
            "none",
            "unknown",
            "study",
            "scan",
            "series",
            "image",
            "img",
            "head",
            "brain",
        ),
        *("chest", "site", "hospital", "dicom", "ct", "mr", "mri", "cohort", "train", "group"),
    }
)
SHORT_ID = 4
"""Shorter ids are only searched for as whole words: `12` is part of too many file names."""


class Identifiers:
    """The identifiers of a folder's patients, used to make paths safe to show."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._names: set[str] = set()

    def add(self, patient_id: str | None, patient_name: str | None) -> None:
        """Takes in one header's PatientID and PatientName."""
        self._ids.update(_ids(patient_id))
        self._names.update(_names(patient_name))

    def update(self, other: Identifiers) -> None:
        """Takes in those of another folder."""
        self._ids |= other._ids
        self._names |= other._names

    def safe_path(
        self, path: str, patient_id: str | None = None, patient_name: str | None = None, key: str = ""
    ) -> str:
        """The path, with every component that contains an identifier replaced.

        The file's own identifiers are searched for anywhere in a component, those of other files of the
        folder as whole words, so that a report or an unreadable file beside the scans does not reveal the
        name either.

        Args:
            path: Relative path with forward slashes.
            patient_id: PatientID of the file itself, if it has one.
            patient_name: PatientName of the file itself.
            key: Key of the hash, e.g. the StudyInstanceUID: without it the hash of a guessed id could be
                compared.
        """
        own_ids, own_names = _ids(patient_id), _names(patient_name)
        parts = path.split("/")
        return "/".join(self._safe_part(part, own_ids, own_names, key) for part in parts)

    def _safe_part(self, part: str, own_ids: set[str], own_names: set[str], key: str) -> str:
        words = _words(part)
        squeezed = "".join(words)
        joined = _runs(words)
        found = (
            any(i in squeezed if len(i) >= SHORT_ID else i in words for i in own_ids)
            or any(n in squeezed if len(n) > SHORT_ID else n in words for n in own_names)
            or any(len(i) >= SHORT_ID for i in joined & self._ids)
            or bool(joined & self._names)
        )
        if not found:
            return part
        digest = hashlib.blake2b(part.encode(errors="surrogateescape"), digest_size=4, key=key.encode()[:64])
        suffix = re.search(r"(\.nii)?\.[A-Za-z]{2,5}$", part)
        return digest.hexdigest() + (suffix.group() if suffix else "")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _runs(words: list[str]) -> set[str]:
    """Neighbouring words joined, up to eight: `TCGA-17-Z050` is stored with or without its dashes."""
    return {"".join(words[a:b]) for a in range(len(words)) for b in range(a + 1, min(a + 8, len(words)) + 1)}


def _ids(patient_id: str | None) -> set[str]:
    squeezed = "".join(_words(patient_id or ""))
    return {squeezed} if squeezed and squeezed not in _COMMON else set()


def _names(patient_name: str | None) -> set[str]:
    parts: Iterable[str] = re.split(r"[\^=,\s]+", patient_name or "")
    squeezed = {"".join(_words(part)) for part in parts}
    return {p for p in squeezed if len(p) >= 3 and p not in _COMMON and re.search(r"[^\W\d_]", p)}
