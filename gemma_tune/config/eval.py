"""`eval=…`: what is measured before and after training."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class EvalConfig:
    """Evaluation in its first form: held-out loss, exact match on test rows, and a few greedy answers to read."""

    held_out_loss: bool = option(True, "Loss and perplexity on the held-out rows.")
    exact_match: bool = option(
        True, "Answer the rows of `data.test_files` and count those that make the right calls or say the right words."
    )
    num_samples: int = option(
        4, "Answers shown side by side, before and after: of test rows, or of held-out ones.", at_least=0
    )
    batch_size: int | None = option(
        None, "Prompts answered at once; null: 8, or 64 for models narrower than 512.", at_least=1
    )
    max_new_tokens: int = option(64, "Tokens of such an answer at most.", at_least=1)
