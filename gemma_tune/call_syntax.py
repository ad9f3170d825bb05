"""How the text of a tool call begins, in every chat template that we know."""

from __future__ import annotations

# The tokens that begin a call: FunctionGemma's and Gemma 4's. Gemma 3 writes plain JSON.
CALL_TOKENS = ("<start_function_call>", "<|tool_call>")


def begins_call(text: str) -> bool:
    """Whether a text begins as a call does, in any template."""
    return text.startswith(("{", "[", *CALL_TOKENS))
