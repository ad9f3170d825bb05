"""Each form's tokenizer, the published templates that TRL has copies of, and what the forms' messages say."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conversations import Chat, Message, conversations
from jinja2 import Environment, Template, TemplateError
from transformers import AutoTokenizer

from gemma_tune.chat import FORMS, ChatForm, served_template
from gemma_tune.chat.engine import Tools
from gemma_tune.run.paths import ASSETS

NAMES = [name for name, form in FORMS.items() if form.name == name]
GEMMA4 = [name for name in NAMES if name.startswith("gemma4_")]
LARGE = [name for name in GEMMA4 if name.startswith("gemma4_large_")]

# What the prompts of 12B, 26B-A4B and 31B end with where nobody asks for thinking.
EMPTY_THINKING = "<|channel>thought\n<channel|>"

each_form = pytest.mark.parametrize("name", NAMES)

# Beside those that its template writes.
_GEMMA4_MEDIA = ("<|image|>", "<|audio|>", "<|video|>")


@functools.cache
def tokenizer_of(name: str) -> Any:
    """The embedded model's tokenizer with the tokens of the form's published one, and no other form's.

    It has those of Gemma 3 and FunctionGemma: what isn't the form's becomes an `<unused…>`, as in Gemma 3's, or one of
    Gemma 4's. Those are the names in its tokenizer_config.json, as TRL's copies of its template write them.
    """
    form = FORMS[name]
    wanted = [*form.control_tokens, *(_GEMMA4_MEDIA if form.file == "gemma4" else ())]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ASSETS / "tiny", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        file, config_file = Path(folder, "tokenizer.json"), Path(folder, "tokenizer_config.json")
        config = json.loads(config_file.read_text(encoding="utf-8"))
        others = [t for t in config.pop("extra_special_tokens") if t not in wanted]
        missing = [t for t in wanted if f'"{t}"' not in file.read_text(encoding="utf-8")]
        names = dict(zip(others, [*missing, *(f"<unused{n}>" for n in range(99))], strict=False))
        text = file.read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        file.write_text(text, encoding="utf-8")
        config_file.write_text(json.dumps(config), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([t for t in missing if t not in names.values()], special_tokens=True)
    tokenizer.chat_template = served_template(name)
    return tokenizer


@functools.cache
def chats_of(name: str) -> list[Chat]:
    """The form's conversations."""
    return conversations(form=FORMS[name])


_CLOSED = r"""        {%- if not enable_thinking | default(false) -%}
            {{- '<|channel>thought\n<channel|>' -}}
        {%- endif -%}
"""


@functools.cache
def published(name: str) -> str:
    """A published template, from TRL's copy.

    Of Gemma 4 it has E2B's. That of 12B, 26B-A4B and 31B has three lines more in its last block: `test_recognise.py`
    holds the sum against the digests of the files.
    """
    trl = find_spec("trl")
    assert trl and trl.origin
    small = name.replace("_large", "")
    file = "gemma4" if small == "gemma4_v1" else small
    text = (Path(trl.origin).parent / "chat_templates" / f"{file}.jinja").read_text(encoding="utf-8")
    if small == name:
        return text
    begin, model, end = text.rpartition("        {{- '<|turn>model\\n' -}}\n")
    closed = _CLOSED
    if name == "gemma4_large_v5":  # and one empty line
        closed = closed.replace(" | default(false)", "")
        begin = begin.replace("role + '\\n' }}\n", "role + '\\n' }}\n\n")
    return begin + model + closed + end


def text_of(
    tokenizer: Any, template: str, messages: list[Message], tools: Tools = None, prompt: bool = False, **kwargs: Any
) -> str:
    """The text as Transformers renders it."""
    text: str = tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=prompt, **kwargs
    )
    return text


def refuse(message: str) -> None:
    raise TemplateError(message)


@functools.cache
def _engine(name: str) -> Template:
    env = Environment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    env.globals["raise_exception"] = refuse
    return env.from_string(served_template(name))


def engine_text(name: str, messages: list[Message], tools: Tools = None, prompt: bool = False) -> str:
    """The text as an engine renders the template that is saved: plain Jinja that knows no {% generation %}."""
    return _engine(name).render(messages=messages, tools=tools, bos_token="<bos>", add_generation_prompt=prompt)


def row_text(name: str, messages: list[Message], tools: Tools = None) -> str:
    """What is trained on: the prompt of the last answer, as an engine renders it, and what the whole has behind it."""
    whole = engine_text(name, messages, tools)
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if not name.startswith("gemma4_large") or last is None:
        return whole
    prompt = engine_text(name, messages[:last], tools, prompt=True)
    history = prompt.removesuffix(EMPTY_THINKING)
    if history == prompt or (is_rendered(FORMS[name], messages, last) and "reasoning_content" in messages[last]):
        return whole
    assert whole.startswith(history)
    return prompt + whole[len(history) :]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids without a <bos> of the tokenizer's own."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def words_of(message: Message, form: ChatForm) -> str:
    """A message's text as the forms trim it."""
    content = message.get("content") or ""
    return content.strip() if isinstance(content, str) else "".join(part["text"].strip() for part in content)


def is_rendered(form: ChatForm, messages: list[Message], i: int) -> bool:
    """Whether the thinking of message `i` is written: never a past turn's, before the fifth text only before calls."""
    later = any(m["role"] == "user" for m in messages[i + 1 :])
    return form.thinking and not later and (form.revision == 5 or bool(messages[i].get("tool_calls")))
