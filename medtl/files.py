"""Writing files so that a reader never sees half of one, and names so that two never become one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from medtl.errors import ConfigError

_FORBIDDEN = re.compile(r'[%/\\:*?"<>|\x00-\x1f]')


def file_name(name: str) -> str:
    """A name of a model or a structure as one part of a path; two names never become one.

    What some file system forbids is written as in a URL.

    Example:
        >>> file_name("resnet50/last:2@20")
        'resnet50%2Flast%3A2@20'
    """
    return _FORBIDDEN.sub(lambda found: f"%{ord(found[0]):02X}", name)


def atomic_write(path: Path, data: str | bytes) -> None:
    r"""Writes `data` beside `path`, flushes it to disk and renames it: a reader sees the old file or the new one.

    Text is written as UTF-8 with `\n` line ends. The parent folder is made if it is absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fresh_folder(folder: Path) -> None:
    """Makes a folder, or refuses one that holds something.

    Raises:
        ConfigError: it is a file, or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder.name} is not empty and is not overwritten. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
