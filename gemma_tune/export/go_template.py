"""A chat template of the user's own in Go, for Ollama, where each turn is written in the same way.

Texts are not trimmed, and tools are not written. `<bos>` is put before it by Ollama.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from jinja2 import TemplateError

from gemma_tune.chat import Unrenderable
from gemma_tune.chat.marks import Messages
from gemma_tune.chat.own import OwnForm, own_text

_USER, _ANSWER, _SYSTEM = "Frage-1", "Antwort-2", "System-3"


@dataclass(frozen=True)
class _Turn:
    """What is written before and behind a text."""

    before: str
    behind: str


def go_template(form: OwnForm) -> str:
    """The template in Go; it goes on after a question with what begins the answer.

    Raises:
        Unrenderable: The turns are not all written in the same way.
    """
    try:
        turns = _turns(form)
        for messages in _talks(form):
            prompt = messages[-1]["role"] == "user"
            if own_text(form, messages, prompt=prompt)[0] != _written(form.bos_token, turns, messages):
                raise ValueError(messages)
    except (TemplateError, ValueError) as error:
        raise Unrenderable(
            "there is no Modelfile for this chat template: its turns are not all written in the same way; llama.cpp "
            "reads the template in the file."
        ) from error
    roles = [("system", turns["system"])] if "system" in turns else []
    roles += [("user", turns["user"]), ("assistant", turns["assistant"])]
    cases = "{{ else ".join(f'if eq .Role "{role}" }}}}{_go(turn)}' for role, turn in roles)
    return "{{- range .Messages }}{{ " + cases + "{{ end }}{{ end }}"


def _go(turn: _Turn) -> str:
    before, behind = (
        f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else "" for text in vars(turn).values()
    )
    return f"{before}{{{{ .Content }}}}{behind}"


def _talk(*said: tuple[str, str]) -> Messages:
    return [{"role": role, "content": text} for role, text in said]


def _talks(form: OwnForm) -> list[Messages]:
    asked, said, first = ("user", "Eine Frage"), ("assistant", "Eine Antwort"), ("system", "Kurz!")
    talks = [(asked,), (asked, said, ("user", "Noch eine")), (asked, said, asked, said)]
    return [_talk(*begin, *rest) for rest in talks for begin in ((), (first,))[: 1 + form.system]]


def _turns(form: OwnForm) -> dict[str, _Turn]:
    """How each role's turn is written; what begins an answer belongs to the question."""
    asked, _ = own_text(form, _talk(("user", _USER)), prompt=True)
    whole, _ = own_text(form, _talk(("user", _USER), ("assistant", _ANSWER)))
    before, behind = asked.removeprefix(form.bos_token).split(_USER)
    turns = {"user": _Turn(before, behind), "assistant": _Turn("", whole.split(_ANSWER)[1])}
    if form.system:
        begin, rest = own_text(form, _talk(("system", _SYSTEM), ("user", _USER)), prompt=True)[0].split(_SYSTEM)
        between = rest.split(_USER)[0]
        if not between.endswith(before):
            raise ValueError("the system text is no turn of its own")
        turns["system"] = _Turn(begin.removeprefix(form.bos_token), between.removesuffix(before))
    return turns


def _written(bos: str, turns: dict[str, _Turn], messages: Messages) -> str:
    parts = (f"{turns[m['role']].before}{m['content']}{turns[m['role']].behind}" for m in messages)
    return bos + "".join(parts)
