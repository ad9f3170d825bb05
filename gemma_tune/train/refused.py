"""What TRL, Transformers and torch refuse of the trainer's options is a mistake of the user's, in one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from gemma_tune.errors import UserError, first_line


@contextmanager
def refused_by_trainer() -> Iterator[None]:
    """Within it, options that can't be are told in place of a traceback. Errors of a forward pass (TRL computes the
    reference of preferences where it is made) are no mistake of the user's, and pass.

    Raises:
        UserError: A value, its type, or a package is not what they need.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        if any(frame.f_code is nn.Module._call_impl.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        raise UserError(f"train: {first_line(error)}") from error
