"""Data: the built-in world Shapes, loaders driven by data cards, collators and transforms."""
