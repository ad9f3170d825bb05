"""Our templates as text, and which parts of it the model says."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_tune.chat.forms import ChatForm, Unrenderable
from gemma_tune.chat.template import training_template

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None
Span = tuple[int, int]

# Unicode keeps these two out of texts: they mark where a part begins and ends while the template is rendered.
_BEGIN, _END = "\ufdd0", "\ufdd1"


class _Generation(Extension):
    """`{% generation %}`: marks its text, unless the message has `"weight": 0`."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Reads the tag and its body, which stands in a loop over `message`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = self.call_method("_marked", [nodes.Name("message", "load")])
        return nodes.CallBlock(marked, [], [], body).set_lineno(line)

    @staticmethod
    def _marked(message: Any, caller: Callable[[], str]) -> str:
        said = caller()
        return f"{_BEGIN}{said}{_END}" if said and message.get("weight", 1) else said


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _compiled(environment: Environment, template: str) -> Template:
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(template)


@functools.cache
def _ours(form: ChatForm) -> Template:
    return _compiled(
        Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation]), training_template(form)
    )


@functools.lru_cache(maxsize=32)
def sandboxed(template: str) -> Template:
    """A chat template of anyone's, as Transformers compiles it; the sandbox makes it some three times slower.

    Raises:
        jinja2.TemplateError: It is no template.
    """
    extensions = [_Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    return _compiled(environment, template)


def conversation_text(
    form: ChatForm, messages: Messages, tools: Tools = None, prompt: bool = False, thinking: bool = False
) -> tuple[str, list[Span]]:
    """A conversation as the form writes it; its last answer stands behind the prompt that it was given to.

    Args:
        form: The form.
        messages: OpenAI messages, as `prepared` leaves them.
        tools: OpenAI function schemas, or None.
        prompt: Whether the model's next turn is begun.
        thinking: Whether the model is asked to think (`enable_thinking`).

    Returns:
        The text, and where the model speaks: begin and end of each part in characters, in order. Parts may touch.

    Raises:
        jinja2.TemplateError: Roles that don't alternate, or another order that the form doesn't know.
        Unrenderable: A text with one of the two characters that are needed as marks.
    """
    rendered = _ours(form).render(
        messages=messages,
        tools=tools or None,
        bos_token=form.bos_token,
        add_generation_prompt=prompt,
        as_generated=not prompt,
        enable_thinking=thinking,
    )
    pieces: list[str] = []
    spans: list[Span] = []
    place = 0
    first, *parts = rendered.split(_BEGIN)
    for number, part in enumerate([first, *parts]):
        said, *rest = part.split(_END)
        if len(rest) != (number > 0):
            raise Unrenderable("a text holds U+FDD0 or U+FDD1, which Unicode keeps out of texts; take it out.")
        if rest:
            spans.append((place, place + len(said)))
        pieces += [said, *rest]
        place += len(said) + sum(map(len, rest))
    return "".join(pieces), spans
