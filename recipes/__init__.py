"""Recipes: the order of steps. Read one top to bottom, copy it, change it."""
