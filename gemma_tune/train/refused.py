"""What TRL, Transformers and torch refuse of the trainer's options is a mistake of the user's, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gemma_tune.errors import UserError, first_line


@contextmanager
def refused_by_trainer() -> Iterator[None]:
    """Within it, options that can't be are told in place of a traceback.

    Raises:
        UserError: A value, its type, or a package is not what they need.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        raise UserError(f"train: {first_line(error)}") from error
