"""The README and the docs: every block runs, every link leads somewhere, every name that users meet is documented.

Blocks of a page run in order, in one empty folder with `sample_data` in it. Above a fence may stand
`<!-- not run: REASON -->`, for blocks that install or train for minutes (their `medtl` lines are parsed), or
`<!-- printed by the block above -->` (compared with what was printed; `...` stands for anything).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import medtl
from medtl import adapters, cli, strategies
from medtl.cli import flags as command_flags
from medtl.config import listed
from medtl.data.tensors.spec import CT_WINDOWS
from medtl.evaluation.tables.predictions import REQUIRED
from medtl.models.losses.classification import IMBALANCE
from medtl.scans.items import CODES
from medtl.tasks.ways import ways_of
from tests.helpers import processes

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LANGUAGES = {"bash", "python", "text", "yaml"}
PRINTED = "printed by the block above"

_BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INSTALL_AND_TEST = re.compile(r"^python3 -m venv \.venv .*pytest -n auto$", re.M)

SLOW = (
    *("bare-loop.md", "choose-an-encoder.md", "concepts.md", "encoders.md", "feature-extraction.md"),
    *("own-adapter.md", "own-scans.md"),
    *("own-training.md", "reports.md", "segmentation.md", "start.md"),
)
"""Pages whose blocks take longest, 10 s to 25 s of one core each; `.ci/run` runs them too."""


def _named(pages: Sequence[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda p: p.relative_to(ROOT).as_posix())


names = _named(PAGES)


class Block(NamedTuple):
    note: str
    language: str
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start(3))
        yield Block(found[1] or "", found[2], found[3], line)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `medtl` and `python`, for PATH."""
    folder = tmp_path_factory.mktemp("path") / "bin"
    processes.put_on_path(folder)
    return folder


@_named([pytest.param(p, marks=pytest.mark.slow if p.name in SLOW else ()) for p in PAGES])
def test_blocks_run(page: Path, tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    monkeypatch.chdir(tmp_path)
    own = Path(sys.executable).parent
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), str(own), os.environ["PATH"]]))
    for name, value in {"LC_ALL": "C", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: blocks are one of {sorted(LANGUAGES)}"
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", block.code):
            Path(named[1]).write_text(block.code, encoding="utf-8")
        if block.note.startswith("not run"):
            check_unrun(block, where)
        elif block.language == "python":
            printed = run_python(block, page, namespace)
        elif block.language == "bash":
            printed = run_bash(block, where)
        elif block.note == PRINTED:
            assert same(block.code, printed), f"{where} says\n{block.code}\nprinted was\n{printed}"


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    code = compile("\n" * block.line + block.code, str(page), "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, namespace)
    return out.getvalue()


def run_bash(block: Block, where: str) -> str:
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], capture_output=True, text=True)
    assert done.returncode == 0, f"{where} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def same(said: str, printed: str) -> bool:
    """Whether a page says what was printed: `...` is anything, also nothing; white space is one space."""
    pattern = re.sub(r"(\\ )?\\\.\\\.\\\.(\\ )?", ".*", re.escape(" ".join(said.split())))
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


def check_unrun(block: Block, where: str) -> None:
    """A block that is not run has a reason, and its lines of medtl parse."""
    reason = block.note.removeprefix("not run:").strip()
    assert len(reason) > 10, f"{where}: a block that is not run says why"
    assert block.language == "bash", f"{where}: Python is always run"
    for line in re.split(r"\n|&&", block.code.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "medtl":
            parse(words[1], words[2:])


def parse(command: str, words: list[str]) -> None:
    if command != "run":
        command_flags.parse(cli.command(command).Options, words)
        return
    config = cli.parse_config(cli.load_recipe(words[0]), words[1:], "medtl run")
    if not hasattr(config, "hparams"):
        return
    given = getattr(config, "method", getattr(config, "methods", ()))
    given = given or config.defaults_of(config.task).get("method", ())
    methods = [m for m in given if m in adapters.available()]  # the page's own file is not there
    learning = getattr(config, "strategies", None) or (getattr(config, "strategy", "full"),)
    if methods or not given:
        ways_of(("r",), methods=methods, strategies=listed(learning, "--strategy"), hparams=config.hparams)


def test_other_output_is_found() -> None:
    assert same("a\n...\nb", "a\nb\n")
    assert same("a ... b", "a 1\n2 b")
    assert not same("a\n...\nb", "a\nc")
    assert not same("a", "a b")


@pytest.mark.parametrize("line", ["run adapt --epoch 3", "report", "predict run scans"])
def test_wrong_lines_are_found(line: str) -> None:
    command, *words = line.split()
    with pytest.raises(SystemExit):
        parse(command, words)


def test_the_docs_method_is_found_by_its_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [b.code for b in blocks(DOCS / "how-to/own-adapter.md") if b.code.startswith("# deep_coral.py")]
    (tmp_path / "deep_coral.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    try:
        assert adapters.parse_hparams("deep_coral", ["weight=0.5"]) == {"weight": 0.5}
    finally:
        sys.modules.pop("medtl.adapters.deep_coral", None)


@names
def test_links_resolve(page: Path) -> None:
    prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in _LINK.findall(prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{page.name} links to {link}"
        assert page == PAGES[0] or goal.is_relative_to(DOCS), f"{link} leads out of the site"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads]
            assert anchor in slugs, f"{goal.name} has no heading for #{anchor}"


def test_every_page_is_in_the_navigation() -> None:
    def leaves(entry: Any) -> list[str]:
        parts = entry.values() if isinstance(entry, dict) else entry
        return [entry] if isinstance(entry, str) else [x for part in parts for x in leaves(part)]

    pages = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
    assert sorted(leaves(yaml.safe_load(read("docs/mkdocs.yml"))["nav"])) == pages


def test_one_line_sets_up_and_tests_and_ci_calls_it() -> None:
    (line,) = _INSTALL_AND_TEST.findall(read("README.md"))
    assert "README.md" in read(".ci/run")
    assert line in read(".github/CONTRIBUTING.md")


def test_ci_runs_the_slow_tests() -> None:
    assert {page.name for page in PAGES} >= set(SLOW)
    assert re.search(r'pytest\S* .*-m "slow and not realdata"$', read(".ci/run"), re.MULTILINE)


def undocumented(page: str, wanted: Iterator[str] | list[str]) -> list[str]:
    text = read(page)
    return [name for name in wanted if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]


def test_what_users_meet_is_documented() -> None:
    recipes = [cli.load_recipe(name).Config for name in cli.recipe_names()]
    flags = sorted({f"--{f.name.replace('_', '-')}" for c in recipes for f in dataclasses.fields(c)})
    methods = [adapters.adapter_class(name) for name in adapters.available()]
    hparams = sorted({key for m in methods for key in adapters.hyper_parameters(m)})
    classes = [strategies.strategy_class(name) for name in strategies.available()]
    strategy_hparams = sorted({key for c in classes for key in adapters.hyper_parameters(c)})
    assert undocumented("docs/reference/commands.md", flags) == []
    assert undocumented("docs/reference/commands.md", [f"medtl {c}" for c in cli.command_names()]) == []
    assert undocumented("docs/reference/adapters.md", [*adapters.available(), *hparams]) == []
    assert undocumented("docs/how-to/fine-tuning.md", [*strategies.available(), *strategy_hparams]) == []
    assert undocumented("docs/how-to/fine-tuning.md", list(IMBALANCE)) == []
    assert undocumented("docs/reference/python.md", list(medtl.__all__)) == []
    assert undocumented("docs/reference/predictions-table.md", list(REQUIRED)) == []
    assert undocumented("docs/how-to/own-scans.md", [*CODES, *CT_WINDOWS]) == []
    assert undocumented("docs/changelog.md", [m.__name__ for m in methods] + cli.recipe_names()) == []


def test_the_readme_lists_every_part() -> None:
    parts = [p.name for p in (ROOT / "medtl").glob("*.py")]
    parts += [f"{p.parent.name}/" for p in (ROOT / "medtl").glob("*/__init__.py")]
    top = ["pyproject.toml", "LICENSE", "medtl/", "recipes/", "tests/", "sample_data/", "docs/"]
    (tree,) = [b.code for b in blocks(PAGES[0]) if b.code.startswith("README.md ")]
    listed = [line.split()[0] for line in tree.splitlines()]
    assert sorted({*top, *parts} - set(listed)) == []
