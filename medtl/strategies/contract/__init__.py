"""What all strategies share: the base class, the parts of a model, averages of weights, and how they are found."""
