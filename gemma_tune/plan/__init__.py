"""`recipe=plan`: which models and recipes fit in how much memory, with settings, command and time.

The memory is the estimate of `models/estimate/memory.py` and the settings those of `models/estimate/capacity.py`, as in
the check that every run makes before it loads its model.
"""
