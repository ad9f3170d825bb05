"""Data formats, one file each: `read(source, data)` yields a file's rows as records.

A new format is a file here with `fits(row, data)` (whether `data=auto` recognises a row) and `read(source, data)`, its
name in `FORMATS` of config/data.py (`data=auto` tries them in this order) and in the help of `data.format`, the
message of auto.py, and a YAML in configs/data/. What stands beside a conversation (system text, tools, history,
switches) is read by `data/conversation.py` for all of them.
"""
