"""One file for each data format: rows of a file to records."""
