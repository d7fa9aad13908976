"""Models with random weights, made in the shape of real ones."""
