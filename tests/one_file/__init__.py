"""What a new thing costs: one file, found by its name. Each test adds it to a copy of the package and uses it."""
