"""gemma_tune: fine-tuning and quantization-aware training for Gemma models. Importing it imports no torch."""

from gemma_tune.search_path import leave_current_folder, with_recipes

if __name__ == "gemma_tune":  # before any other import
    leave_current_folder()
    __path__ = with_recipes(__path__)

from gemma_tune.cli.runner import run
from gemma_tune.errors import UserError
from gemma_tune.run.result import RunResult

__version__ = "0.1.0"
__all__ = ["RunResult", "UserError", "run"]
