"""Minus the share of repeated n-grams, as in https://arxiv.org/abs/2502.03373 (there scaled by a penalty).

Gamed by saying less than an n-gram, or by a loop of ever different words or of one without blanks; it is a guard only.
"""

from __future__ import annotations

import re

from gemma_tune.config.reward import RepetitionReward
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion

# Chinese and Japanese put no blanks between words: each of their characters is one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def prepare(options: RepetitionReward) -> Reward:
    """From 0, where no n-gram of words stands twice, towards -1, where hardly one is new.

    Thinking and text count, each on its own: an answer may say again what was thought. Capitals don't matter.
    """
    size = options.ngram_size

    def score(completion: Completion, record: Task) -> float:
        total = different = 0
        for part in (completion.thinking, completion.text):
            words = _WORD.findall(part.casefold())
            grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
            total, different = total + len(grams), different + len(set(grams))
        return different / total - 1.0 if total else 0.0

    return per_completion(score)
