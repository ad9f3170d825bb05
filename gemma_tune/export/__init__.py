"""Exporters, one file a format, and the check that what they wrote is what was trained.

A new format is a file here, and an entry in: `FORMATS` of config/export.py; the writers and checks of formats.py;
read_back.py, which reads the file again for the check; `_run_bytes` of models/estimate/capacity.py, which counts its
disk space; the checks of validation/quantization.py; a YAML in configs/export/.
"""
