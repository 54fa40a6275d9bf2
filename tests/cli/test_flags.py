"""Flags that take several values, of every recipe and command: all of them may be given several times."""

from __future__ import annotations

import pytest

from medtl.cli import command, command_names, load_recipe, parse_config, recipe_names
from medtl.cli.flags import flags_of_several, join_repeated, parse, take_option
from medtl.errors import ConfigError

OPTIONS = {name: command(name).Options for name in command_names() if hasattr(command(name), "Options")}
NEEDED = {
    "inspect": ["folder"],
    "predict": ["run", "scans", "--out", "o"],
    "report": ["table.csv", "--out", "o"],
}
"""What a command needs besides the flag that is tried."""

RECIPE_FLAGS = [(n, flag) for n in recipe_names() for flag in sorted(flags_of_several(load_recipe(n).Config))]
COMMAND_FLAGS = [(n, flag) for n, kind in OPTIONS.items() for flag in sorted(flags_of_several(kind))]


def values(options: object, flag: str) -> tuple[str, ...]:
    return tuple(map(str, getattr(options, flag.removeprefix("--").replace("-", "_"))))


@pytest.mark.parametrize(("name", "flag"), RECIPE_FLAGS)
def test_no_value_of_a_recipe_is_dropped(name: str, flag: str) -> None:
    module = load_recipe(name)
    for words in ([flag, "1", flag, "2"], [flag, "1", "2"], [f"{flag}=1", "--smoke", f"{flag}=2"]):
        assert values(parse_config(module, words, name), flag) == ("1", "2")


@pytest.mark.parametrize(("name", "flag"), COMMAND_FLAGS)
def test_no_value_of_a_command_is_dropped(name: str, flag: str) -> None:
    for words in ([flag, "1", flag, "2"], [flag, "1", "2"]):
        assert values(parse(OPTIONS[name], [*NEEDED[name], *words]), flag) == ("1", "2")


def test_the_flags_are_found() -> None:
    assert {("predict", "--rules"), ("report", "--scans")} <= set(COMMAND_FLAGS)
    assert "--source" in {flag for _, flag in RECIPE_FLAGS}
    assert "--paths" not in {flag for _, flag in COMMAND_FLAGS}  # positional


def test_repeated_flags_join() -> None:
    words = ["--source", "a", "--lr", "-1", "--source=b", "--classes", "x", "y", "--smoke"]
    found = join_repeated(words, {"--source", "--classes"})
    assert found == ["--lr", "-1", "--smoke", "--source", "a", "b", "--classes", "x", "y"]
    assert join_repeated(["--target_masks", "a", "--target-masks", "b"], {"--target-masks"}) == [
        "--target-masks",
        "a",
        "b",
    ]


def test_an_option_is_taken_out() -> None:
    assert take_option(["--a", "1", "--config", "f", "b"], "--config") == (["--a", "1", "b"], "f")
    assert take_option(["--config=f"], "--config") == ([], "f")
    assert take_option(["b"], "--config") == (["b"], None)
    with pytest.raises(ConfigError, match="needs a file name"):
        take_option(["--config"], "--config")
