"""Words of the command line whose values are never shown."""

from __future__ import annotations

from gemma_tune.validation.schema import is_secret


def without_secrets(message: str, words: list[str]) -> str:
    """A message that quotes words, without the values of secret keys."""
    for key, _, value in (word.partition("=") for word in words):
        if value and is_secret(key):
            message = message.replace(value, "…")
    return message
