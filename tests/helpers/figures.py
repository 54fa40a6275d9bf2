"""Reports without figures, for tests of what is around them."""

from __future__ import annotations

import pytest


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """Leaves a report's figures empty, which take a third of the time of a tiny run; `tests/report` draws them."""
    patch.setattr("medtl.report.kit.to_svg", lambda figure, name, title: '<svg role="img"></svg>')
