"""The chat formats of the Gemma families: their tokens, and what each can express."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

# The stop token of Gemma 1 to 3n and FunctionGemma. Callers that know their tokenizer ask `form_of(tokenizer)`.
STOP_TOKEN = "<end_of_turn>"


# The tokens of padding and of unknown texts, and those that stand for images and sounds (Gemma 3 and 3n)
_PLACEHOLDERS = (
    "<pad>", "<unk>", "<mask>", "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_audio>",
    "<end_of_audio>", "<audio_soft_token>",
)  # fmt: skip


class UnknownTemplate(ValueError):
    """An unknown chat template; the message says what was found and how to go on."""


class Unrenderable(ValueError):
    """A conversation that a chat format can't express, or would change; the message has the fix."""


@dataclass(frozen=True)
class ChatForm:
    """The chat format of one family: its template, and what the code must know about it.

    Attributes:
        name: Its name in `FORMS` and in `model.chat_template`.
        families: The models, for messages to the user.
        stop_token: Ends an answer. Gemma's `<eos>` never occurs in a chat.
        needed_tokens: Tokens that the tokenizer must have.
        control_tokens: Tokens that only the template may write; texts of a row must not contain them.
        placeholders: Further tokens that texts must not contain: of padding, and of images and sounds.
        calls: How tool calls are written: as JSON text, with tokens of their own, or None without tools.
        calls_stop: Ends an answer that ends with calls, if that is another token: the model opens the results, and the
            engine takes over.
        answer_tokens: Tokens that carry meaning in an answer: around calls, strings and thinking.
        string_token: Encloses strings in native calls and results.
        system: Whether a system text is possible.
        system_role: Whether the system text is a turn of its own; else it opens the first user turn.
        thinking: Whether thinking is rendered at all; that of past turns never is.
        closes_thinking: Whether a prompt that doesn't ask for thinking opens the answer with empty thinking, which is
            missing in the history.
        bos_token: Begins every text.
        file: The template's file in `templates/`.
        revision: Number of the published template that it equals, in order of publication.
    """

    name: str
    families: str
    stop_token: str
    control_tokens: tuple[str, ...]
    calls: Literal["json", "native"] | None
    placeholders: tuple[str, ...] = _PLACEHOLDERS
    calls_stop: str | None = None
    answer_tokens: tuple[str, ...] = ()
    string_token: str = ""
    system: bool = True
    system_role: bool = False
    thinking: bool = False
    closes_thinking: bool = False
    bos_token: str = "<bos>"
    file: str = "gemma3"
    revision: int = 0

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Every token that ends an answer: `generate` must stop at each of them."""
        return (self.stop_token, *([self.calls_stop] if self.calls_stop else []))

    @property
    def result_mappings(self) -> bool:
        """Whether a tool result can be a mapping; else it is a text that contains JSON."""
        return self.calls == "native" and self.revision != 1

    @property
    def needed_tokens(self) -> tuple[str, ...]:
        """Tokens that the tokenizer must have."""
        return ("<pad>", *self.control_tokens)

    @property
    def with_tools(self) -> str:
        """What has a place for tools, for messages."""
        return "model that has one"

    def check(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> None:
        """Raises Unrenderable if the chat format can't express something in the conversation, or would change it."""
        if tools and not self.calls:
            raise Unrenderable(
                f"there is no place for tools in {self.families}; take a {self.with_tools}, or leave tools out."
            )
        for message in messages:
            if message["role"] in ("system", "developer") and not self.system:
                raise Unrenderable(
                    f"there is no system role in {self.families}: put the system text into the first user message."
                )
            if not self.calls and (message.get("tool_calls") or message["role"] == "tool"):
                raise Unrenderable(f"there is no place for calls of tools and their results in {self.families}.")
            if not self.thinking and thinking_of(message):
                raise Unrenderable(
                    f"there is no place for thinking (reasoning_content) in {self.families}: take it out of the row."
                )
        if found := _control((*self.control_tokens, *self.placeholders)).search("\n".join(_strings([messages, tools]))):
            raise Unrenderable(f"a text holds {found[0]}, which the template writes itself; take it out.")


def thinking_of(message: Mapping[str, Any]) -> str:
    """The thinking of a message, under any of the names that servers use; "" if there is none."""
    return next((message[key] for key in ("reasoning_content", "reasoning", "thinking") if message.get(key)), "")


@functools.cache
def _control(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(t) for t in tokens))


def _strings(value: Any) -> list[str]:
    """Every text in a JSON value, keys too."""
    found: list[str] = []
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            found += value
            left += value.values()
        elif isinstance(value, list):
            left += value
    return found


_TURNS = ("<bos>", "<eos>", "<start_of_turn>", STOP_TOKEN)
_FUNCTIONS = (
    "<start_function_declaration>", "<end_function_declaration>", "<start_function_call>", "<end_function_call>",
    "<start_function_response>", "<end_function_response>", "<escape>",
)  # fmt: skip
_GEMMA4 = (
    "<bos>", "<eos>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|tool>", "<tool|>",
    "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
)  # fmt: skip


_MEDIA4 = ("<|image|>", "<|image>", "<image|>", "<|audio|>", "<|audio>", "<audio|>", "<|video|>")


def _gemma4(name: str, revision: int, large: bool = False) -> ChatForm:
    return ChatForm(
        name,
        "Gemma 4 12B and larger" if large else "Gemma 4",
        "<turn|>",
        _GEMMA4,
        "native",
        placeholders=(*_PLACEHOLDERS, *_MEDIA4),
        # The template of the release ends a turn with calls like any other turn
        calls_stop="<|tool_response>" if revision > 1 else None,
        answer_tokens=("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'),
        string_token='<|"|>',
        system_role=True,
        thinking=revision > 1,
        closes_thinking=large,
        file="gemma4",
        revision=revision,
    )


# Gemma 4's templates are named as TRL names its copies; they were published in the order v2, v3, v1, v4, v5. 12B,
# 26B-A4B and 31B share another template in each version; no copy of their first one is available.
_ALL = (
    ChatForm("gemma", "Gemma 1 and 2", STOP_TOKEN, _TURNS, None, system=False, file="gemma"),
    ChatForm("gemma3", "Gemma 3", STOP_TOKEN, _TURNS, "json"),
    ChatForm("gemma3n", "Gemma 3n", STOP_TOKEN, _TURNS, "json"),
    ChatForm(
        "functiongemma",
        "FunctionGemma",
        STOP_TOKEN,
        (*_TURNS, *_FUNCTIONS),
        "native",
        calls_stop="<start_function_response>",
        answer_tokens=("<start_function_call>", "<end_function_call>", "<escape>"),
        string_token="<escape>",
        system_role=True,
        file="functiongemma",
    ),
    _gemma4("gemma4_v1", 3),
    _gemma4("gemma4_v2", 1),
    _gemma4("gemma4_v3", 2),
    _gemma4("gemma4_v4", 4),
    _gemma4("gemma4_v5", 5),
    _gemma4("gemma4_large_v1", 3, large=True),
    _gemma4("gemma4_large_v3", 2, large=True),
    _gemma4("gemma4_large_v4", 4, large=True),
    _gemma4("gemma4_large_v5", 5, large=True),
)
_NAMED = {form.name: form for form in _ALL}

# By name; `gemma4` and `gemma4_large` are the newest templates.
FORMS: Mapping[str, ChatForm] = MappingProxyType(
    {**_NAMED, "gemma4": _NAMED["gemma4_v5"], "gemma4_large": _NAMED["gemma4_large_v5"]}
)
