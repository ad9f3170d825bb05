"""Rows of the user's files: read by one reader for each format, held as records, rendered into token ids."""
