"""Exporters, one file a format, and the check that what they wrote is what was trained."""
