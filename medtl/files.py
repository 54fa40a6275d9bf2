"""Writing files so that a reader never sees half of one, and names so that two never become one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from medtl.errors import CheckpointError, ConfigError

_OWNER = ".owner.json"
_BEGUN = ".begun"
LOCKS = (".lock", _OWNER)
"""Files of a folder in which a process works."""
SILENT_SECONDS = 180
"""A process of another machine that has shown no life for so long is taken for dead."""
_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})\.(?P<process>\d+)\.tmp", re.DOTALL)
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

    Text is written as UTF-8 with `\n` line ends. The parent folder is made if it is absent. What processes that were
    killed left half-written in the folder is removed.

    Args:
        path: The file.
        data: Its content.
        private: Only its owner may read the file, and the folder if it is made here.
    """
    if private:
        private_folder(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=_private if private else None) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def private_folder(folder: Path) -> None:
    """Makes a folder that only its owner may enter; one that is there keeps its permissions."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


@cache
def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of processes of this machine that are gone. Each process looks once into a folder."""
    for file in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(file.name)
        if found and found["host"] == _host() and not _alive(int(found["process"])):
            with contextlib.suppress(OSError):  # another process is as quick, or it belongs to somebody else
                file.unlink()


@cache
def _host() -> str:
    """What tells machines, and containers on one machine, apart; process numbers mean nothing elsewhere."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.blake2b(f"{platform.node()} {space}".encode(), digest_size=4).hexdigest()


def _alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere, asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_once(path: Path, data: bytes) -> None:
    """Writes a file that only its owner may read; one that is there stays, even if another process makes it now."""
    private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def output_folder(folder: Path, *command: object, shown: str = "") -> Iterator[None]:
    """Within it, a command writes into a folder of its own, which holds `DONE` once everything is written.

    A folder that the same command left unfinished is filled again.

    Args:
        folder: a new or an empty one.
        command: what the command was told to do.
        shown: the name of the folder in messages, if another than its own.

    Raises:
        ConfigError: it is a file, or holds something else.
        CheckpointError: another process writes into it.
    """
    mark, digest = folder / _BEGUN, hashlib.blake2b(repr(command).encode(), digest_size=8).hexdigest()
    if folder.exists() and (not folder.is_dir() or any(p.name not in LOCKS for p in folder.iterdir())):
        begun = mark.read_text(encoding="utf-8") if folder.is_dir() and mark.is_file() else ""
        if begun.strip() != digest:
            raise ConfigError(
                f"{shown or folder.name} is not empty and is not overwritten. Choose another --out."
            )
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder):
        atomic_write(mark, digest + "\n")
        try:
            yield
        except BaseException:
            if {path.name for path in folder.iterdir()} <= {*LOCKS, _BEGUN}:
                mark.unlink(missing_ok=True)  # nothing was written: the folder is free for any command
            raise
        atomic_write(folder / "DONE", time.strftime("%Y-%m-%dT%H:%M:%S%z") + "\n")
        mark.unlink()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within it, the folder belongs to this process; one that a killed process held is taken over.

    The system releases the lock when the process ends, however it ends. Who holds it stands beside it, the machine as
    a hash. A lock may not reach other machines: a process also shows every half minute that it lives.

    Raises:
        CheckpointError: another process works in the folder, or one of another machine did a moment ago.
    """
    from filelock import FileLock, Timeout

    lock, owner = FileLock(folder / LOCKS[0]), folder / _OWNER
    before = _owner(owner)
    since = before.get("since", "an unknown time")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"Another process works in {folder.name} ({before.get('process', 'of unknown number')}, since {since}). "
            "Wait for it to end, or stop it."
        ) from None
    except NotImplementedError:  # a file system without locks: what the owner shows of itself has to do
        if (
            before.get("host") == _host()
            and before.get("process") != os.getpid()
            and _alive(before["process"])
        ):
            raise CheckpointError(
                f"Another process works in {folder.name} ({before['process']}, since {since}). Wait for it to end, or "
                "stop it."
            ) from None
    try:
        if before.get("host", _host()) != _host() and time.time() - owner.stat().st_mtime < SILENT_SECONDS:
            raise CheckpointError(
                f"A process of another machine works in {folder.name}, since {since}. If it was killed, its folder is "
                f"free {SILENT_SECONDS // 60} minutes after that: try again then."
            )
        now = {"host": _host(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        atomic_write(owner, json.dumps(now) + "\n")
        ended = threading.Event()
        threading.Thread(target=_show_life, args=(owner, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            owner.unlink(missing_ok=True)
    finally:
        (folder / LOCKS[0]).unlink(missing_ok=True)
        lock.release()


def _show_life(owner: Path, ended: threading.Event) -> None:
    while not ended.wait(SILENT_SECONDS / 6):
        with contextlib.suppress(OSError):
            os.utime(owner)


def _owner(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("process"), int) else {}
