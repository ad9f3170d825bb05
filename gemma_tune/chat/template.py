"""Our chat templates: one file per family, for training and for serving."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from gemma_tune.chat.forms import FORMS, ChatForm

_GENERATION_TAG = re.compile(r"\s*\{%-? *(?:end)?generation *-?%\}\s*")

# Gemma 3n's turns are those of Gemma 3, with another token for images, and one for audio.
_IMAGE = "{{- '<start_of_image>' -}}"
_IMAGE_AND_AUDIO = """{{- '<image_soft_token>' -}}
                {%- elif item['type'] == 'audio' -%}
                    {{- '<audio_soft_token>' -}}"""


def _form(form: str | ChatForm) -> ChatForm:
    return FORMS[form] if isinstance(form, str) else form


@functools.cache
def training_template(form: str | ChatForm = "gemma3") -> str:
    """The template with `{% generation %}` around what is trained on.

    Args:
        form: A chat format, or its name.
    """
    form = _form(form)
    text = (Path(__file__).parent / "templates" / f"{form.file}.jinja").read_text(encoding="utf-8")
    if form.name == "gemma3n":
        text = text.replace(_IMAGE, _IMAGE_AND_AUDIO)
    if form.revision:
        closes = str(form.closes_thinking).lower()
        text = f"{{%- set revision = {form.revision} -%}}\n{{%- set closes_thinking = {closes} -%}}\n{text}"
    return text


@functools.cache
def served_template(form: str | ChatForm = "gemma3") -> str:
    """The template as it is saved with a model, without the tag, which engines other than Transformers don't know.

    It renders exactly the same text, since every tag of the file trims the blanks around it.

    Args:
        form: A chat format, or its name.
    """
    first, _, rest = training_template(form).partition("{#-")
    body = rest.partition("-#}")[2].lstrip()
    return first + _GENERATION_TAG.sub("\n", body)
