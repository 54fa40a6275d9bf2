"""Ctrl-C and the signals of a scheduler or a closed terminal end a command in order: `Stopped` is raised once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = tuple(
    s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None
)
"""What ends a command; SIGHUP comes from a terminal that is closed."""
IMPATIENT = 1.0
"""Seconds after which the same wish, said again, ends the process at once: some senders say it twice on their own."""
FAREWELL = 5.0
"""Seconds that processes of this one (of a training on several devices) have for an orderly end."""


class Stopped(BaseException):
    """A signal asked the command to stop.

    It is no `KeyboardInterrupt`, because Lightning makes `SystemExit(1)` of that.
    """


class Stop:
    """Which signal came, if any: whatever it became on its way up, the exit code is 128 and its number."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0

    @property
    def exit_code(self) -> int:
        """The exit code, as shells have it."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def cause(self) -> str:
        """What stopped the command, in words."""
        return "Ctrl-C" if self.received in (None, signal.SIGINT) else self.received.name

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
            raise Stopped
        if time.monotonic() - self._since > IMPATIENT:
            os._exit(128 + number)


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """Raises `Stopped` in the main thread when a signal comes inside the block.

    Signals that are ignored (`nohup`) or that a program around this one handles are left to it.
    """
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = handler
                signal.signal(number, stop)
    try:
        yield stop
    finally:
        if stop.received is not None:
            _end_children()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_children() -> None:
    """Ends the processes of a training on several devices, which this one would wait for."""
    from multiprocessing import active_children

    children = active_children()
    for child in children:
        child.terminate()
    end = time.monotonic() + FAREWELL
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
        if child.is_alive():
            child.kill()
