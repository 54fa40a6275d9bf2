"""Patients of many scripts, and sites of scans whose folders and files are named after them."""

from __future__ import annotations

import csv
import html
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.scans.make_scans import write_dicom


@dataclass(frozen=True)
class Person:
    """A patient as headers name it, and as a careless user does.

    Attributes:
        name: PatientName.
        files: spellings in names of files and folders.
        secrets: what must not be found, folded as `folded` does.
    """

    name: str
    files: tuple[str, ...]
    secrets: tuple[str, ...]
    patient_id: str
    birth: str
    accession: str


def _person(number: int, name: str, files: str, secrets: str) -> Person:
    patient_id, accession = f"MRNQ{47110 + number}", f"ACCQ{99120 + number}"
    birth = f"19{40 + number}-0{number % 9 + 1}-1{number % 10}"
    digits = birth.replace("-", "")
    more = (
        patient_id.lower(),
        f"mrnq_{47110 + number}",
        accession.lower(),
        digits,
        birth,
        f"dob_{digits[2:]}",
    )
    return Person(name, tuple(files.split()), (*secrets.split(), *more), patient_id, digits, accession)


PEOPLE = (
    _person(
        0, "Zqmüller^Änneliq", "zqmueller ZQMÜLLER_x AnneliqZqmuller", "zqmueller zqmuller anneliq aenneliq"
    ),
    _person(1, "Éqvariste^Hélènq", "eqvariste Héle\u0300nq-1", "eqvariste helenq"),
    _person(2, "I\u015f\u0131kqan^Çağlaqş", "isikqan CAGLAQS_2 çağlaqş", "isikqan caglaqs"),
    _person(3, "Łękawqska^Żanetqa", "lekawqska Żanetqa", "lekawqska zanetqa"),
    _person(4, "Ивановъскин^Аннушка", "ИВАНОВЪСКИН аннушка_1", "ивановъскин аннушка"),
    _person(5, "Παπαδόπουλος^Γιώργος", "ΠΑΠΑΔΟΠΟΥΛΟΣ γιώργος", "παπαδοπουλο γιωργο"),
    _person(6, "Wangq^Xmingq=王^小明", "王小明 ct小明 wangqxmingq", "小明 wangq xmingq"),
    _person(7, "Yamadq^Tarouq=山田^太郎", "山田太郎_ct 太郎", "山田 太郎"),
    _person(8, "Kimq^Csuq=김^철수", "김철수 mr철수", unicodedata.normalize("NFC", "철수 김철수")),
    _person(9, "الحسنين^محمدين", "الحسنين_1 محمدين", "الحسنين محمدين"),
    _person(10, "Li^Bo", "Li_Bo bo-li libo4711", "li_bo bo-li libo"),
)
"""One of each script; the last has a name of short parts."""


def folded(text: str) -> str:
    """Without case and accents, written anew here: the code is not its own judge."""
    for old, new in (("ł", "l"), ("Ł", "l"), ("\u0131", "i"), ("ς", "\u03c3")):
        text = text.replace(old, new)
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", bare)


def write_site(folder: Path, *, shade: int = 0, size: int = 32, masks: Path | None = None) -> Path:
    """Two images of each person, in turn named by name, id, birth date and accession number, and labels.csv beside."""
    rows = []
    for number, person in enumerate(PEOPLE):
        names = [*person.files, person.patient_id.lower(), f"dob_{person.birth}", f"dob_{person.birth[2:]}"]
        names.append(f"x_{person.accession[:4]}-{person.accession[4:]}")
        for scan in range(2):
            stem = names[(number + 3 * scan) % len(names)]
            place = f"{names[(number + scan + 1) % len(names)]}/{stem}-{scan}"
            label = number % 2
            rng = np.random.default_rng(10 * number + scan)
            stripes = (np.arange(size) % (2 + 2 * label) < 1 + label) * 90
            pixels = np.clip(rng.normal(60 + shade, 15, (size, size)) + stripes, 0, 255).astype(np.uint8)
            write_dicom(
                folder / f"{place}.dcm",
                pixels,
                modality="CR",
                series=f"1.2.{shade + 1}.{number}.{scan}",
                patient_id=f"{person.patient_id}-{shade}",
                patient_name=person.name,
                position=None,
                orientation=None,
                SpecificCharacterSet="ISO_IR 192",
                PatientBirthDate=person.birth,
                OtherPatientIDs=person.patient_id,
                AccessionNumber=person.accession,
            )
            rows.append((f"{place}.dcm", f"class{label}"))
            if masks is not None:
                (masks / place).parent.mkdir(parents=True, exist_ok=True)
                half = np.zeros_like(pixels)
                half[:, : size // 2] = 1
                Image.fromarray(half).save(masks / f"{place}.png")
    beside = next(iter(PEOPLE)).files[0]
    (folder / f"report_{beside}.pdf").write_bytes(b"x")
    Image.fromarray(np.full((size, size), 7, np.uint8)).save(folder / f"{beside}_scout.png")
    with (folder / f"{beside}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("case", "label"), *rows])
    return folder


def leaks(texts: dict[str, str]) -> list[str]:
    """What texts give away: `file: secret` for each that holds a person's name, id or date."""
    found = []
    for place, text in texts.items():
        plain = folded(html.unescape(text))
        found += [f"{place}: {s}" for p in PEOPLE for s in p.secrets if s in plain]
    return found


def texts_below(folder: Path) -> dict[str, str]:
    """Names and contents of all files of a folder; JSON without escapes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
        if path.suffix == ".json":
            text = json.dumps(json.loads(text), ensure_ascii=False)
        found[name] = f"{name}\n{text}"
    return found
