"""Examines a chat template of the user's own before it is used: everything that would go wrong in training or serving.

It renders a few short conversations: the template must give every answer a stop token that is one token of the
tokenizer, begin with one `<bos>`, and write a conversation so that it begins with the prompt of its last answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from jinja2 import TemplateError, TemplateSyntaxError

from gemma_tune.chat.calls import Call, parse_answer
from gemma_tune.chat.engine import check_syntax
from gemma_tune.chat.foreign import LONGEST
from gemma_tune.chat.forms import UnknownTemplate, Unrenderable
from gemma_tune.chat.marks import Messages, Span, Tools
from gemma_tune.chat.own import OwnForm, is_marked, own_text, rendered, without_marks
from gemma_tune.chat.translation import translated_part, translates
from gemma_tune.chat.vocabulary import Vocabulary

_SYSTEM: Messages = [{"role": "system", "content": "Answer briefly."}]
_ANSWERS = ("Kurz nach zwei.", "Gern geschehen!")
_TALK: Messages = [
    {"role": "user", "content": "Wie spät ist es?"},
    {"role": "assistant", "content": _ANSWERS[0]},
    {"role": "user", "content": "Danke"},
    {"role": "assistant", "content": _ANSWERS[1]},
]
_TRANSLATED: Messages = [
    {**m, "content": translated_part(m["content"], "de", "en")} if m["role"] == "user" else m for m in _TALK
]
_RESULT = "14:07 Uhr"
_CALLED: Messages = [
    _TALK[0],
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "id": "call_0",
                "function": {"name": "clock", "arguments": {"city": "Köln", "digits": 2}},
            }
        ],
    },
    {"role": "tool", "content": _RESULT, "name": "clock", "tool_call_id": "call_0"},
    {"role": "assistant", "content": _ANSWERS[0]},
]
_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "digits": {"type": "integer"}}}
_DESCRIBED = "Tells the time of a city."
_TOOLS: Tools = [
    {
        "type": "function",
        "function": {"name": "clock", "description": _DESCRIBED, "parameters": _PARAMETERS},
    }
]
_GENERATION = "{% generation %} … {% endgeneration %}"


def own_form(source: str, vocabulary: Vocabulary) -> OwnForm:
    """The chat format of a template.

    Args:
        source: The template.
        vocabulary: Of the tokenizer that it is used with.

    Raises:
        UnknownTemplate: It can't be used; the message has every reason that was found.
    """
    if problems := list(syntax_problems(source)):
        raise UnknownTemplate(" ".join(problems))
    given = tuple(sorted(vocabulary.named.items()))
    talk = _TRANSLATED if translates(source) else _TALK
    try:
        text, spans = rendered(source, given, talk)
        prompt, _ = rendered(source, given, talk[:3], prompt=True)
        asked, _ = rendered(source, given, talk[:1], prompt=True)
    except (TemplateError, Unrenderable) as error:
        raise UnknownTemplate(f"it fails on a conversation of two questions and answers: {error}") from error
    bos = vocabulary.named.get("bos_token", "<bos>")
    stop, problem = _stop_token(text, vocabulary, bos)
    problems = [*_bos(text, bos), *([problem] if problem else [])]
    if lost := [m["content"] for m in _TALK if m["content"] not in text]:
        problems.append(f"it leaves out or changes what is said ({lost[0]!r}).")
    else:
        problems += _prompts(text, [asked, prompt], is_marked(source))
        problems += _marks(text, spans, [asked, prompt], stop) if is_marked(source) else []
        problems += _merged(text, prompt, vocabulary)
    if problems:
        raise UnknownTemplate(" ".join(problems))
    control = sorted(token for token in vocabulary.added if token in source + text + prompt)
    form = OwnForm(
        name="your own",
        families="your chat template",
        stop_token=stop,
        control_tokens=(bos, *(t for t in control if t != bos)),
        calls=None,
        source=source,
        given=given,
        marked=is_marked(source),
        translates=translates(source),
        bos_token=bos,
        file="",
    )
    if form.translates:
        return replace(form, name="translategemma", families="TranslateGemma", system=False, weighed=not form.marked)
    return _with_abilities(form, text)


def syntax_problems(source: str) -> Iterator[str]:
    """What can be said without the tokenizer."""
    if not source.strip():
        yield "it is empty."
        return
    if len(source) > LONGEST:
        yield f"it has {len(source):,} characters, and no template has more than {LONGEST:,}."
        return
    try:
        check_syntax(source)
    except TemplateSyntaxError as error:
        yield f"line {error.lineno}: it is no valid Jinja template ({error.message})."
    except RecursionError:
        yield "it is nested too deeply."


def _bos(text: str, bos: str) -> Iterator[str]:
    if text.count(bos) != 1 or not text.startswith(bos):
        found = f"{text.count(bos)} {bos} in a conversation"
        where = "" if text.count(bos) != 1 else ", and not at its start"
        yield f"it writes {found}{where}: there must be one, at the very start: {{{{- bos_token }}}} begins a template."


def _stop_token(text: str, vocabulary: Vocabulary, bos: str) -> tuple[str, str | None]:
    """The first token behind the last answer, and a problem where there is none."""
    behind = text[text.rfind(_ANSWERS[1]) + len(_ANSWERS[1]) :]
    found = [(behind.find(t), -len(t), t) for t in vocabulary.added if t in behind and t != bos]
    if found:
        stop = min(found)[2]
        if stop in (vocabulary.named.get("pad_token"), vocabulary.named.get("unk_token")):
            return stop, f"an answer ends with {stop}, which is never trained; end it with <end_of_turn> or <eos>."
        return stop, None
    said = f"only {behind.strip()[:40]!r} follows it" if behind.strip() else "nothing follows it"
    name = next(iter(re.findall(r"<[^<>\s]+>", behind)), None)
    add = ""
    if name:  # and those that begin a turn, in the same brackets
        alike = re.findall(r"<\|[^<>|\s]+\|>", text) if name.startswith("<|") else []
        new = [token for token in dict.fromkeys([*alike, name]) if token not in vocabulary.added]
        verb = "are no tokens" if len(new) > 1 else "is no token"
        add = f"; {' and '.join(new)} {verb} of this tokenizer: add 'model.added_tokens=[{','.join(new)}]'"
    return "", (
        f"an answer ends without a stop token ({said}), so a model would not learn to stop: write {{{{ eos_token }}}} "
        f"or <end_of_turn> behind it{add}."
    )


def _prompts(text: str, prompts: list[str], marked: bool) -> Iterator[str]:
    wrong = [p for p in (prompts[-1:] if marked else prompts) if not text.startswith(p)]
    if wrong:
        way = "" if marked else f", or enclose what the model generates in {_GENERATION}"
        yield (
            "with add_generation_prompt=true it writes a prompt that the whole conversation doesn't begin with "
            f"(the prompt ends with {wrong[0][-40:]!r}), so what is trained would not follow what is asked when the "
            f"model is served; let it end with the beginning of the model's turn{way}."
        )


def _marks(text: str, spans: list[Span], prompts: list[str], stop: str) -> Iterator[str]:
    said = [text[begin:end] for begin, end in spans]
    if len(spans) != 2 or any(a not in part for a, part in zip(_ANSWERS, said, strict=False)):
        yield f"{_GENERATION} must stand around each answer and nothing else (found: {len(spans)} for 2 answers)."
        return
    if stop and any(stop not in part for part in said):
        yield f"{{% endgeneration %}} must stand behind {stop}, which ends an answer: else it would not be trained."
    if spans[1][0] != len(prompts[1]) and text.startswith(prompts[1]):
        yield (
            "{% generation %} must stand where the prompt ends (add_generation_prompt=true ends with "
            f"{prompts[1][-30:]!r}, and the mark stands behind {text[: spans[1][0]][-30:]!r})."
        )


def _merged(text: str, prompt: str, vocabulary: Vocabulary) -> Iterator[str]:
    ids = list(vocabulary.encode(prompt))
    if text.startswith(prompt) and list(vocabulary.encode(text))[: len(ids)] != ids:
        yield (
            f"the end of a prompt ({prompt[-12:]!r}) and the begin of an answer become one token: let the prompt end "
            "with a special token or a line break, and not with a blank."
        )


def _works(form: OwnForm, messages: Messages, tools: Tools = None) -> str | None:
    try:
        return own_text(form, messages, tools)[0]
    except (TemplateError, Unrenderable):
        return None


def _with_abilities(form: OwnForm, text: str) -> OwnForm:
    """The format with what else it can express: a system text, calls, answers that are left out of the loss."""
    weighed = replace(form, weighed=True)
    skipped: Messages = [_TALK[0], {**_TALK[1], "weight": 0}, *_TALK[2:]]
    one = len(own_text(weighed, skipped)[1]) == 1
    if form.marked and rendered(without_marks(form.source), form.given, _TALK)[0] != text:
        raise UnknownTemplate(f"without {_GENERATION} it writes another text, so other engines would see another one.")
    system = _works(form, [*_SYSTEM, *_TALK]) is not None
    return replace(form, weighed=one, system=system, calls="json" if _has_calls(form) else None)


def _has_calls(form: OwnForm) -> bool:
    """Whether it writes tools, and calls so that they are read back from an answer: JSON with name and parameters."""
    try:
        text, spans = own_text(form, _CALLED, _TOOLS)
    except (TemplateError, Unrenderable):
        return False
    first, *others = (text[begin:end].removesuffix(form.stop_token) for begin, end in spans)
    made = parse_answer(first, replace(form, calls="json"))
    described = _DESCRIBED in text and not any(_RESULT in said for said in (first, *others))
    return described and len(others) == 1 and made == ("", [Call("clock", {"city": "Köln", "digits": 2})], "")
