"""What all adaptation methods share: the base classes, normalisation, common parts, and how methods are found."""
