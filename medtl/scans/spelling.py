"""Text as it is compared across spellings: words of names, ids and paths, without case, accents and separators."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

LONG_NAME = 6
"""Names of this length are searched for inside longer words too: `scanmueller`."""
SHORT = 4
"""Shorter words are part of too many others: two spellings of an umlaut are not taken for one in them."""
_SPELLED = {"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"}
_BARE = {
    **{"ß": "ss", "æ": "ae", "œ": "oe", "þ": "th", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h"},
    **{"\u0131": "i", "\u0640": ""},  # dotless i, Arabic tatweel
}
_SCRIPT = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_DENSE = re.compile(f"[{_SCRIPT}]+")
_TOKEN = re.compile(rf"[{_SCRIPT}]+|\d+|[^\W\d_{_SCRIPT}]+")
_HUMP = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-ZÀ-ÖØ-ÞΑ-ΩА-Я])")


def words_of(text: str) -> tuple[str, ...]:
    """Words, numbers and stretches of a script without spaces, folded."""
    return tuple(_TOKEN.findall(_fold(text)))


@lru_cache(1 << 16)
def readings(part: str) -> tuple[tuple[str, ...], ...]:
    """The words of a part of a path, in each spelling that a header may have; `JohnDoe` is two words or one."""
    part = re.sub(
        "[\udc80-\udcff]", lambda byte: chr(ord(byte[0]) - 0xDC00), part
    )  # bytes of another code page
    apart = _HUMP.sub(" ", part)
    texts = dict.fromkeys(
        (part, apart) if part.isascii() else (part, apart, spell_out(part), spell_out(apart))
    )
    found = dict.fromkeys(map(words_of, texts))
    return tuple(found | dict.fromkeys([tuple(map(collapse, words)) for words in found]))


def spell_out(text: str) -> str:
    """Umlauts as two letters."""
    return "".join(_SPELLED.get(c, c) for c in unicodedata.normalize("NFC", text).casefold())


def collapse(word: str) -> str:
    """The word with one letter for what may be an umlaut written as two; a short word stays."""
    shorter = re.sub("ae|oe|ue|aa", lambda found: found[0][0], word)
    return shorter if len(shorter) >= SHORT else word


def weight(word: str) -> int:
    """Number of letters; a character of a script without spaces, in which two are a name, counts as two."""
    return len(word) * (2 if _DENSE.fullmatch(word) else 1)


def runs(words: Sequence[str]) -> set[str]:
    """Neighbouring words joined, up to twelve: `TCGA-17-Z050` is stored with or without its dashes."""
    found = {
        "".join(words[a:b]) for a in range(len(words)) for b in range(a + 1, min(a + 12, len(words)) + 1)
    }
    return found | {run.lstrip("0") for run in found if run.isdigit()}


def parts_inside(words: Sequence[str]) -> set[str]:
    """What may be a name inside a word."""
    found: set[str] = set()
    for word in words:
        if not word.isdigit():
            least, most = (2, 8) if _DENSE.fullmatch(word) else (LONG_NAME, 24)
            starts = range(len(word))
            found |= {word[a:b] for a in starts for b in range(a + least, min(a + most, len(word)) + 1)}
    return found


def _fold(text: str) -> str:
    """Lower case without accents, in one spelling of each character."""
    if text.isascii():
        return text.lower()
    letters = "".join(_BARE.get(c, c) for c in unicodedata.normalize("NFKC", text).casefold())
    bare = (c for c in unicodedata.normalize("NFKD", letters) if unicodedata.category(c) != "Mn")
    return unicodedata.normalize("NFC", "".join(bare))
