"""Adapters: attached, stored so that they fit the published base, read from others, merged into the weights."""
