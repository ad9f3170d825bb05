"""`recipe=models`: the known models, how to get one, and what is in one."""
