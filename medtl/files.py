"""Writing files so that a reader never sees half of one, and names so that two never become one."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medtl.errors import CheckpointError, ConfigError

_OWNER = ".owner.json"
_BEGUN = ".begun"
LOCKS = (".lock", _OWNER)
"""Files of a folder in which a process works."""
_FORBIDDEN = re.compile(r'[%/\\:*?"<>|\x00-\x1f]')


def file_name(name: str) -> str:
    """A name of a model or a structure as one part of a path; two names never become one.

    What some file system forbids is written as in a URL.

    Example:
        >>> file_name("resnet50/last:2@20")
        'resnet50%2Flast%3A2@20'
    """
    encoded = _FORBIDDEN.sub(lambda found: f"%{ord(found[0]):02X}", name)
    # A leading dot hides a file or leads to another folder, and Windows drops one at the end, as it does with blanks.
    encoded = re.sub(r"^\.|[. ]$", lambda found: f"%{ord(found[0]):02X}", encoded)
    return encoded or "%"


def private_cache(name: str) -> Path:
    """A folder for copies of scans that a command needs for a while, which only the user can read.

    It is in the user's cache (`XDG_CACHE_HOME`, by default `~/.cache`), never in a folder that is passed on.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "medtl" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def atomic_write(path: Path, data: str | bytes, *, private: bool = False) -> None:
    r"""Writes `data` beside `path`, flushes it to disk and renames it: a reader sees the old file or the new one.

    Text is written as UTF-8 with `\n` line ends. The parent folder is made if it is absent.

    Args:
        path: the file.
        data: its content.
        private: only the user can read it, from its first byte on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        opener = functools.partial(os.open, mode=0o600 if private else 0o666)
        with open(temporary, "xb", opener=opener) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def output_folder(folder: Path, *command: object) -> Iterator[None]:
    """Within it, a command writes into a folder of its own, which holds `DONE` once everything is written.

    A folder that the same command left unfinished is filled again.

    Args:
        folder: a new or an empty one.
        command: what the command was told to do.

    Raises:
        ConfigError: it is a file, or holds something else.
        CheckpointError: another process writes into it.
    """
    mark, digest = folder / _BEGUN, hashlib.blake2b(repr(command).encode(), digest_size=8).hexdigest()
    if folder.exists() and (not folder.is_dir() or any(p.name not in LOCKS for p in folder.iterdir())):
        begun = mark.read_text(encoding="utf-8") if folder.is_dir() and mark.is_file() else ""
        if begun.strip() != digest:
            raise ConfigError(f"{folder.name} is not empty and is not overwritten. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder):
        atomic_write(mark, digest + "\n")
        yield
        atomic_write(folder / "DONE", time.strftime("%Y-%m-%dT%H:%M:%S%z") + "\n")
        mark.unlink()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within it, the folder belongs to this process; one that a killed process held is taken over.

    The system releases the lock when the process ends, however it ends. Who holds it stands beside it, the machine as
    a hash.

    Raises:
        CheckpointError: another process works in the folder, or one of another machine did and may still do so.
    """
    from filelock import FileLock, Timeout

    lock, owner = FileLock(folder / LOCKS[0]), folder / _OWNER
    host = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
    before = _owner(owner)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"Another process works in {folder.name} ({before.get('process', 'of unknown number')}, since "
            f"{before.get('since', 'an unknown time')}). Wait for it to end, or stop it."
        ) from None
    try:
        if before.get("host", host) != host:
            raise CheckpointError(
                f"A process of another machine works in {folder.name}, since {before.get('since')}. If it does not any "
                f"more, delete {_OWNER} in that folder and try again."
            )
        now = {"host": host, "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        atomic_write(owner, json.dumps(now) + "\n")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
    finally:
        (folder / LOCKS[0]).unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
