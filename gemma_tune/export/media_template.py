"""The chat template of a GGUF file beside an mmproj file: what training writes round a medium, llama.cpp writes, too.

Transformers' processors replace a template's placeholder of a medium; Gemma 3's writes two line breaks before and after
the image. llama.cpp's chat endpoint gives the template one text a message, in which a marker stands for each medium
(`<__media_…__>`, another one in each process), and replaces it by the medium alone. A template that knows nothing of it
writes no line breaks, and trims the texts round the marker as one: a tuned model that answered to 60 pictures as
in Transformers with the line breaks read none of them without.
"""

from __future__ import annotations

from typing import Any

from gemma_tune.chat import FORMS, ChatForm, UnknownTemplate, form_of, without_marks
from gemma_tune.chat.own import OwnForm

# Writes a text with each part between two media trimmed, as the template trims the parts of a message in Transformers,
# and a marker between `around` and `around`
_MACRO = """\
{%- macro with_media(text, around) -%}
    {%- if '<__media' not in text or '__>' not in text -%}{{- text | trim -}}{%- else -%}
    {%- for part in text.split('<__media') -%}
        {%- if loop.first -%}{{- part | trim -}}
        {%- elif '__>' in part -%}
            {{- around + '<__media' + part.split('__>')[0] + '__>' + around -}}
            {{- part.split('__>')[1:] | join('__>') | trim -}}
        {%- else -%}{{- '<__media' + part -}}
        {%- endif -%}
    {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""
# Where each template's file writes a text of a user, and with the macro; `revision` 1 is Gemma 4's first template
_GEMMA3 = ("{{- message['content'] | trim -}}", "{{- with_media(message['content'], AROUND) -}}")
_GEMMA4 = ("else message['content'] | trim -%}", "else with_media(message['content'], AROUND) -%}")
_TEXTS = {"gemma3": _GEMMA3, "gemma4": _GEMMA4}
_BREAKS = "\\n\\n"


def template_for_llama_cpp(tokenizer: Any, media: bool) -> str:
    """The template that a GGUF file holds.

    Args:
        tokenizer: The tokenizer with the chat template that the model is served with.
        media: Whether an mmproj file goes with it.
    """
    template: str = tokenizer.chat_template
    form = _known(tokenizer) if media else None
    if form is None:
        return without_marks(template)
    old, new = _TEXTS[form.file]
    if template.count(old) != 1:
        raise ValueError(f"{form.name}: the template has no one place for the texts of a user")
    breaks = form.file == "gemma3" or form.revision == 1
    return _MACRO + without_marks(template.replace(old, new.replace("AROUND", f"'{_BREAKS if breaks else ''}'")))


def writes_media(tokenizer: Any) -> bool:
    """Whether `template_for_llama_cpp` makes llama.cpp write round a medium what training does."""
    return _known(tokenizer) is not None


def _known(tokenizer: Any) -> ChatForm | None:
    """The form of a template of ours that has a place for media; None of a template of the user's own."""
    if not tokenizer.chat_template:
        return None
    try:
        form = form_of(tokenizer)
    except UnknownTemplate:
        return None
    return form if not isinstance(form, OwnForm) and form.file in _TEXTS and form.name in FORMS else None
