"""What int4 weights are: the grid, which tensor is on it, and how training sees it."""
