"""Checks of new tokens, and of what an adapter trains beside its layers."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_tune.config import Config


def new_token_problems(cfg: Config) -> Iterator[str]:
    """Tokens that can't be added, and rows and layers that can't be trained beside an adapter."""
    tokens, a, method = cfg.model.added_tokens, cfg.adapter, cfg.traits
    twice = sorted({t for t in tokens if tokens.count(t) > 1})
    if twice:
        yield f"model.added_tokens names {', '.join(twice)} twice."
    for token in tokens:
        if not token or any(c.isspace() for c in token):
            yield (
                f"model.added_tokens: {token!r}: a token has at least one character and no white space, which "
                "engines would take apart in different ways."
            )
    if tokens and not method.new_tokens:
        way = "tune first (recipe=lora_sft or tune_to_int4)" if method.trains else "name a run that was tuned with them"
        yield f"model.added_tokens has no effect with recipe={cfg.recipe}: {way}; the tuned model brings its tokens."
    if a.peft_type == "none":
        return  # answered with all other options of adapters
    for key in ("trainable_token_indices", "modules_to_save") if not method.new_tokens else ():
        if getattr(a, key):
            yield f"adapter.{key} has no effect with recipe={cfg.recipe}: leave it out, or tune with it before."
