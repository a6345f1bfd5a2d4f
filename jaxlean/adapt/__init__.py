"""Tree -> tree: what is added to a model so that little of it needs to train. Knows no model."""
