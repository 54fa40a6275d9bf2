"""Makes names and paths safe to show: parts that name a patient, as headers do, become a short keyed digest."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import lru_cache
from itertools import permutations
from pathlib import Path, PurePath
from typing import NamedTuple

from medtl.errors import ConfigError
from medtl.pseudonyms import keyed_digest
from medtl.scans.spelling import SHORT, collapse, parts_inside, readings, runs, spell_out, weight, words_of

_COMMON = frozenset(
    words_of(
        """
        anon anonym anonymous anonymized anonymised case patient pat subject subj sub phantom test none unknown study
        scan series image img head brain chest site hospital dicom ct mr mri cohort train group data dose mask slice
        sample van von der den del des dos das bin ibn mrs prof herr frau
        """
    )
)
"""Words that anonymisers write into PatientName, and particles: replacing them would hide nothing."""
SHORT_ID = SHORT
"""Shorter ids are only searched for as whole words: `12` is part of too many file names."""
_WORDS_OF_BIRTH = frozenset(
    words_of("dob born birth birthday birthdate geb geboren geburtstag geburtsdatum nato nacido")
)
"""Beside one of these, a date may have a year of two digits, or be the year alone."""
_NO_BIRTH = frozenset({"19000101", "19010101", "19700101", "20000101"})
"""What anonymisers write into PatientBirthDate."""
_SUFFIX = re.compile(
    r"(\.nii)?\.(gz|nii|dcm|dicom|ima|png|jpe?g|tiff?|bmp|csv|txt|json|ya?ml|pdf|safetensors|pth?)$", re.I
)


class Owner(NamedTuple):
    """Whom the header of a scan names. In memory only.

    Attributes:
        patient_id: PatientID.
        patient_name: PatientName, with all its component groups.
        series: SeriesInstanceUID.
        more_ids: further ids: OtherPatientIDs, AccessionNumber.
        birth_date: PatientBirthDate, YYYYMMDD.
    """

    patient_id: str | None = None
    patient_name: str | None = None
    series: str | None = None
    more_ids: tuple[str, ...] = ()
    birth_date: str | None = None


class Identifiers:
    """The identifiers of a folder's patients, used to make paths safe to show.

    Words are compared after folding: case, accents and separators do not count, nor how an umlaut is spelled.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._names: set[str] = set()
        self._births: set[str] = set()
        self._short_births: set[str] = set()
        self._known: dict[str, bool] = {}

    def add(self, owner: Owner) -> None:
        """Takes in what one header says."""
        for text in (owner.patient_id, *owner.more_ids):
            self._ids |= {i for i in _ids(text) if len(i) >= SHORT_ID}
        self._names |= _names(owner.patient_name)
        whole, short = _births(owner.birth_date)
        self._births |= whole
        self._short_births |= short
        self._known.clear()

    def update(self, other: Identifiers) -> None:
        """Takes in those of another folder."""
        self._ids |= other._ids
        self._names |= other._names
        self._births |= other._births
        self._short_births |= other._short_births
        self._known.clear()

    def safe_path(self, path: str, owner: Owner | None = None) -> str:
        """The path, with every part that names someone replaced; parts that are equal stay equal.

        The file's own identifiers are searched for anywhere in a part, those of other files of the folder as words,
        so that a report or an unreadable file beside the scans does not reveal the name either.

        Args:
            path: path with forward slashes, or one name.
            owner: what the header of the file itself says.
        """
        parts = path.split("/")
        found = [self.names_someone(part, owner) for part in parts]
        for number in (2, 3):  # `Li/Bo`, `1943/09/18`
            for start in range(len(parts) - number + 1):
                span = slice(start, start + number)
                plain = not any(found[span]) and all(map(str.isalnum, parts[span]))
                if plain and self.names_someone("_".join(parts[span]), owner):
                    found[span] = [True] * number
        return "/".join(_digest(part) if hit else part for part, hit in zip(parts, found, strict=True))

    def names_someone(self, part: str, owner: Owner | None = None) -> bool:
        """Whether one part of a path, or one name, holds an identifier."""
        if part not in self._known:
            self._known[part] = any(map(self._holds, readings(part)))
        return self._known[part] or (owner is not None and any(_is_owned(w, owner) for w in readings(part)))

    def in_text(self, paths: Iterable[Path]) -> Callable[[str], str]:
        """A function that replaces the parts of these paths that name someone, wherever they stand in a text."""
        parts = {
            part
            for path in paths
            for p in (path, Path(os.path.realpath(path)))
            for part in p.parts
            if part.strip("/.")
        }
        parts |= {PurePath(part).stem for part in parts}
        known = {part: _digest(part) for part in parts if self.names_someone(part)}
        known |= {repr(part)[1:-1]: shown for part, shown in known.items()}
        if not known:
            return str
        longest_first = map(re.escape, sorted(known, key=len, reverse=True))
        pattern = re.compile(rf"(?<!\w)({'|'.join(longest_first)})(?!\w)")
        return lambda text: pattern.sub(lambda found: known[found[0]], text)

    def _holds(self, words: tuple[str, ...]) -> bool:
        """Whether words hold an identifier of anyone."""
        joined = runs(words)
        if joined & self._ids or (joined | parts_inside(words)) & self._names:
            return True
        dates = joined | {word[:8] for word in words if word.isdigit()}
        born = not _WORDS_OF_BIRTH.isdisjoint(words)
        return bool(dates & self._births) or (born and bool(dates & self._short_births))


def _is_owned(words: tuple[str, ...], owner: Owner) -> bool:
    """Whether words hold the id or the name of a file's own patient."""
    whole = "".join(words)
    ids = (i in whole if len(i) >= SHORT_ID else i in words for i in _ids(owner.patient_id))
    return any(ids) or any(n in whole if len(n) > SHORT else n in words for n in _names(owner.patient_name))


def _digest(part: str) -> str:
    """What stands for a part of a path; a suffix stays."""
    found = _SUFFIX.search(part)
    stem = part[: found.start()] if found else part
    digest = keyed_digest("path", unicodedata.normalize("NFC", stem)).hex()[:8]
    return digest + (found.group() if found else "")


def site_names(folders: Sequence[Path], identifiers: Identifiers, given: Sequence[str] = ()) -> list[str]:
    """The names of sites: those given, else those of the folders, but `site_1` where a folder's name names a patient.

    Raises:
        ConfigError: too few or too many names are given, or one twice.
    """
    if given:
        if len(given) != len(folders) or len(set(given)) < len(given):
            raise ConfigError(
                f"{len(given)} names of sites are given ({', '.join(given)}); expected {len(folders)}, each once: one "
                "for each source in order, then one for the target."
            )
        return list(given)
    names = [folder.resolve().name for folder in folders]
    return [f"site_{n}" if identifiers.names_someone(name) else name for n, name in enumerate(names, start=1)]


@lru_cache(1 << 14)
def _ids(text: str | None) -> frozenset[str]:
    whole = "".join(words_of(text or ""))
    if not whole.strip("0") or whole in _COMMON:
        return frozenset()
    short = whole.lstrip("0") if whole.isdigit() else whole
    return frozenset({whole, short} if len(short) >= SHORT_ID else {whole})


@lru_cache(1 << 14)
def _names(patient_name: str | None) -> frozenset[str]:
    """The parts of a name, and its parts joined: `Li^Bo` is `libo` and `boli`, and neither `li` nor `bo`."""
    found: set[str] = set()
    for group in re.split(r"[=\\]", patient_name or ""):
        for text in (group, spell_out(group)):
            parts = [words_of(part) for part in re.split(r"[\^,\s]+", text)]
            words = [w for part in parts if (w := "".join(part)) and not w.isdigit() and w not in _COMMON]
            joined = ["".join(pair) for pair in permutations(words, 2) if min(map(weight, pair)) > 1]
            alone = {w for part in parts for w in part if not w.isdigit()}
            found |= {w for w in (*words, *alone) if weight(w) > 2} | {
                j for j in joined if weight(j) > SHORT - 1
            }
    return frozenset({w for name in found for w in (name, collapse(name)) if w not in _COMMON})


@lru_cache(1 << 14)
def _births(birth_date: str | None) -> tuple[frozenset[str], frozenset[str]]:
    """The spellings of a birth date without separators: those with the whole date, and shorter ones."""
    digits = re.sub(r"\D", "", birth_date or "")
    try:
        day = date.fromisoformat(digits)
    except ValueError:
        return frozenset(), frozenset()
    if digits in _NO_BIRTH:
        return frozenset(), frozenset()
    whole = {f"{day:{form}}".lower() for form in ("%Y%m%d", "%d%m%Y", "%m%d%Y", "%d%b%Y", "%Y%b%d", "%b%d%Y")}
    plain = {
        f"{day.day}{day.month}{day.year}",
        f"{day.month}{day.day}{day.year}",
        f"{day.year}{day.month}{day.day}",
    }
    short = {f"{day:{form}}" for form in ("%y%m%d", "%d%m%y", "%m%d%y", "%Y")}
    return frozenset(whole | {p for p in plain if len(p) > 6}), frozenset(short)
