"""gemma_tune: fine-tuning and quantization-aware training for Gemma models. Importing it imports no torch."""

from gemma_tune.cli.runner import run
from gemma_tune.errors import UserError
from gemma_tune.run.result import RunResult

__version__ = "0.1.0"
__all__ = ["RunResult", "UserError", "run"]
