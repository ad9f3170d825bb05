"""The negative share of repeated n-grams, as in https://arxiv.org/abs/2502.03373 (there scaled by a penalty).

Gamed by answers shorter than an n-gram, and by loops that vary the words or have no blanks; it is only a safeguard.
"""

from __future__ import annotations

import re

from gemma_tune.config.reward import RepetitionReward
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion

# Chinese and Japanese don't separate words by blanks: each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def prepare(options: RepetitionReward) -> Reward:
    """From 0 (no n-gram of words occurs twice) towards -1 (almost all are repeated).

    Thinking and text are counted separately, since an answer may repeat what was thought. Case is ignored.
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
