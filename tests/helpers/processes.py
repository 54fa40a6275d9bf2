"""Python processes that start in a moment, for tests that need many: a server has loaded the libraries and forks.

A test asks for a process by what `python` is given (`-c CODE`, `-m MODULE WORDS` or `FILE WORDS`), a folder to import
medtl from, a working directory and an environment. The child is a process of its own: nothing that it does to modules,
environment, handlers or random numbers is seen by another test. The server starts with the first request of a session,
serves every worker, and ends with the session. Standard library alone: the shims of `put_on_path` import this file.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "MEDTL_TEST_PROCESSES"
"""The variable with the server's address, which workers inherit; without it, processes are started as usual."""

_LAZY = [
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "rich.console",
    "sklearn.pipeline",
    "skimage.morphology",
    "torch._dynamo",
    "torch._inductor",
    "torch._meta_registrations",
]
"""What runs import at their first use."""


def run(words: list[str], *, cwd: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` in `cwd` with medtl from `root`; returns its exit code, output and errors."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    if ADDRESS not in os.environ:
        return subprocess.run(
            [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    files = [os.memfd_create(name) for name in ("stdout", "stderr")]
    with open(os.devnull) as nothing:
        code = ask(words, cwd=str(cwd), environment=environment, files=[nothing.fileno(), *files])
    texts = []
    for file in files:
        os.lseek(file, 0, os.SEEK_SET)
        with os.fdopen(file, encoding="utf-8") as stream:
            texts.append(stream.read())
    return subprocess.CompletedProcess(words, code, *texts)


def put_on_path(folder: Path) -> None:
    """Writes `medtl` and `python` that run as above, for shells that have `folder` first in PATH."""
    folder.mkdir()
    for name, first in {"medtl": ["-m", "medtl.cli"], "python": []}.items():
        command = ["-IS", __file__] if ADDRESS in os.environ else []
        text = shlex.join([sys.executable, *command, *first])
        (folder / name).write_text(f'#!/bin/sh\nexec {text} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)


def ask(
    words: list[str],
    *,
    cwd: str | None = None,
    environment: dict[str, str] | None = None,
    files: tuple[int, ...] | list[int] = (0, 1, 2),
) -> int:
    """Has the server run `python WORDS` on these files for input, output and errors; returns the exit code."""
    asked = {"words": words, "cwd": cwd or os.getcwd(), "environment": environment or dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        socket.send_fds(connection, [b"."], list(files))
        connection.sendall(json.dumps(asked).encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(64), b""))
    return int(answer or -signal.SIGKILL)


def start(address: Path) -> subprocess.Popen[bytes] | None:
    """Starts the server; it ends when its standard input is closed. None where it cannot work."""
    if not sys.platform.startswith("linux"):
        return None
    fixed = {
        f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")
    }  # threads do not survive a fork
    fixed |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **fixed, ADDRESS: str(address)},
    )
    assert server.stdout is not None
    server.stdout.readline()  # it listens
    return server


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ends the server."""
    server.communicate()  # closes its standard input
    os.environ.pop(ADDRESS, None)


def serve(address: str) -> None:
    """Forks a child for each request until standard input is closed."""
    os.chdir(ROOT)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("listens", flush=True)
        loaded = False
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [], 0.5)
            while _reaped():
                pass
            if sys.stdin in ready:
                return
            if listener in ready:
                if not loaded:
                    _load()
                    loaded = True
                connection, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _watch(connection)
                connection.close()


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _load() -> None:
    """Imports all of medtl, and with it the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        medtl = importlib.import_module("medtl")
        names = [m.name for m in pkgutil.walk_packages(medtl.__path__, "medtl.")]
        for name in [*names, *_LAZY]:
            if not name.endswith("__main__"):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children neither copy nor look through what is loaded


def _watch(connection: socket.socket) -> None:
    """Runs one request in a child of this child, and answers with its exit code, whatever ends it."""
    with connection:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        asked = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
        child = os.fork()
        if child == 0:
            connection.close()
            code = 1
            try:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                code = _become(**asked)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(str(code).encode())
    os._exit(0)


def _become(words: list[str], cwd: str, environment: dict[str, str]) -> int:
    """What a new `python WORDS` would do; returns its exit code."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    streams = (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w"))
    for name, number, mode in streams:
        stream = os.fdopen(number, mode, 1 if name == "stderr" else -1, encoding="utf-8", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    root = environment.get("PYTHONPATH", str(ROOT))
    if Path(root) != ROOT:
        for name in [n for n in sys.modules if n == "medtl" or n.startswith("medtl.")]:
            del sys.modules[name]
    own = str(Path(__file__).parent)
    sys.path[:] = [root, *(p for p in sys.path if p not in (own, str(ROOT)))]
    code: Any = 0
    try:
        _execute(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):
            stream.flush()
    return int(code or 0)


def _execute(words: list[str]) -> None:
    kind, *more = words
    if kind == "-c":
        sys.argv = ["-c", *more[1:]]
        sys.path.insert(0, "")
        exec(compile(more[0], "<string>", "exec", dont_inherit=True), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = [more[0], *more[1:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        raise SystemExit(ask(sys.argv[1:]))
    serve(os.environ[ADDRESS])
