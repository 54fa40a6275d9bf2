"""Every recipe that is found: small, documented, runs in seconds, header commands that parse."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest

from medtl.cli import load_recipe, main, parse_config, recipe_names
from medtl.config import LABELS_ALONE, MASKS_ALONE, MAX_FIELDS, Config, TrainingConfig
from medtl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", recipe_names())
class TestEveryRecipe:
    def test_is_small(self, name: str) -> None:
        module = load_recipe(name)
        fields = dataclasses.fields(module.Config)
        assert issubclass(module.Config, Config)
        assert all(f.kw_only for f in fields)
        assert len(fields) <= MAX_FIELDS
        for other in (LABELS_ALONE, MASKS_ALONE):
            assert len({f.name for f in fields} - set(other)) <= 30, "one task has too many flags"
        assert len(inspect.getsource(module.main).splitlines()) <= 100

    def test_has_no_loop_of_its_own(self, name: str) -> None:
        source = inspect.getsource(load_recipe(name))
        assert not re.search(r"\.backward\(|\.step\(|import torch", source)

    def test_commands_of_its_header_parse(self, name: str) -> None:
        module = load_recipe(name)
        commands = re.findall(
            r"medtl run (.+?)\n(?! {8})", (module.__doc__ or "").replace("\\\n", " ") + "\n\n"
        )
        assert len(commands) >= 2
        for command in commands:
            recipe, *words = shlex.split(command)
            assert recipe == name
            assert isinstance(parse_config(module, words, name), module.Config)

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.slow
    @pytest.mark.parametrize("task", ["labels", "masks"])
    def test_smoke(self, name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if task == "masks" and name in ("finetune", "compare", "data_efficiency"):
            pytest.skip("as adapt; tests/tasks and tests/hostile run them with masks")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
        fields = {f.name for f in dataclasses.fields(load_recipe(name).Config)}
        words = ["--encoder" if "encoder" in fields else "--encoders", "test_resnet", "--out", "r"]
        if task == "masks":
            words += ["--masks", "sample_data/site_a/masks"]
        assert main(["run", name, "--smoke", *words]) == 0
        assert (tmp_path / "r" / "DONE").exists()
        assert (tmp_path / "r" / "report" / "index.html").exists()


TRAINING = [n for n in recipe_names() if issubclass(load_recipe(n).Config, TrainingConfig)]


@pytest.mark.parametrize("name", TRAINING)
class TestEveryTrainingRecipe:
    def test_every_flag_of_the_other_task_is_refused(
        self, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kind = load_recipe(name).Config
        other = {f.name for f in dataclasses.fields(kind)} & {*LABELS_ALONE, *MASKS_ALONE}
        given = {
            "classes": ("a",),
            "slices": 3,
            "target_labels": Path("x"),
            "imbalance": "focal",
            "loss": "focal",
        }
        given |= {"head": "dense:8", "network": "unet"}
        labelled = {"source": (Path("s"),), "target": Path("t")}
        tried = set()
        for flag in other - {"masks", "target_masks", "structures"}:
            data = {"labels": Path("l")} if flag in MASKS_ALONE else {"masks": (Path("m"),)}
            with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} is for"):
                kind(**labelled, **data, **{flag: given[flag]}).ready()
            tried.add(flag)
        assert len(tried) >= 6

    def test_what_is_missing_is_named(self, name: str) -> None:
        kind = load_recipe(name).Config
        for given in ({}, {"source": (Path("s"),)}, {"labels": Path("l")}):
            with pytest.raises(ConfigError, match=r"--source DIR, --labels CSV or --masks DIR"):
                kind(**given).ready()
        with pytest.raises(ConfigError, match="--masks DIR"):
            kind(source=(Path("s"),), target=Path("t"), target_masks=Path("m")).ready()
        with pytest.raises(ConfigError, match="--target-trained"):
            kind(source=(Path("s"),), labels=Path("l"), target=Path("t"), target_trained=True).ready()

    def test_defaults_are_the_tasks_and_flags_win(self, name: str) -> None:
        kind = load_recipe(name).Config
        common = {"source": (Path("s"),), "target": Path("t")}
        labels = kind(**common, labels=Path("l")).ready()
        masks = kind(**common, masks=(Path("m"),)).ready()
        assert (labels.lr, masks.lr) == (3e-4, 1e-3)
        assert labels.epochs < masks.epochs
        assert kind(**common, labels=Path("l"), lr=0.5, epochs=3).ready().lr == 0.5
        assert kind(**common, labels=Path("l"), epochs=0).ready().epochs == 0  # refused where it is used


def test_half_of_the_recipes_train() -> None:
    assert {"adapt", "finetune", "compare", "data_efficiency"} <= set(TRAINING)
