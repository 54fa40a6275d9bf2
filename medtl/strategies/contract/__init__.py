"""Code that all strategies share: the base class, the parts of a model, weight averaging, and discovery."""
