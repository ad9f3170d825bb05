"""Rewards, a file each: `prepare(options)` gives a function of completions and records."""
