"""What the recipes share, one function for each step. No step calls a recipe, and none asks which recipe it serves."""
