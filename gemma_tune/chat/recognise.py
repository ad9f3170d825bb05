"""Recognises the chat format of a checkpoint by the content of its template."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

from jinja2 import TemplateError

from gemma_tune.chat.engine import sandboxed
from gemma_tune.chat.examine import own_form
from gemma_tune.chat.foreign import LONGEST, ForeignTemplate
from gemma_tune.chat.forms import FORMS, ChatForm, UnknownTemplate
from gemma_tune.chat.marks import Messages, Tools
from gemma_tune.chat.own import OwnForm, is_saved
from gemma_tune.chat.template import served_template
from gemma_tune.chat.text_tokenizer import TextTokenizer, is_plain
from gemma_tune.chat.translation import translates
from gemma_tune.chat.vocabulary import vocabulary_of

# SHA-256 of the published templates, stripped of surrounding blanks.
PUBLISHED = {
    "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6": "gemma",
    "8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29": "gemma3",
    "33204f1acb5bd0002713e16a593847f24ceeafe711ed88bda2a352dc996a3373": "gemma4_v1",
    "55572b8d3c8342044e25874c73fe5234b661fa0a57a57f6ef75b58e03d7d959a": "gemma4_v2",
    "781d10940fbc44be40064b5d43a056fc486c84ceaa55538226368b57314132bf": "gemma4_v3",
    "2f1b4d75d067bae3fe44e676721c7f077d243bc007156cb9c2f8b5836613d082": "gemma4_v4",
    "603a42db292c25278e9b23d94c7abbe77453f13e26a053c43c5c2f900b4136f7": "gemma4_v5",
    "94899c0f917d93f6fe81c95744d1e8ddab2d21d39228d2e4aec1fb2a25bff413": "gemma4_large_v1",
    "1d35a24a2a63cc600c0cab43628a6df4cd3318e959b03307cf5f9f7e29ecf783": "gemma4_large_v3",
    "36e3a42e5cf14cd0020e72d92e1fdd9970f59b82170e421f0cbe1bb42bead3f0": "gemma4_large_v4",
    "6a1015c47ccfcfa67c3b772385bccee357a4d37c3cda37bd202e9047f391ab82": "gemma4_large_v5",
}

# Conversations to render where no copy of the published template is available.
_TALK: Messages = [
    {"role": "user", "content": " Où est la gare? \n"},
    {"role": "assistant", "content": "\nLà-bas. "},
    {"role": "user", "content": [{"type": "text", "text": " 👍🏽 "}, {"type": "text", "text": "谢谢"}]},
    {"role": "assistant", "content": "{{ de rien }}"},
    {"role": "user", "content": "Bye"},
]
_SYSTEM: Messages = [{"role": "system", "content": "Be brief."}]
_MEDIA: Messages = [
    {"role": "user", "content": [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": "What is it?"}]}
]
_ASKED: Messages = [
    {"role": "developer", "content": "You are a model that can do function calling with the following functions"},
    {"role": "user", "content": "Where, and how warm?"},
]
_CALLED: Messages = [
    *_ASKED,
    {
        "role": "assistant",
        "tool_calls": [
            {"type": "function", "function": {"name": "find", "arguments": {"text": "gare", "n": 3, "near": True}}},
            {"type": "function", "function": {"name": "now", "arguments": {"at": {"x": 1.5, "tags": ["a", "b"]}}}},
        ],
    },
]
_ANSWERED: Messages = [
    *_CALLED,
    {"role": "tool", "name": "find", "content": {"name": "find", "response": {"place": "là-bas", "metres": 20}}},
    {"role": "tool", "name": "now", "content": {"name": "now", "response": {"open": False}}},
    {"role": "assistant", "content": "There, and it is closed."},
]
_TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds a place.",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "description": "What to look for", "enum": ["gare", "port"]},
                    "n": {"type": "integer", "description": "How many"},
                    "near": {"type": "boolean", "description": "Whether it must be near"},
                },
                "required": ["text"],
            },
        },
    }
]

# Texts that only one format's templates contain; the first one found names the closest format.
_TELLING = {
    r"<|channel>thought\n<channel|>": "gemma4_large",
    "<|turn>": "gemma4",
    "<start_function_call>": "functiongemma",
    "<audio_soft_token>": "gemma3n",
    "<start_of_image>": "gemma3",
}

# What a template must contain to write the format at all
_NEEDED = {
    "gemma3": ("<start_of_turn>", "<start_of_image>"),
    "gemma3n": ("<start_of_turn>",),
    "functiongemma": ("<start_function_call>",),
}

Probe = tuple[Messages, Tools, bool]
_TALKS: list[Probe] = [
    *((talk, None, prompt) for talk in ([*_SYSTEM, *_TALK], _TALK, _TALK[:4], _MEDIA) for prompt in (True, False)),
    (_TALK, _TOOLS, True),
]
_PROBES: dict[str, list[Probe]] = {
    "gemma3": _TALKS,
    "gemma3n": _TALKS,
    "functiongemma": [
        *((talk, None, prompt) for talk in ([*_SYSTEM, *_TALK], _TALK[:2]) for prompt in (True, False)),
        *((talk, _TOOLS, False) for talk in (_ASKED, _CALLED, _ANSWERED, _TALK)),
        *((talk, _TOOLS, True) for talk in (_ASKED, _ANSWERED[:5], _ANSWERED)),
    ],
}


def _given(probe: Probe) -> dict[str, Any]:
    messages, tools, prompt = probe
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    return {"messages": messages, "tools": tools, "add_generation_prompt": prompt, **tokens}


def _text(template: ForeignTemplate, probe: Probe) -> str | None:
    try:
        return template.render(_given(probe))
    except TemplateError:  # it rejects this conversation, or is no template; then it isn't ours
        return None


def _own_text(form: str, probe: Probe) -> str | None:
    try:
        return sandboxed(served_template(form)).render(_given(probe))
    except TemplateError:
        return None


def _expected(form: str, probe: Probe) -> Iterator[str | None]:
    messages, tools, prompt = probe
    yield _own_text(form, (_plain(messages), tools, prompt))
    if form in ("gemma3", "gemma3n"):  # the published templates silently drop tools
        yield _own_text(form, (messages, None, prompt))


def _plain(messages: Messages) -> Messages:
    """The results as our template expects them: the name beside the content."""
    return [{**m, "content": m["content"]["response"]} if isinstance(m.get("content"), dict) else m for m in messages]


def _says_the_same(template: str, form: str) -> bool:
    """Whether it renders all conversations as ours does; one that lacks the format's own tokens isn't run for it."""
    if not all(token in template for token in _NEEDED[form]):
        return False
    theirs = ForeignTemplate(template)
    return all(_text(theirs, probe) in [t for t in _expected(form, probe) if t] for probe in _PROBES[form])


@functools.lru_cache(maxsize=64)
def _known(template: str) -> ChatForm | None:
    text = template.strip()
    for form in FORMS.values():
        if text == served_template(form).strip():
            return form
    if name := PUBLISHED.get(hashlib.sha256(text.encode()).hexdigest()):
        return FORMS[name]
    return next((FORMS[name] for name in _PROBES if _says_the_same(template, name)), None)


def recognise_template(template: str | dict[str, str] | None, default: str) -> ChatForm:
    """The chat format of a checkpoint's own template.

    Published templates are recognised by digest, ours by text. No copy of Gemma 3n's, FunctionGemma's and MedGemma's is
    available: a template counts as that of 3n, of FunctionGemma or of Gemma 3 if it renders a set of conversations
    exactly as ours does.

    Args:
        template: The checkpoint's chat template, or several by name; None without one, as in pretrained checkpoints.
        default: Name of the format of its family.

    Raises:
        UnknownTemplate: It is none of them, for example because somebody added a system text.
    """
    if isinstance(template, dict):  # some checkpoints have several, by name
        template = template.get("default")
    if template is None:
        return FORMS[default]
    if len(template) <= LONGEST and (form := _known(template)):
        return form
    begin = " ".join(template[:1000].split())[:60]
    near = next((form for token, form in _TELLING.items() if token in template), default)
    raise UnknownTemplate(
        f"its chat template ({len(template):,} characters, it begins {begin!r}) is no published one that we know of a "
        "Gemma, so what it writes could differ from what is trained. Use a copy of the folder without it (without "
        "chat_template.jinja, and without chat_template in tokenizer_config.json), and the published form is taken; or "
        f"name a form: model.chat_template={near} (known: {', '.join(FORMS)}); or name a file with this template, "
        "model.chat_template=path/to/chat_template.jinja, to train with it as it stands."
    )


def form_of(tokenizer: Any) -> ChatForm:
    """The chat format of a tokenizer whose template `load_tokenizer` has set.

    Raises:
        UnknownTemplate: It has no template, or an unknown one.
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer.form
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise UnknownTemplate("the tokenizer has no chat template; set one with served_template(form).")
    own = is_saved(template) or translates(template)
    return _own(template, tokenizer) if own else recognise_template(template, "gemma3")


@functools.lru_cache(maxsize=8)
def _own(template: str, tokenizer: Any) -> OwnForm:
    return own_form(template, vocabulary_of(tokenizer))


def reduced(tokenizer: Any, by_word: bool = True) -> Any:
    """A tokenizer as rendering needs it, without Transformers' part; itself where its class does more than that.

    Args:
        tokenizer: A fast tokenizer of Transformers.
        by_word: As `TextTokenizer` has it (`data.encode_by_word`).
    """
    if not is_plain(tokenizer):
        return tokenizer
    try:
        form = form_of(tokenizer)
    except UnknownTemplate:  # running text needs none
        return tokenizer
    return TextTokenizer(
        tokenizer.backend_tokenizer,
        form,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.split_special_tokens,
        getattr(tokenizer, "media", None),
        getattr(tokenizer, "no_media", None),
        by_word,
    )
