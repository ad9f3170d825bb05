"""Fetches the wheels that `bench_gpu.py --wheels FOLDER` installs, in the versions of requirements.lock.

    python3 benchmarks/gpu_wheels.py FOLDER                          for this Python
    python3 benchmarks/gpu_wheels.py FOLDER --python 3.12 --cuda 130 for a machine with another one

bitsandbytes has a library for each version of CUDA, 110 of 125 MB of which no machine uses; `--cuda` keeps one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from bench_gpu import CARRIED, ROOT

_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
# Published as source alone; it is pure Python, so what is built here fits any machine
_SOURCE = ("antlr4-python3-runtime",)


def locked() -> dict[str, str]:
    """The versions of requirements.lock by the names of `CARRIED`."""
    found = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE))
    return {name: found[name] for name in CARRIED}


def without_other_cuda(wheel: Path, cuda: str) -> None:
    """Writes bitsandbytes' wheel anew with its libraries for the CPU and one version of CUDA alone."""
    smaller = wheel.with_suffix(".part")

    def unused(name: str) -> bool:
        library = re.search(r"libbitsandbytes_(\w+)\.(so|dll|dylib)", name)
        return library is not None and library[1] not in ("cpu", f"cuda{cuda}")

    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines(keepends=True)
                data = "".join(line for line in lines if not unused(line.split(",")[0])).encode()
            if not unused(member.filename):
                new.writestr(member, data)
    smaller.replace(wheel)


def main() -> None:
    parser = argparse.ArgumentParser(description=f"Fetches wheels of {', '.join(CARRIED)}.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="such as 3.12")
    parser.add_argument("--cuda", help="of bitsandbytes keep this version's library alone, such as 130")
    options = parser.parse_args()
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wanted = locked()
    to_build = [f"{name}=={wanted.pop(name)}" for name in _SOURCE]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(options.folder), *to_build], check=True)
    which = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", options.python]
    which += [word for platform in _PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
    names = [f"{name}=={version}" for name, version in wanted.items()]
    subprocess.run([*pip, "download", *which, "-d", str(options.folder), *names], check=True)
    if options.cuda is not None:
        for wheel in options.folder.glob("bitsandbytes-*.whl"):
            without_other_cuda(wheel, options.cuda)
    total = sum(wheel.stat().st_size for wheel in options.folder.glob("*.whl"))
    print(f"{len(list(options.folder.glob('*.whl')))} wheels, {total / 2**20:.0f} MiB, in {options.folder}")


if __name__ == "__main__":
    main()
