"""Where `sample_data` is: it comes with a clone of the project, not by pip."""

from __future__ import annotations

from pathlib import Path

from medtl.errors import ConfigError


def sample_site(name: str) -> Path:
    """A site of `sample_data`, of the checkout or of the working directory.

    Raises:
        ConfigError: sample_data is in neither.
    """
    for root in (Path(__file__).parents[1], Path.cwd()):
        if (root / "sample_data" / name).is_dir():
            return root / "sample_data" / name
    raise ConfigError(
        "sample_data is neither in the working directory nor beside the package: it comes with a clone of the "
        "project, not by pip. Give --source and what belongs to it."
    )
