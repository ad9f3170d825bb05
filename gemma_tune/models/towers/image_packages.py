"""Whether torchvision can be imported where it is installed, and timm, which builds Gemma 3n's image tower with it.

Transformers imports an installed torchvision with any model's classes. Imports no torch where there is none.
"""

from __future__ import annotations

from importlib import import_module, metadata
from importlib.util import find_spec

from gemma_tune.errors import UserError, first_line


def broken_torchvision() -> str | None:
    """What is said of an installed torchvision that can't be imported; None where it can, or isn't installed."""
    if find_spec("torchvision") is None:
        return None
    import_module("torch")  # whose own errors aren't torchvision's
    try:
        import_module("torchvision")
        return None
    except Exception as error:  # one that was built for another torch fails in any way
        return f"torchvision is installed and can't be imported ({first_line(error)})"


def torchvision_way() -> str:
    """What to do about it, as a sentence."""
    return f"Install the torchvision that belongs to {_torch()}, or uninstall torchvision."


def check_torchvision() -> None:
    """Raises UserError for a torchvision that Transformers couldn't import; called before Transformers is."""
    if said := broken_torchvision():
        raise UserError(f"{said}, so Transformers can't be imported, either. {torchvision_way()}")


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
    return f"torch {metadata.version('torch')}"
