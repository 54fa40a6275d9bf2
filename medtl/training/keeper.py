"""The checkpoints of a training: the state for resuming, and the weights of the best epoch."""

from __future__ import annotations

import hashlib
import io
import math
import re
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor, nn

from medtl.checkpoints import load_weights, save_weights, weights_bytes
from medtl.errors import CheckpointError
from medtl.files import atomic_write
from medtl.record import digest_of

CHECKPOINT_SHARE = 0.02
"""Share of the training time that checkpoints may take."""


CHECKPOINT_SECONDS = 5.0
"""Training time that may be lost in a kill, rather than checkpointed."""


_DIGEST = "weights_sha256"
_EPOCH = re.compile(r"epoch-(\d{4,})\.safetensors")


def last_epoch(folder: Path) -> Path | None:
    """The newest complete epoch checkpoint of `folder`: its weights are renamed into place last."""
    found = [(int(m[1]), p) for p in folder.glob("epoch-*.safetensors") if (m := _EPOCH.fullmatch(p.name))]
    return max(found)[1] if found else None


class SafetensorsIO(CheckpointIO):
    """Splits Lightning's checkpoint: `epoch-0003.safetensors` (weights) and `epoch-0003.state.pt` (all else)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the state first and the weights last, so that weights mean a complete checkpoint."""
        path = Path(path)
        if (
            "state_dict" not in checkpoint
        ):  # spawned processes hand bare weights to the one that waits for them
            return save_weights(path, checkpoint, {"kind": "weights"})
        weights = weights_bytes(
            checkpoint["state_dict"], {"kind": "training", "epoch": int(checkpoint["epoch"])}
        )
        rest = {k: v for k, v in checkpoint.items() if k != "state_dict"}
        buffer = io.BytesIO()
        torch.save({**rest, _DIGEST: hashlib.sha256(weights).hexdigest()}, buffer)
        atomic_write(path.with_suffix(".state.pt"), buffer.getvalue())
        atomic_write(path, weights)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Joins the two files again; only tensors and plain values are unpickled."""
        path = Path(path)
        header, weights = load_weights(path)
        if header.get("kind") == "weights":
            return dict(weights)
        try:
            rest: dict[str, Any] = torch.load(
                path.with_suffix(".state.pt"), map_location="cpu", weights_only=True
            )
        except Exception as error:
            raise CheckpointError(
                f"The optimiser's state beside {path.name} cannot be read ({type(error).__name__}). "
                "Delete both files of that epoch to resume from the one before."
            ) from error
        if rest.pop(_DIGEST, None) != digest_of(path):
            raise CheckpointError(
                f"{path.name} and the optimiser's state beside it are not of one training: a file was exchanged or "
                "damaged. Delete both to train this model again."
            )
        return {**rest, "state_dict": weights}

    def remove_checkpoint(self, path: Any) -> None:
        """Removes both files, the weights first."""
        Path(path).unlink(missing_ok=True)
        Path(path).with_suffix(".state.pt").unlink(missing_ok=True)


class Keeper(Checkpoint):
    """Keeps a checkpoint of a late epoch and, with patience, the weights of the best epoch.

    A checkpoint is written when its cost is small compared with the training since the last one: an interrupted run of
    fast epochs repeats a few of them. It derives from `Checkpoint`, so that Lightning calls it after the module has
    finished its epoch.
    """

    def __init__(self, adapter: nn.Module, folder: Path, patience: int | None) -> None:
        super().__init__()
        self.adapter = adapter
        self.folder = folder
        self.patience = patience
        self.best = math.inf
        self.best_epoch = -1
        self.losses: dict[str, float] = {}
        self._best_state: dict[str, Tensor] | None = None  # not yet in its file
        self._cost = 0.0
        self._written_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The state needed for resuming."""
        return {"best": self.best, "best_epoch": self.best_epoch, "losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.losses = state_dict["losses"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decides whether this epoch is the best, whether to stop, and whether to write a checkpoint."""
        epoch = trainer.current_epoch
        if self.patience is None:
            self.best_epoch = epoch
        else:
            loss = float(trainer.callback_metrics.get("validation_loss", math.inf))
            if loss < self.best or self.best_epoch < 0:
                self.best, self.best_epoch = loss, epoch
                self._best_state = {k: v.detach().clone() for k, v in self.adapter.state_dict().items()}
            trainer.should_stop = trainer.should_stop or self._exhausted(epoch)
        self.losses = dict(pl_module.last_losses)  # type: ignore[arg-type]
        last = trainer.should_stop or epoch + 1 == trainer.max_epochs
        # Several processes write every epoch, because a checkpoint needs all of them.
        due = time.monotonic() - self._written_at > max(self._cost / CHECKPOINT_SHARE, CHECKPOINT_SECONDS)
        if last or due or trainer.world_size > 1:
            self._write(trainer, epoch)

    def _write(self, trainer: pl.Trainer, epoch: int) -> None:
        """Writes this epoch's files, then removes those of the one before."""
        start, before = time.monotonic(), last_epoch(self.folder)
        if self._best_state is not None and trainer.is_global_zero:
            save_weights(self.folder / "best.safetensors", self._best_state, {"epoch": self.best_epoch})
        self._best_state = None
        path = self.folder / f"epoch-{epoch:04d}.safetensors"
        trainer.save_checkpoint(str(path))
        if before is not None and before != path and trainer.is_global_zero:
            SafetensorsIO().remove_checkpoint(before)
        self._written_at = time.monotonic()
        self._cost = self._written_at - start

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops at once if the run was killed after its last epoch, before its final weights were written."""
        trainer.should_stop = trainer.should_stop or self._exhausted(trainer.current_epoch - 1)

    def _exhausted(self, epoch: int) -> bool:
        return self.patience is not None and self.best_epoch >= 0 and epoch - self.best_epoch >= self.patience

    def restore(self) -> int:
        """Loads the weights to keep into the adapter, and returns the number of epochs run.

        Everything is read from files: with several devices, training ran in other processes.
        """
        last = last_epoch(self.folder)
        if last is None:
            raise CheckpointError(f"Training left no checkpoint in {self.folder.name}: was it stopped?")
        checkpoint = SafetensorsIO().load_checkpoint(last)
        self.load_state_dict(checkpoint["callbacks"][self.state_key])
        best = self.folder / "best.safetensors"
        if self.patience is not None and best.exists():
            self.adapter.load_state_dict(load_weights(best)[1])
        else:
            self.adapter.load_state_dict(
                {k.removeprefix("adapter."): v for k, v in checkpoint["state_dict"].items()}
            )
        return int(checkpoint["epoch"]) + 1

    def clean(self) -> None:
        """Removes the files that only resuming needed."""
        if (last := last_epoch(self.folder)) is not None:
            SafetensorsIO().remove_checkpoint(last)
        (self.folder / "best.safetensors").unlink(missing_ok=True)
