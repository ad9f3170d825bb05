"""What is said where a checkpoint can't be loaded."""

from __future__ import annotations

from gemma_tune.errors import UserError, first_line
from gemma_tune.models.hub import model_not_here, no_network
from gemma_tune.models.source import Source


def not_loadable(source: Source, error: Exception) -> UserError:
    """The error of a library as one line that says what to do."""
    reason = first_line(error)
    help_line = "compare its files with those of the published checkpoint, or fetch it again"
    if source.folder is None and source.gguf is None:
        if isinstance(error, OSError) and (why := no_network()):
            return model_not_here(source.base, why)
        help_line = (
            f"check the name, accept the licence at https://huggingface.co/{source.base} and log in "
            "(`hf auth login`), or give a local folder"
        )
    return UserError(f"model.model_name_or_path={source.base}: it can't be loaded ({reason}); {help_line}.")
