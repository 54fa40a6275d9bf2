"""The tables of `tests/evaluation`, for the report."""

from tests.evaluation.conftest import *  # noqa: F403
