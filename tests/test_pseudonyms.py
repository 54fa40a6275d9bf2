"""Pseudonyms and the secret they are made from."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from medtl.errors import ConfigError
from medtl.pseudonyms import SIZE, keyed_digest, pseudonyms

KEYS = [f"id:MRN{number:03d}" for number in range(300)]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no variable that names a secret."""
    monkeypatch.delenv("MEDTL_SECRET_FILE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def _digest_of(folder: str) -> bytes:
    os.environ.pop("MEDTL_SECRET_FILE", None)
    os.chdir(folder)
    return keyed_digest("path", "x")


def test_they_are_stable_short_distinct_and_follow_no_order() -> None:
    found = pseudonyms(KEYS)
    assert found == pseudonyms(reversed(KEYS))
    assert all(len(name) == 9 and name.isalnum() and name.islower() for name in found.values())
    assert len(set(found.values())) == len(KEYS)
    rising = sum(a < b for a, b in zip(list(found.values()), list(found.values())[1:], strict=False))
    assert 100 < rising < 200
    assert pseudonyms(KEYS[:3]).items() <= found.items()


def test_equal_ones_get_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {key: bytes(5) + bytes([number]) * 27 for number, key in enumerate(KEYS[:3])}
    monkeypatch.setattr("medtl.pseudonyms.keyed_digest", lambda purpose, text: digests[text])
    found = pseudonyms(KEYS[:3])
    assert len(set(found.values())) == 3
    assert {len(name) for name in found.values()} == {11}


def test_a_secret_is_made_for_the_user_alone(project: Path) -> None:
    assert list(project.iterdir()) == []
    first = keyed_digest("path", "x")
    folder, secret = project / ".medtl", project / ".medtl" / "secret"
    assert len(secret.read_bytes()) == SIZE
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {p.name for p in folder.iterdir()} == {"secret", ".gitignore"}
    assert (folder / ".gitignore").read_text() == "*\n"
    assert keyed_digest("path", "x") == first
    assert keyed_digest("patient", "x") != first


def test_projects_and_files_that_are_named_have_secrets_of_their_own(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = keyed_digest("path", "x")
    monkeypatch.setenv("MEDTL_SECRET_FILE", str(tmp_path / "kept" / "key"))
    second = keyed_digest("path", "x")
    assert first != second
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert keyed_digest("path", "x") == second
    assert list((tmp_path / "kept").iterdir()) == [tmp_path / "kept" / "key"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_where_nothing_can_be_written_the_users_folder_has_it(project: Path, tmp_path: Path) -> None:
    (project / ".medtl").write_text("a file in the way")
    assert keyed_digest("path", "x") == keyed_digest("path", "x")
    assert (tmp_path / "state" / "medtl" / "secret").is_file()


def test_no_place_and_a_file_that_is_too_short_are_errors(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (project / ".medtl").write_text("a file in the way")
    (tmp_path / "state").write_text("another")
    with pytest.raises(ConfigError, match="MEDTL_SECRET_FILE"):
        keyed_digest("path", "x")
    monkeypatch.setenv("MEDTL_SECRET_FILE", str(project / ".medtl"))
    with pytest.raises(ConfigError, match="17 bytes, expected 32"):
        keyed_digest("path", "x")


def test_processes_that_start_at_once_get_one_secret(project: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.map(_digest_of, [str(project)] * 8, chunksize=1)
    assert len(set(found)) == 1
    assert found[0] == keyed_digest("path", "x")
