"""Whether the packages are there that build Gemma 3n's image tower: timm, and torchvision, which timm imports."""

from __future__ import annotations

from importlib import import_module

import torch

from gemma_tune.errors import first_line


def no_timm() -> str | None:
    """Why timm can't be imported, and how to go on, as the end of a sentence; None where it can."""
    try:
        import_module("timm")
        return None
    except ModuleNotFoundError as error:
        if error.name in ("timm", "torchvision"):
            return f"{error.name} isn't installed: pip install timm torchvision, with the torchvision for {_torch()}."
        reason = first_line(error)
    except Exception as error:  # a torchvision that was built for another torch fails in any way
        reason = first_line(error)
    return (
        f"timm can't be imported ({reason}): install the torchvision for {_torch()} from the index that torch came "
        "from, or, for rows without images, uninstall timm."
    )


def _torch() -> str:
    return f"torch {torch.__version__}"
