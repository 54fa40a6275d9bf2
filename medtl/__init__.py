"""medtl: take a model from one hospital's scans to another's, and know how far to trust it."""

__version__ = "0.1.0"
