from __future__ import annotations

import json

import numpy as np
import pytest

from medtl.errors import ConfigError
from medtl.labelmap import VOID, LabelMap, count_values

LABELS = LabelMap({"liver": (10, 11), "lesion": (3,)}, background=(0, 5), void=(255, 254))


def test_classes_and_values():
    assert LABELS.classes == ("background", "liver", "lesion")
    assert LABELS.values == (0, 10, 3)
    assert LABELS.text() == "background 0/5, liver 10/11, lesion 3, void 255/254"


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_encode(kind):
    stored = np.array([[0, 10, 3], [11, 5, 255 if kind is not np.int8 else 0], [7, 254, 100]], kind)
    encoded = LABELS.encode(stored)
    assert encoded.dtype == np.uint8
    np.testing.assert_array_equal(encoded, [[0, 1, 2], [1, 0, VOID], [VOID, VOID, VOID]])
    assert LABELS.unknown(stored) == {7: 1, 100: 1}


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_negative_values(kind):
    labels = LabelMap({"a": (-1,), "b": (127,)}, background=(0,), void=(-128,))
    np.testing.assert_array_equal(
        labels.encode(np.array([-1, 127, 0, -128, -2], kind)), [1, 2, 0, VOID, VOID]
    )
    assert labels.unknown(np.array([-1, -2, -2], kind)) == {-2: 2}


@pytest.mark.parametrize("values", [(1, 2), (10, 300), (-5, 70000)])
def test_decode_is_the_inverse(values):
    labels = LabelMap({"a": (values[0],), "b": (values[1],)}, void=(99,))
    index = np.random.default_rng(0).choice([0, 1, 2, VOID], (5, 6)).astype(np.uint8)
    stored = labels.decode(index)
    assert stored.dtype.itemsize == (
        1 if max(values) < 256 and min(values) >= 0 else 2 if max(values) < 300 + 1 else 4
    )
    np.testing.assert_array_equal(labels.encode(stored), index)


def test_without_void_it_is_written_as_background():
    labels = LabelMap({"a": (1,)})
    np.testing.assert_array_equal(labels.decode(np.array([0, 1, VOID], np.uint8)), [0, 1, 0])
    with pytest.raises(ConfigError, match="beyond 32 bits"):
        LabelMap({"a": (1 << 40,)}).decode(np.zeros(1, np.uint8))


def test_count_values():
    generator = np.random.default_rng(0)
    for kind in (np.uint8, np.int8, np.int16, np.uint16, np.int32):
        stored = generator.integers(-3 if np.iinfo(kind).min < 0 else 0, 9, (4, 5, 6)).astype(kind)
        found, counts = np.unique(stored, return_counts=True)
        assert count_values(stored) == dict(zip(found.tolist(), counts.tolist(), strict=True))
    assert count_values(np.zeros(0, np.uint8)) == {}


def test_select_makes_the_rest_background():
    chosen = LABELS.select(["lesion"])
    assert chosen.classes == ("background", "lesion")
    np.testing.assert_array_equal(chosen.encode(np.array([0, 5, 10, 11, 3, 255])), [0, 0, 0, 0, 1, VOID])
    assert LABELS.select(["lesion", "liver"]).classes == ("background", "lesion", "liver")
    with pytest.raises(ConfigError, match=r"no structure 'lesions'\. Perhaps you meant 'lesion'"):
        LABELS.select(["lesions"])


def test_agreement():
    same = LabelMap({"lesion": (3,), "liver": (11, 10)}, background=(5, 0), void=(254, 255))
    assert LABELS.agrees(same)
    assert not LABELS.agrees(LabelMap({"lesion": (3,), "liver": (10,)}, background=(0, 5), void=(255, 254)))
    assert LABELS.select(["lesion"]).within(LABELS)
    assert not LabelMap({"lesion": (4,)}).within(LABELS)


@pytest.mark.parametrize(
    "labels", [LABELS, LabelMap({"a": (1,)}), LabelMap({"b": (2,), "a": (1,)}, background=(7,), void=(9,))]
)
def test_file_round_trip(tmp_path, labels):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels.to_dict()))
    found = LabelMap.read(path)
    assert found == labels
    assert found.classes == labels.classes


@pytest.mark.parametrize(
    ("content", "classes", "void"),
    [
        ({"labels": {"background": 0, "tumour": 1, "ignore": 2}}, ("background", "tumour"), (2,)),
        ({"labels": {"0": "background", "1": "liver", "2": "tumour"}}, ("background", "liver", "tumour"), ()),
        ({"lesion": [1, 2]}, ("background", "lesion"), ()),
    ],
)
def test_files_of_others(tmp_path, content, classes, void):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    found = LabelMap.read(path)
    assert (found.classes, found.void) == (classes, void)


def test_flags():
    labels = LabelMap.parse(["nucleus=255", " tumour = 1,2", "void=9", "ring=-3", "tumour=4"])
    assert dict(labels.structures) == {"nucleus": (255,), "tumour": (1, 2, 4), "ring": (-3,)}
    assert labels.void == (9,)


@pytest.mark.parametrize("text", ["nucleus", "nucleus=", "=3", "a=1.5", "a=x", "a=1,,2", ""])
def test_flags_that_are_none(text):
    with pytest.raises(ConfigError, match="takes NAME=VALUE, got"):
        LabelMap.parse([text])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LabelMap({}), "no structure to segment"),
        (lambda: LabelMap({"a": ()}), "'a' has no value"),
        (lambda: LabelMap({"a": (1,)}, background=()), "background needs a value"),
        (lambda: LabelMap({"a": (1,), "b": (2, 1)}), "value 1 stands for both 'a' and 'b'"),
        (lambda: LabelMap({"a": (0,)}), "value 0 stands for both"),
        (lambda: LabelMap({"a": (1,)}, void=(1,)), "value 1 stands for both 'a' and 'void'"),
        (lambda: LabelMap({f"s{n}": (n + 1,) for n in range(255)}), "at most 254"),
        (lambda: LabelMap.from_dict({"a": "1"}), "expected an integer"),
        (lambda: LabelMap.from_dict({"a": True}), "expected an integer"),
        (lambda: LabelMap.from_dict({"a": 1, "a ": 2}), "named twice"),
        (lambda: LabelMap.from_dict({" ": 1}), "without a name"),
    ],
)
def test_maps_that_are_none(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize("content", ["[1]", "{", '{"labels": [1]}', "3"])
def test_files_that_are_none(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"labels\.json"):
        LabelMap.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        LabelMap.read(tmp_path / "no.json")
