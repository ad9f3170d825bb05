"""Which form a template is: the published ones, ours, none, and those that someone has changed."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
from forms_at_hand import GEMMA4, LARGE, NAMES, each_form, published
from transformers import AutoTokenizer

from gemma_tune.chat import FORMS, UnknownTemplate, form_of, recognise_template, served_template
from gemma_tune.run.paths import ASSETS

# Gemma 3n's and FunctionGemma's published texts are not at hand: stand-ins that write what is documented in other ways.
GEMMA3N = """{{ bos_token }}
{%- set first = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set first = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\\n\\n' -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
  {{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}
  {%- if m.content is string -%}{{ m.content | trim }}{%- else -%}
    {%- for part in m.content -%}
      {%- if part.type == 'text' -%}{{ part.text | trim }}
      {%- else -%}{{ '<' + part.type + '_soft_token>' }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

FUNCTIONGEMMA = (
    served_template("functiongemma")
    .replace("{{- 'response:' + ns.name + '{' -}}", "{{- 'response:' + message['content']['name'] + '{' -}}")
    .replace("{{- pairs(message['content']) -}}", "{{- pairs(message['content']['response']) -}}")
)


@each_form
def test_ours(name: str) -> None:
    assert recognise_template(served_template(name), "gemma") is FORMS[name]
    assert recognise_template(served_template(name) + "\n", "gemma") is FORMS[name]
    assert form_of(SimpleNamespace(chat_template=served_template(name))) is FORMS[name]


@pytest.mark.parametrize("name", ["gemma", "gemma3", *GEMMA4])
def test_published(name: str) -> None:
    """By digest; the blanks around a text hang on the file that it stands in."""
    for text in (published(name), published(name).strip(), f"\n{published(name)}\n"):
        assert recognise_template(text, "gemma3") is FORMS[name]
    assert recognise_template({"default": published(name), "rag": "other"}, "gemma") is FORMS[name]


# chat_template.jinja of google/gemma-4-31B-it, which 12B and 26B-A4B have, too: bytes and SHA-256 as they are pinned in
# public (v1, v4 and v5 of the file itself, as it was on 2026-04-30, 2026-05-28 and 2026-07-21; v3 of its copies in
# mlx-community/gemma-4-26b-a4b-it-4bit and unsloth/gemma-4-31b-it-MLX-8bit). The texts of v3 and v5 can be read in
# github.com/ollama/ollama, model/renderers/testdata/gemma4_31b_chat_template.jinja2, at 8d0dcf4 and 0f5944a.
LARGE_FILES = {
    "gemma4_large_v1": (16934, "94899c0f917d93f6fe81c95744d1e8ddab2d21d39228d2e4aec1fb2a25bff413"),
    "gemma4_large_v3": (16448, "85a08664d16d8f3be4416c92427b3ac10df1024ac566cc0b4bc3bab409393f98"),
    "gemma4_large_v4": (17466, "36e3a42e5cf14cd0020e72d92e1fdd9970f59b82170e421f0cbe1bb42bead3f0"),
    "gemma4_large_v5": (18683, "ae53464bf3be25802b3a5b37def7fd89667067d7577049b3b2d74c4d8de4c6d4"),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_texts_of_the_larger_ones_are_the_files(name: str) -> None:
    """Made of TRL's copies of E2B's, they have the digests of the published files."""
    text = published(name).strip() + ("\n" if name in ("gemma4_large_v3", "gemma4_large_v5") else "")
    assert (len(text.encode()), hashlib.sha256(text.encode()).hexdigest()) == LARGE_FILES[name]


@pytest.mark.parametrize(("name", "template"), [("gemma3n", GEMMA3N), ("functiongemma", FUNCTIONGEMMA)])
def test_by_what_it_renders(name: str, template: str) -> None:
    assert template != served_template(name)
    assert recognise_template(template, "gemma3") is FORMS[name]


@pytest.mark.parametrize("name", NAMES)
def test_none_is_the_familys(name: str) -> None:
    assert recognise_template(None, name) is FORMS[name]
    assert FORMS["gemma4"] is FORMS["gemma4_v5"] and FORMS["gemma4_large"] is FORMS["gemma4_large_v5"]


@pytest.mark.parametrize(
    ("template", "nearest"),
    [
        (published("gemma").replace("'System role not supported'", "'No system'"), "gemma3"),
        (
            published("gemma3").replace('set first_user_prefix = ""', "set first_user_prefix = 'You are a pirate. '"),
            "gemma3",
        ),
        (published("gemma3").replace("| trim", ""), "gemma3"),
        (published("gemma4_v5").replace("<|think|>\\n", "<|think|>"), "gemma4"),
        (
            published("gemma4_v5").replace("'<|turn>model\\n'", "'<|turn>model\\n<|channel>thought\\n<channel|>'"),
            "gemma4_large",
        ),
        (published("gemma4_large_v5").replace("if not enable_thinking", "if enable_thinking"), "gemma4_large"),
        # What the first text of 12B and larger may have been; no copy is at hand
        (
            published("gemma4_v2").replace("'<|turn>model\\n'", "'<|turn>model\\n<|channel>thought\\n<channel|>'"),
            "gemma4_large",
        ),
        (served_template("gemma3").replace("MUST", "must"), "gemma3"),
        (GEMMA3N.replace("set first = ''", "set first = 'You are a pirate. '"), "gemma3"),
        (GEMMA3N.replace("part.text | trim", "part.text"), "gemma3"),
        # Unsloth's FunctionGemma writes a system text of its own where a row has none
        (
            FUNCTIONGEMMA.replace(
                "{%- for tool in tools or [] -%}",
                "{%- if not has_system -%}{{- 'You are a model that' -}}{%- endif -%}{%- for tool in tools or [] -%}",
            ),
            "functiongemma",
        ),
        (FUNCTIONGEMMA.replace("| upper", ""), "functiongemma"),
        ("{{ messages }}", "gemma3"),
        ("{% broken", "gemma3"),
        ("", "gemma3"),
        ("{{ messages[0].content.__class__ }}", "gemma3"),
    ],
)
def test_a_changed_one_is_refused(template: str, nearest: str) -> None:
    """With what was found, and the ways out."""
    with pytest.raises(UnknownTemplate) as caught:
        recognise_template(template, "gemma3")
    message = str(caught.value)
    assert f"model.chat_template={nearest} (known: gemma, gemma3, gemma3n, functiongemma, gemma4_v1" in message
    assert f"{len(template):,} characters" in message and "chat_template.jinja" in message
    with pytest.raises(UnknownTemplate):
        form_of(SimpleNamespace(chat_template=template))


def test_every_change_above_is_one() -> None:
    """So the test above can fail."""
    assert recognise_template(published("gemma3").replace("| trimm", ""), "gemma") is FORMS["gemma3"]


def test_a_tokenizer_without_a_template() -> None:
    with pytest.raises(UnknownTemplate, match="has no chat template"):
        form_of(SimpleNamespace(chat_template=None))


def test_the_embedded_model_carries_the_served_template() -> None:
    """If not: save its tokenizer again with `served_template()`; the weights don't hang on it."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    assert tokenizer.chat_template == served_template() == served_template("gemma3")
    assert form_of(tokenizer) is FORMS["gemma3"]


@each_form
def test_tokens(name: str) -> None:
    """Each token is needed; those that mean something in an answer, and the stop tokens, are among them."""
    form = FORMS[name]
    assert set(form.answer_tokens) | set(form.stop_tokens) | {form.bos_token} <= set(form.needed_tokens)
    assert form.name == name
