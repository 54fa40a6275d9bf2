"""Sets up Lightning's loggers and messages for a run."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def tensorboard(folder: Path) -> Any:
    """A logger that writes to `folder/tb`, or False if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return False
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=folder, name="tb", version="")


def hide_host(folder: Path) -> None:
    """Removes the machine's name from the names of TensorBoard's files."""
    for number, file in enumerate(sorted((folder / "tb").glob("events.out.tfevents.*"))):
        file.rename(file.with_name(f"events.out.tfevents.{number}"))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Lightning's advertisements and hints about loaders off the terminal."""
    names = ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero")
    levels = {n: logging.getLogger(n).level for n in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory.*")
            warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start.*")
            warnings.filterwarnings("ignore", message=".*`weights_only`.*")
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
