"""lm-evaluation-harness on any engine: token ids go in, log-probabilities and greedy answers come out.

A file of its own, because its base class needs the package lm-eval, which is an extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gemma_tune.chat import form_of
from gemma_tune.chat.own import OwnForm, own_text
from gemma_tune.engines.base import Engine

# Context and continuation as text, token ids of the context, token ids of the continuation.
Request = tuple[tuple[str, str], list[int], list[int]]


class EngineLM(TemplateLM):
    """An engine as a model of lm-eval; it tokenizes like lm-eval's class for Transformers.

    Args:
        engine: The engine. It only decodes greedily: a task that samples is an error.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.tokenizer = engine.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The id of `<eos>`."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The prefix of a text without context: `<bos>`."""
        return int(self.tokenizer.bos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; with one `<bos>` by default."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.bos_token)
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat; without `add_generation_prompt` its last answer goes on."""
        form = form_of(self.tokenizer)
        if isinstance(form, OwnForm):  # in its child process; a program of others doesn't run in this one
            text, _ = own_text(form, chat_history, prompt=add_generation_prompt)
            last = chat_history[-1]["content"].strip()
            return text if add_generation_prompt else text[: text.rindex(last) + len(last)]
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        """Log-likelihood in nats, and whether it is the greedy continuation, of each request's last ids."""
        rows: dict[tuple[int, ...], list[int]] = {}  # choices of a single token share a row
        for place, (_text, context, wanted) in enumerate(requests):
            rows.setdefault(tuple((context + wanted)[-self.engine.max_length - 1 : -1]), []).append(place)
        found = [(0.0, False)] * len(requests)
        asked = self.engine.log_probs([list(row) for row in rows], "log-likelihoods")
        for places, log_probs in zip(rows.values(), asked, strict=True):
            for place in places:
                ids = torch.tensor(requests[place][2])
                last = log_probs[-len(ids) :]  # [C, V]
                likelihood = last.gather(1, ids[:, None]).sum()
                found[place] = float(likelihood), bool((last.argmax(-1) == ids).all())
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text; a long one is split into windows."""
        pieces: list[Request] = []
        owners: list[int] = []
        for place, (text,) in enumerate(request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.engine.max_length, context_len=1
            )
            for context, wanted in map(make_disjoint_window, windows):
                pieces.append((("", text), context, wanted))
                owners.append(place)
        totals = [0.0] * len(requests)
        for place, (likelihood, _) in zip(owners, self._loglikelihood_tokens(pieces), strict=True):
            totals[place] += likelihood
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each cut at its first stop sequence."""
        texts = [""] * len(requests)
        by_length: dict[int, list[tuple[int, str, list[str]]]] = {}
        for place, (context, settings) in enumerate(request.args for request in requests):
            wanted = normalize_gen_kwargs(settings, 256)
            if wanted["do_sample"]:
                raise NotImplementedError(f"the task samples its answers, and {type(self.engine).__name__} doesn't")
            stops = handle_stop_sequences(wanted["until"], self.tokenizer.eos_token)
            by_length.setdefault(wanted["max_gen_toks"], []).append((place, context, stops))
        for tokens, asked in by_length.items():
            room = self.engine.max_length - tokens
            if room < 1:
                raise ValueError(f"answers of {tokens} tokens are asked for; the model's context has {room + tokens}")
            prompts = [self.tok_encode(context)[-room:] for _, context, _ in asked]
            answers = self.engine.answers(prompts, tokens, "answers")
            for (place, _, stops), ids in zip(asked, answers, strict=True):
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                texts[place] = postprocess_generated_text(text, stops, None)
        return texts
