"""How servers find the calls and the thinking in an answer: Transformers' `response_template`, vLLM's parsers.

`transformers serve` returns calls as text where `tokenizer_config.json` has no `response_template`: exports write it.
https://huggingface.co/docs/transformers/main/en/chat_response_parsing
"""

from __future__ import annotations

import re
from typing import Any

from gemma_tune.chat.forms import ChatForm
from gemma_tune.chat.own import OwnForm

_CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
# As `calls._json` reads them: an object, a list of objects or one after the other, perhaps in a code fence
_JSON_OPENS = r'\s*(?:```[a-z_]*\s*)?(?:\[\s*)?\{\s*"name":\s*"(?P<name>[^"\\]+)",\s*"parameters":\s*(?=\{)'
_JSON_CLOSES = r'\s*\}(?:\s*,(?=\s*\{\s*"name")|(?=\s*\{\s*"name")|\s*\]?\s*(?:```)?\s*(?:$|(?=<end_of_turn>|<eos>)))'


def response_template(form: ChatForm) -> dict[str, Any] | None:
    """The `response_template` of a chat format for `tokenizer_config.json`; None where an answer is nothing but text.

    A call that is cut off, or isn't written as the format has it, comes with its arguments as the text that they are.
    """
    if form.calls is None or isinstance(form, OwnForm):  # how a template of the user's own writes calls isn't known
        return None
    stops = [*form.stop_tokens, "<eos>"]
    text = {"content": "text", "content_args": {"strip": False}}
    fields: dict[str, Any] = {"content": {**text, "close_pattern": rf"\s*(?:{'|'.join(map(re.escape, stops))})"}}
    if form.calls == "json":
        fields["tool_calls"] = {
            "open_pattern": _JSON_OPENS,
            "close_pattern": _JSON_CLOSES,
            "content": "json",
            "content_args": {"allow_non_json": True},
        }
        anchors = ["<start_of_turn>model\n"]
    else:
        begin, end = (token for token in form.answer_tokens if "call" in token)
        fields["tool_calls"] = {
            "open_pattern": rf"\s*{re.escape(begin)}\s*call:\s*(?P<name>[^{{\s<>]+)\s*",
            "close": end,
            "content": "json",
            "content_args": {
                "unquoted_keys": True,
                "string_delims": [[form.string_token] * 2],
                "allow_non_json": True,
            },
        }
        anchors = ["<|turn>model\n", "<tool_response|>"]
        if "<start_function_response>" in form.stop_tokens:
            anchors = ["<start_of_turn>model\n", "<end_function_response>"]
    fields["tool_calls"] |= {"repeats": True, "transform": _CALL}
    if "<|channel>" in form.answer_tokens:
        # vLLM takes this name alone, Transformers this one, too
        fields["thinking"] = {"open": "<|channel>thought\n", "close": "<channel|>", "content": "text"}
    return {"version": 1, "defaults": {"role": "assistant"}, "start_anchor": anchors, "fields": fields}


def vllm_tool_parser(form: ChatForm) -> str | None:
    """vLLM's `--tool-call-parser` for a chat format; None where calls stay text.

    `hf` goes by the tokenizer's `response_template`.
    """
    if response_template(form) is None:
        return None
    native = "functiongemma" if form.name == "functiongemma" else "gemma4"
    return native if form.calls == "native" else "hf"
