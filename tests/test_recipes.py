"""Every recipe that is found: small, documented, runs in seconds, header commands that parse."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest

from medtl.cli import load_recipe, main, parse_config, recipe_names
from medtl.config import MAX_FIELDS, Config


@pytest.mark.parametrize("name", recipe_names())
class TestEveryRecipe:
    def test_is_small(self, name: str) -> None:
        module = load_recipe(name)
        fields = dataclasses.fields(module.Config)
        assert issubclass(module.Config, Config)
        assert all(f.kw_only for f in fields)
        assert len(fields) <= MAX_FIELDS
        assert len(inspect.getsource(module.main).splitlines()) <= 150

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

    def test_smoke(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        fields = {f.name for f in dataclasses.fields(load_recipe(name).Config)}
        flag = "--encoder" if "encoder" in fields else "--encoders"
        assert main(["run", name, "--smoke", flag, "test_resnet", "--out", "r"]) == 0
        assert (tmp_path / "r" / "DONE").exists()
        assert (tmp_path / "r" / "report" / "index.html").exists()
