"""Code that all adaptation methods share: base classes, normalisation, common parts, and discovery."""
