"""Chat templates of the user's own: examined once, rendered in a child process, and saved with the model.

What the model generates is what the template encloses in `{% generation %}`, up to the stop token. Without these marks
it is what follows the prompt of each answer, where the text of the conversation begins with that prompt to the letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gemma_tune.chat.foreign import ForeignTemplate
from gemma_tune.chat.forms import ChatForm, Unrenderable
from gemma_tune.chat.marks import Messages, Span, Tools, split_marks

# Stands at the top of a template that we have saved, so that it is known when the model is loaded again
_SAVED = "{# Not a published template: the model was tuned with it by gemma_tune. #}"
_TAG = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


@dataclass(frozen=True)
class OwnForm(ChatForm):
    """The chat format of a template of the user's own.

    Attributes:
        source: The template.
        given: What it is given by name: `bos_token`, `eos_token`, …
        marked: Whether it marks what the model generates.
        weighed: Whether an answer with `"weight": 0` can be left out of the loss.
        translates: Whether it is TranslateGemma's, which is given each part of the user's as it is.
    """

    source: str = ""
    given: tuple[tuple[str, str], ...] = ()
    marked: bool = False
    weighed: bool = True
    translates: bool = False

    @property
    def with_tools(self) -> str:
        """What has a place for tools, for messages."""
        return "template that writes `tools` and each message's `tool_calls`"


def saved(source: str) -> str:
    """The template as it is saved with a model, which renders the same text."""
    if is_saved(source):
        return source
    return _SAVED + ("\n" if source.startswith("\n") else "") + source  # a line break after a comment is dropped


def is_saved(template: str) -> bool:
    """Whether a template is one that `saved` has made."""
    return template.startswith(_SAVED)


def is_marked(source: str) -> bool:
    """Whether a template marks what the model generates."""
    return bool(_TAG.search(source))


def without_marks(template: str) -> str:
    """The same template for engines that don't know the tag; it renders the same text, blanks included."""
    return _TAG.sub(lambda m: f"{m[1]}{'endif' if m[2] else 'if true'}{m[3]}", template)


@lru_cache(maxsize=8)
def _child(source: str) -> ForeignTemplate:
    return ForeignTemplate(source)


def rendered(
    source: str, given: tuple[tuple[str, str], ...], messages: Messages, tools: Tools = None, prompt: bool = False
) -> tuple[str, list[Span]]:
    """The text of a conversation, and the parts that are marked.

    Raises:
        jinja2.TemplateError: The template fails.
        Unrenderable: A text contains one of the characters that serve as marks.
    """
    values = {**dict(given), "messages": messages, "tools": tools or None, "documents": None}
    return split_marks(_child(source).render({**values, "add_generation_prompt": prompt}))


def own_text(form: OwnForm, messages: Messages, tools: Tools = None, prompt: bool = False) -> tuple[str, list[Span]]:
    """Renders a conversation; arguments and result as those of `engine.conversation_text`.

    Raises:
        jinja2.TemplateError: The template fails, or rejects the order of the messages.
        Unrenderable: It leaves something out, or what the model generates can't be told.
    """
    text, spans = rendered(form.source, form.given, messages, tools, prompt)
    for number, message in enumerate(messages, 1):
        if lost := next((part for part in _said(message) if part not in text), None):
            raise Unrenderable(
                f"the chat template leaves out or changes message {number} ({message['role']}): {lost[:40]!r} is not "
                "in its text."
            )
    if prompt:
        return text, []
    if not form.marked:
        return text, list(_after_prompts(form, text, messages, tools))
    if not form.weighed and any(not m.get("weight", 1) for m in messages):
        raise Unrenderable(
            'to leave an answer out ("weight": 0) the chat template must call its loop variable `message`: '
            "{% for message in messages %}."
        )
    if messages[-1]["role"] == "assistant" and messages[-1].get("weight", 1):
        begin = _prompt(form, text, messages[:-1], tools)
        if not spans or spans[-1][0] != begin:
            raise Unrenderable("the part in {% generation %} of the last answer doesn't begin where its prompt ends.")
    return text, [(begin, _end(form, text, begin, end)) for begin, end in spans]


def _said(message: dict[str, Any]) -> Iterator[str]:
    yield from (call["function"]["name"] for call in message.get("tool_calls") or ())
    content = message.get("content")
    if isinstance(content, list):  # TranslateGemma's: one part
        content = content[0].get("text")
    if isinstance(content, str) and (said := content.strip()):
        yield json.dumps(said, ensure_ascii=False)[1:-1] if message["role"] == "tool" and "\n" in said else said


def _prompt(form: OwnForm, text: str, messages: Messages, tools: Tools) -> int:
    """Where the answer to these messages begins in the text of the whole conversation."""
    asked, _ = rendered(form.source, form.given, messages, tools, prompt=True)
    if not text.startswith(asked):
        raise Unrenderable(
            f"the chat template writes the first {len(messages)} messages otherwise in a prompt than in the whole "
            "conversation, so what the model generates can't be told; enclose it in {% generation %} … "
            "{% endgeneration %}, and let a prompt be the beginning of the conversation."
        )
    return len(asked)


def _after_prompts(form: OwnForm, text: str, messages: Messages, tools: Tools) -> Iterator[Span]:
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight", 1):
            begin = _prompt(form, text, messages[:place], tools)
            yield begin, _end(form, text, begin, len(text))


def _end(form: OwnForm, text: str, begin: int, end: int) -> int:
    """The end of the stop token, which is the last that the model generates; what follows it is not trained."""
    found = text.find(form.stop_token, begin, end)
    if found < 0:
        raise Unrenderable(f"the chat template writes an answer without {form.stop_token} behind it.")
    return found + len(form.stop_token)
