"""Models evaluated on the same rows, side by side: which is better, how sure that is, and where they differ."""
