"""`eval=…`: what is measured before and after training."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class EvalConfig:
    """Evaluation in its first form: held-out loss and greedy answers."""

    held_out_loss: bool = option(True, "Loss and perplexity on the held-out rows.")
    num_samples: int = option(4, "Held-out prompts answered greedily, before and after.", at_least=0)
    max_new_tokens: int = option(64, "Tokens of such an answer at most.", at_least=1)
