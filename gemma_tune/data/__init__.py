"""Rows of the user's files: read by an adapter a format, held as records, rendered into token ids."""
