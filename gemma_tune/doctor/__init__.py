"""`recipe=doctor`: what works on this machine, and what to do where something doesn't. Imports no torch.

What can crash or hang is tried in child processes (`child.py`), so that the rest is still told.
"""
