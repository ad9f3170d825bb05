"""Renders conversations into token ids and loss masks. The loss masks of pairs are made in `data/pairs.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gemma_tune.chat.engine import conversation_text
from gemma_tune.chat.forms import ChatForm, Unrenderable, thinking_of
from gemma_tune.chat.marks import Messages, Span, Tools
from gemma_tune.chat.media import Media, Placed, expand, media_in, place
from gemma_tune.chat.own import OwnForm, own_text
from gemma_tune.chat.recognise import form_of
from gemma_tune.chat.text_tokenizer import encoding_of
from gemma_tune.chat.translation import check_parts, names_languages
from gemma_tune.config.data import LANGUAGES
from gemma_tune.same_json import one_value_a_name

__all__ = [
    "Messages", "Rendered", "Tools", "answers_apart", "prompt_row", "render_chat", "render_prompt", "render_text",
]  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """One row as the model sees it.

    Attributes:
        input_ids: Token ids, `<bos>` first, [T].
        labels: The same ids where the loss counts, -100 elsewhere, [T]. Not shifted.
        media: Of each image, sound and video in order: its `kind`, the `path` of its file, `at`, the index of its first
            soft token, and `tokens`, the number of all its soft tokens; several runs (the crops of an image, the frames
            of a video) have other tokens between them.
    """

    input_ids: list[int]
    labels: list[int]
    media: Media = field(default_factory=list)

    def cut(self, max_length: int) -> Rendered:
        """The first `max_length` tokens. Of a longer row with media none: a medium is never cut."""
        if self.media and len(self.input_ids) > max_length:
            return Rendered([], [])
        if len(self.input_ids) <= max_length:
            return self
        return Rendered(self.input_ids[:max_length], self.labels[:max_length], self.media)

    @property
    def without_media(self) -> list[int]:
        """The token ids but for the soft tokens of media, for engines that are asked about the text alone."""
        soft = {self.input_ids[medium["at"]] for medium in self.media}
        return [i for i in self.input_ids if i not in soft] if soft else self.input_ids

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss counts; the first token has no prediction."""
        return max(len(self.labels) - 1, 0) - self.labels[1:].count(-100)

    @property
    def sides(self) -> tuple[Rendered]:
        """The row itself; a preference pair has two."""
        return (self,)

    @property
    def answer_end(self) -> int:
        """Number of tokens up to the last trained one; what the template writes after an answer is beyond it.

        Raises:
            ValueError: No token is trained.
        """
        return max(i for i, label in enumerate(self.labels) if label != -100) + 1


def render_chat(tokenizer: Any, messages: Messages, tools: Tools = None, thinking: bool = False) -> Rendered:
    """Renders a conversation; the loss counts the assistant's tokens and the stop token, nothing else.

    The assistant's tokens are its text, its calls, its thinking if the chat format renders it, and the stop token. Tool
    results are not among them, although Gemma 4 and FunctionGemma write them into its turn. An answer with
    `"weight": 0` is not counted. Before the last answer the row equals that answer's prompt, as `render_prompt` gives
    it; earlier answers are rendered as history (see `answers_apart`).

    Args:
        tokenizer: A fast tokenizer of Transformers with a chat template that we know.
        messages: OpenAI messages: `role`, `content`, and for calls `tool_calls`.
        tools: OpenAI function schemas, or None.
        thinking: Whether the prompt asks the model to think (Gemma 4).

    Raises:
        UnknownTemplate: The tokenizer's template is unknown.
        Unrenderable: The chat format can't express something, or a text contains a control token.
        jinja2.TemplateError: Roles that don't alternate.
    """
    form = form_of(tokenizer)
    text, spans = _text(form, messages, tools, thinking=thinking)
    placed = _placed(tokenizer, form, messages, text, spans)
    if placed:
        text, spans = placed.text, placed.spans
    out = encoding_of(tokenizer, text)
    ids = out.ids
    labels = [-100] * len(ids)
    for begin, end in spans:
        # A part begins after a special token or a line break that nothing merges with, and ends with a special token
        first = out.char_to_token(begin)
        if isinstance(form, OwnForm) and out.token_to_chars(first)[0] != begin:
            raise Unrenderable(
                f"the end of a prompt and the begin of its answer ({text[begin - 4 : begin + 4]!r}) become one token, "
                "which is no part of a prompt: let the chat template end prompts with a special token."
            )
        after = out.char_to_token(end) if end < len(text) else len(ids)
        labels[first:after] = ids[first:after]
    return Rendered(*expand(tokenizer.media, placed, ids, labels)) if placed else Rendered(ids, labels)


def _placed(tokenizer: Any, form: ChatForm, messages: Messages, text: str, spans: list[Span]) -> Placed | None:
    """The text with the media of the messages in it; None without media."""
    parts = media_in(messages)
    return place(tokenizer, form, text, spans, parts) if parts else None


class Prompt(list[int]):
    """Token ids of a prompt, [T].

    Attributes:
        media: Its images, sounds and videos, as those of `Rendered`.
    """

    media: Media

    def __init__(self, row: Rendered) -> None:
        super().__init__(row.input_ids)
        self.media = row.media


def render_prompt(tokenizer: Any, messages: Messages, tools: Tools = None, thinking: bool = False) -> Prompt:
    """Token ids of the prompt, up to where the model's answer begins, [T]; arguments as for `render_chat`."""
    return Prompt(prompt_row(tokenizer, messages, tools, thinking))


def prompt_row(tokenizer: Any, messages: Messages, tools: Tools = None, thinking: bool = False) -> Rendered:
    """The prompt as `render_prompt` gives it, with its media; nothing in it is trained on."""
    return row_of_text(tokenizer, messages, prompt_text(tokenizer, messages, tools, thinking))


def row_of_text(tokenizer: Any, messages: Messages, text: str) -> Rendered:
    """A text that the template has rendered as a row with the media of its messages; nothing in it is trained on."""
    placed = _placed(tokenizer, form_of(tokenizer), messages, text, [])
    ids = encoding_of(tokenizer, placed.text if placed else text).ids
    row = Rendered(ids, [-100] * len(ids))
    return Rendered(*expand(tokenizer.media, placed, ids, row.labels)) if placed else row


def prompt_text(tokenizer: Any, messages: Messages, tools: Tools = None, thinking: bool = False) -> str:
    """The prompt as text, `<bos>` included; the template's placeholder stands for each medium of `media_in`."""
    form = form_of(tokenizer)
    if thinking and not form.thinking:
        raise Unrenderable(f"{form.families} isn't asked to think: leave data.enable_thinking out.")
    return _text(form, messages, tools, prompt=True, thinking=thinking)[0]


def _text(
    form: ChatForm, messages: Messages, tools: Tools, prompt: bool = False, thinking: bool = False
) -> tuple[str, list[Span]]:
    ready = prepared(form, messages, tools)
    if isinstance(form, OwnForm):
        return own_text(form, ready, tools, prompt)
    return conversation_text(form, ready, tools, prompt, thinking)


def answers_apart(tokenizer: Any, messages: Messages) -> list[Messages]:
    """Splits a conversation so that each trained answer follows exactly the prompt that a server would give it.

    Only Gemma 4 12B and larger need that: their prompts end with empty thinking, which is missing once an answer is
    history. There each answer that begins a turn gets a row that ends with it, and answers that continue after tool
    results, whose prompt has no empty thinking, share one row; the other answers get weight 0.

    Args:
        tokenizer: A tokenizer with a known chat template.
        messages: OpenAI messages.

    Returns:
        The conversations, in the order of their last answers; for all other models only the given one.
    """
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1)]
    if not form_of(tokenizer).closes_thinking or not answers:
        return [messages]
    going_on = [i for i in answers if i and messages[i - 1]["role"] == "tool"]
    parts = [[i] for i in answers if i not in going_on] + ([going_on] if going_on else [])
    rows = []
    for part in sorted(parts, key=max):
        upto = enumerate(messages[: max(part) + 1])
        rows.append([m | {"weight": 0} if m["role"] == "assistant" and i not in part else m for i, m in upto])
    return rows


def render_text(tokenizer: Any, text: str) -> Rendered:
    """Renders running text: `<bos>`, the text, `<eos>`; every token is trained on."""
    ids = encoding_of(tokenizer, text).ids
    ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return Rendered(ids, ids.copy())


def prepared(form: ChatForm, messages: Messages, tools: Tools = None) -> Messages:
    """The messages as the template expects them: every result named, thinking under one name, no nulls.

    Results get their name by `tool_call_id`, by their own `name`, or, without both, by the order of the calls: the
    published template of Gemma 4 would name results without ids after the last call. A result that is a mapping becomes
    JSON text if the chat format has no other way to write it.

    Raises:
        Unrenderable: The chat format can't express something in the conversation.
    """
    form.check(messages, tools)
    named = form.calls == "native" or isinstance(form, OwnForm)
    ready: Messages = []
    asked: list[dict[str, Any]] = []
    place = 0
    for message in messages:
        entry = {key: value for key, value in message.items() if value is not None}
        if thinking := thinking_of(entry):
            entry |= {"reasoning_content": thinking, "reasoning": thinking}
        if named and entry.get("tool_calls"):
            entry["tool_calls"] = [_call(call, f"call_{i}") for i, call in enumerate(entry["tool_calls"])]
            asked, place = entry["tool_calls"], 0
        elif named and entry["role"] == "tool":
            call = _asked(entry, asked, place)
            place += 1
            if call:
                entry |= {"name": call["function"]["name"], "tool_call_id": call["id"]}
        if entry["role"] == "tool" and isinstance(entry.get("content"), dict) and not form.result_mappings:
            entry["content"] = json.dumps(entry["content"], ensure_ascii=False)
        if isinstance(form, OwnForm) and form.translates and entry["role"] == "user":
            check_parts(entry.get("content"))
        elif names_languages(entry):
            raise Unrenderable(f"there is no place for {' and '.join(LANGUAGES)} in {form.families}: take them out.")
        elif isinstance(form, OwnForm) and isinstance(entry.get("content"), list):
            entry["content"] = _joined(entry["content"])
        ready.append(entry)
    return ready


def _joined(parts: list[dict[str, Any]]) -> str:
    """The parts of a text as one, since many templates write a list as Python does."""
    if other := next((str(part.get("type")) for part in parts if part.get("type") != "text"), None):
        raise Unrenderable(f"there is no place for {other} in your chat template: only texts are given to it.")
    return "".join(part["text"] for part in parts)


def _call(call: dict[str, Any], name: str) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        # The OpenAI API gives them as JSON text
        try:
            arguments = json.loads(arguments, object_pairs_hook=one_value_a_name)
        except (ValueError, RecursionError) as error:
            raise Unrenderable(f"the arguments of {function['name']} can't be read as JSON ({error}).") from error
    if not isinstance(arguments, dict):
        raise Unrenderable(f"the arguments of {function['name']} are neither a mapping nor a text that holds one.")
    return {"type": "function", "id": call.get("id") or name, "function": {**function, "arguments": arguments}}


def _asked(result: dict[str, Any], calls: list[dict[str, Any]], place: int) -> dict[str, Any] | None:
    """The call that a result belongs to: by id, else by name, else by position."""
    wanted, name = result.get("tool_call_id"), result.get("name")
    for call in calls:
        if wanted and call["id"] == wanted:
            return call
    for call in calls:
        if name and call["function"]["name"] == name:
            return call
    return None if wanted or name or place >= len(calls) else calls[place]
