"""From a table to results."""
