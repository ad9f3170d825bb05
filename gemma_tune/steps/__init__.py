"""What recipes share: setup, data, session, inputs, measuring. No step calls a recipe or asks which one it serves."""
