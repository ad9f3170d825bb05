"""Data formats, one file each: `read(source, data)` yields a file's rows as records.

A new format is a file here with `fields(data)` and `read(source, data)`, its name in `FORMATS` of config/data.py (in
their order `data=auto` tries them) and in the help of `data.format`, the message of auto.py, and a YAML in
configs/data/.
"""
