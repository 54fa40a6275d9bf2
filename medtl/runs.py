"""The run folder: created once, never overwritten, resumed in place, complete when it holds `DONE`.

    runs/<recipe>/<YYYYmmdd-HHMMSS>-<name>/
        config.yaml  command.txt  env.json  cases.csv  log.txt  metrics.csv
        checkpoints/<model>-seed<N>/model.safetensors
        predictions.csv  calibration.json  decision.json
        report/{index.html,report.md,results.json,figures/}
        DONE

Nothing in it holds a full path: folders outside the working directory appear by name, and where they are is kept
beside the run, in a file of its own that only the user can read, for `--resume`. Parts of a path that name a patient
are replaced; who the patients are is known once the scans' headers are read, and nothing is written before.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtl.cells import csv_text, guarded
from medtl.config import STAMPS, Config, check_numbers, from_dict, read_yaml, to_dict, to_yaml
from medtl.errors import CheckpointError, ConfigError
from medtl.files import LOCKS, atomic_write, claimed, file_name
from medtl.record import Record, digest_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MetricsLog", "Run", "environment", "shareable_path"]

logger = logging.getLogger(__name__)

_STAMP = "%Y%m%d-%H%M%S"

_PACKAGES = (
    "medtl",
    "torch",
    "timm",
    "monai",
    "pytorch-lightning",
    "pydicom",
    "nibabel",
    "numpy",
    "scikit-learn",
)


COMPUTED_WITH = "computed with"


@dataclass(frozen=True)
class Run:
    """One run folder and the configuration that it was created with.

    Attributes:
        folder: settled when the run is opened: another run of the same second may have taken the planned name.
        recipe: name of the recipe.
        config: complete.
    """

    folder: Path
    recipe: str
    config: Any
    hide: Callable[[str], str] = field(default=str, repr=False, compare=False)

    @classmethod
    def plan(cls, recipe: str, config: Config) -> Run:
        """Names the folder of a new run, or finds the one that `config.resume` names; writes nothing.

        Raises:
            CheckpointError: the folder exists already and is not empty, is no run, or is complete.
            ConfigError: a flag differs from the resumed run's, or the configuration is not complete.
        """
        if config.resume is not None:
            return cls._resume(recipe, config)
        config = config.ready()
        check_numbers(config)
        names = config.sites or [p.name for p in config.source]
        folder = config.out or Path("runs") / recipe / f"{time.strftime(_STAMP)}-{_joined(names)}"
        return cls(folder, recipe, config)._free()

    def _free(self) -> Run:
        folder = self.folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            done = (folder / "DONE").exists()
            hint = "has finished" if done else f"can go on with --resume {self.name}"
            raise CheckpointError(
                f"The folder {self.name} is not empty, and a run is never overwritten. "
                f"Choose another --out; if it holds a run, that run {hint}."
            )
        return self

    @contextmanager
    def open(self, command: Sequence[str] = (), hide: Callable[[str], str] | None = None) -> Iterator[Run]:
        """Creates the folder unless the run is resumed; logs to it; marks it `DONE` if nothing is raised.

        Args:
            command: the words of the command line.
            hide: takes what names a patient out of a path, such as `CaseTable.hide`.

        Yields:
            The run, which hides it everywhere: also in the folder's name, unless `--out` gives that.

        Raises:
            CheckpointError: another process runs in the folder.
        """
        run = self if hide is None else self._hiding(hide)
        if run.config.resume is None:
            run._make_folder()
        with claimed(run.folder):
            if run.config.resume is None:
                run._create(command)
            with run._logged():
                yield run

    def _hiding(self, hide: Callable[[str], str]) -> Run:
        own = replace(self, hide=hide)
        names = [p.name for p in self.config.source]
        if self.config.out or self.config.resume or self.config.sites or names == [*map(hide, names)]:
            return own
        safe = [name if hide(name) == name else f"site_{n}" for n, name in enumerate(names, start=1)]
        stamp = self.folder.name[: len(time.strftime(_STAMP))]
        return replace(own, folder=self.folder.with_name(f"{stamp}-{_joined(safe)}"))._free()

    @contextmanager
    def _logged(self) -> Iterator[None]:
        handler = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("medtl").addHandler(handler)
        try:
            yield
            atomic_write(self.folder / "DONE", time.strftime("%Y-%m-%dT%H:%M:%S%z") + "\n")
        except BaseException as error:
            logger.debug("The run stopped: %s", type(error).__name__)
            where = self.name if self.name == shareable_path(self.folder) else "and its folder"
            error.add_note(f"The run keeps what it has finished: continue it with --resume {where}.")
            raise
        finally:
            logging.getLogger("medtl").removeHandler(handler)
            handler.close()

    def _make_folder(self) -> None:
        """Makes the folder; one that another run of the same second has made leads to another name."""
        place, number = self.folder, 1
        place.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                place.mkdir()
            except FileExistsError:
                if self.config.out is not None:
                    return  # it was empty when it was planned; `_create` sees whether it still is
                number += 1
                place = self.folder.with_name(f"{self.folder.name}-{number}")
            else:
                object.__setattr__(self, "folder", place)
                return

    def _create(self, command: Sequence[str]) -> None:
        if any(path.name not in LOCKS for path in self.folder.iterdir()):
            raise CheckpointError(
                f"The folder {self.name} is not empty any more: another run began in it. Choose another --out."
            )
        values = to_dict(self.config)
        paths = {k: v for k, v in values.items() if v and _holds_paths(self.config, k)}
        where = json.dumps({k: _absolute(v) for k, v in paths.items()})
        atomic_write(self._inputs_file, where, private=True)
        shared = {k: self._shareable(v, is_path=k in paths) for k, v in values.items()}
        self.write("config.yaml", f"# medtl run {self.recipe} --config config.yaml\n{to_yaml(shared)}")
        words = ["medtl", "run", self.recipe, *map(self._shareable_word, command)]
        self.write("command.txt", shlex.join(words) + "\n")
        self.write_json("env.json", environment())

    @classmethod
    def _resume(cls, recipe: str, config: Config) -> Run:
        folder = config.resume
        if folder is None or not (folder / "config.yaml").is_file():
            raise CheckpointError(
                f"--resume {shareable_path(folder or Path('.'))}: no run of medtl is there (config.yaml is absent). "
                "Expected: a folder such as runs/adapt/20260101-120000-site."
            )
        if (folder / "DONE").exists():
            raise CheckpointError(
                f"The run {shareable_path(folder)} is complete; there is nothing to resume."
            )
        if not Record(folder).exists:
            raise CheckpointError(
                f"The run {shareable_path(folder)} has lost its record.json, which tells whether its files are those "
                "that it wrote: restore it from a copy of the run, or start a new run."
            )
        Record(folder).check([folder / "config.yaml"])
        stored = read_yaml(folder / "config.yaml")
        inputs = cls(folder, recipe, config)._inputs_file
        if inputs.is_file():
            stored |= _read_inputs(inputs)
        if missing := [f.name for f in dataclasses.fields(config) if f.name not in stored]:
            raise CheckpointError(
                f"The run's config.yaml lacks {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}: restore it from "
                "a copy of the run, or start a new run."
            )
        fresh, given = from_dict(type(config), {}), to_dict(config)
        changed = {k for k, v in given.items() if v != to_dict(fresh)[k]} - {"resume"}
        differing = sorted(k for k in changed if not _same(given[k], stored.get(k)))
        moved = {k for k in differing if not inputs.is_file() and _holds_paths(config, k)}
        if extra := [k for k in differing if k not in moved]:
            flags = ", ".join(f"--{k.replace('_', '-')}" for k in extra)
            raise ConfigError(
                f"{flags} differ from the run that is resumed. Leave them out, or start a new run."
            )
        for key, value in stored.items():
            for file in (v for v in (value if isinstance(value, list) else [value]) if _is_code(v)):
                if key in moved or _same(given.get(key), stored[key]):
                    continue
                raise CheckpointError(
                    f"The run uses {Path(file).name}, a file of your own, and a run holds no code: name it again, "
                    f"with --{key.replace('_', '-')}."
                )
        merged = {**stored, **{k: given[k] for k in moved}, "resume": str(folder)}
        config = from_dict(type(config), merged)
        check_numbers(config)
        return cls(folder, recipe, config)

    @property
    def _inputs_file(self) -> Path:
        return self.folder.parent / f".{self.folder.name}.inputs.json"

    @property
    def name(self) -> str:
        """The folder as it may be shown."""
        return self.hide(shareable_path(self.folder))

    def shown(self, path: Path) -> str:
        """A path of the run's as it may be shown to the user, who knows where it is."""
        return self.hide(path.as_posix())

    def _shareable(self, value: Any, *, is_path: bool) -> Any:
        if isinstance(value, list):
            return [self._shareable(v, is_path=is_path) for v in value]
        if is_path and value is not None:
            value = shareable_path(Path(value))
        return self.hide(value) if is_path or (isinstance(value, str) and _may_hold_path(value)) else value

    def _shareable_word(self, word: str) -> str:
        """A word of the command line; paths as they may be shown, also in `--flag=PATH`."""
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if os.sep in value and (os.path.isabs(value) or os.path.exists(value)):
            value = shareable_path(Path(value))
        hides = not value.startswith("--") and (_may_hold_path(value) or os.path.exists(value))
        return f"{flag}{equals}{self.hide(value) if hides else value}"

    @property
    def command(self) -> str:
        """The command line, as `command.txt` holds it."""
        return (self.folder / "command.txt").read_text(encoding="utf-8").strip()

    @property
    def cache(self) -> Path:
        """Preprocessed volumes, shared by the runs beside this one."""
        return self.folder.parent / ".medtl-cache"

    def model_folder(self, model: str, seed: int) -> Path:
        """Checkpoints of one model and seed; `a/b:c@5` is written as `file_name` does: `a%2Fb%3Ac@5`."""
        return self.folder / "checkpoints" / f"{file_name(model)}-seed{seed}"

    def metrics(self, model: str, seed: int) -> MetricsLog:
        """The metrics file, for rows of one model and seed."""
        return MetricsLog(self.folder / "metrics.csv", model, seed)

    def stamp(self, stamp: str) -> None:
        """Marks the run as one that read labels of the target in training, in `config.yaml` and in every report of it.

        Args:
            stamp: `few_labels` if it learnt from them, `oracle` if it chose by them.
        """
        if stamp not in self.stamps:
            text = (self.folder / "config.yaml").read_text(encoding="utf-8")
            lines = [line for line in text.splitlines() if not line.startswith(f"{STAMPS}:")]
            self.write(
                "config.yaml", "\n".join([*lines, f"{STAMPS}: [{', '.join([*self.stamps, stamp])}]"]) + "\n"
            )

    @property
    def stamps(self) -> tuple[str, ...]:
        """What the run read of the target's labels in training: `few_labels`, `oracle`, or nothing."""
        path = self.folder / "config.yaml"
        return tuple(read_yaml(path, stamps=True).get(STAMPS, ())) if path.is_file() else ()

    def write(self, name: str, data: str | bytes) -> Path:
        """Writes a file of the run, under another name first and then renamed."""
        content = data.encode() if isinstance(data, str) else data
        atomic_write(self.folder / name, content)
        Record(self.folder).add({self.folder / name: hashlib.sha256(content).hexdigest()})
        return self.folder / name

    def check(self, *files: Path) -> None:
        """Refuses files that are not those which this run wrote; the last ones of a stopped run may be unknown.

        Raises:
            CheckpointError: a file was changed or exchanged.
        """
        Record(self.folder).check(files, complete=False)

    def note_model(self, folder: Path) -> None:
        """Takes the weights of a finished model into the run's record."""
        Record(self.folder).add({path: digest_of(path) for path in weight_files(folder)})

    def write_table(self, name: str, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """Writes tables below each other as one CSV file, and returns them joined."""
        import pandas as pd

        joined = pd.concat(parts, ignore_index=True)
        self.write(name, csv_text(joined))
        return joined

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON file of the run."""
        return self.write(name, json.dumps(value, indent=2, sort_keys=True) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """The files of a finished model: its weights, what its method keeps, and where it ended at test time."""
    names = ("model.safetensors", "adapter.safetensors", "state.safetensors")
    return [folder / name for name in names if (folder / name).is_file()]


@dataclass(frozen=True)
class MetricsLog:
    """Rows `model, seed, epoch, step, metric, value` of `metrics.csv`, appended epoch by epoch."""

    path: Path
    model: str
    seed: int

    def append(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Adds one row per value."""
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["model", "seed", "epoch", "step", "metric", "value"])
            model = guarded(self.model)
            writer.writerows([model, self.seed, epoch, step, k, f"{v:.6g}"] for k, v in values.items())

    def truncate(self, last_epoch: int) -> None:
        """Drops this model's rows after `last_epoch`, which a resumed run writes again."""
        if not self.path.exists():
            return
        head, *rows = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        mine = [guarded(self.model), str(self.seed)]
        cells = {
            row: next(csv.reader([row])) for row in rows if row.endswith("\n")
        }  # a kill may cut the last one
        whole = {row: found for row, found in cells.items() if len(found) == 6}
        keep = [
            row
            for row in rows
            if row in whole and (whole[row][:2] != mine or int(whole[row][2]) <= last_epoch)
        ]
        atomic_write(self.path, head + "".join(keep))


def environment() -> dict[str, Any]:
    """Versions and platform; nothing that names a person or a place."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": versions,
        **_arithmetic(),
    }


def _arithmetic() -> dict[str, Any]:
    """What the last digits of a training depend on: threads, instructions, the build of torch, the GPU."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch build": torch.__version__,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def software() -> dict[str, str]:
    """Versions, and what the last digits depend on, as a report shows them."""
    found = environment()
    versions: dict[str, str] = found["versions"]
    if "threads" in found:
        parts = (f"{found['threads']} threads", found["instructions"], f"torch {found['torch build']}")
        gpu = () if found["accelerator"] == "none" else (found["accelerator"],)
        versions[COMPUTED_WITH] = ", ".join((*gpu, *parts))
    return versions


def shareable_path(path: Path) -> str:
    """The path relative to the working directory, or the last name alone if it lies elsewhere."""
    try:
        return Path(os.path.realpath(path)).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.name


def _holds_paths(config: Config, key: str) -> bool:
    value = getattr(config, key)
    values = value if isinstance(value, tuple) else (value,)
    return any(
        isinstance(v, Path) or (isinstance(v, str) and os.sep in v and os.path.exists(v)) for v in values
    )


def _may_hold_path(text: str) -> bool:
    """Whether a text looks like a path or a file: a patient may be called like an optimiser (`adam`)."""
    return os.sep in text or re.search(r"/|\.[A-Za-z]\w*$", text) is not None


def _joined(names: Sequence[str]) -> str:
    """Names of sites as a part of the folder's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(names) or "run").strip("-")[:40]


def _is_code(value: Any) -> bool:
    """Whether a value of a configuration names a file that would be run, alone or among several (`a.py:2,dann`)."""
    return isinstance(value, str) and re.search(r"\.py(?!\w)", value) is not None


def _read_inputs(path: Path) -> dict[str, Any]:
    """Where the folders of a run are."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path.name}, beside the run, does not say any more where its scans are. Delete it, and name the folders "
            "again with --resume."
        )
    return found


def _absolute(value: Any) -> Any:
    return [_absolute(v) for v in value] if isinstance(value, list) else os.path.realpath(value)


def _same(given: Any, stored: Any) -> bool:
    """Whether a flag agrees with the one the run was started with; paths may be written differently."""
    return bool(given == stored) or (
        isinstance(given, str | list) and stored is not None and _absolute(given) == stored
    )
