"""Our chat templates: one file a family, read in two ways."""

from __future__ import annotations

import functools
import re
from pathlib import Path

# Gemma's <eos> never stands in a chat: this is the token that ends an answer.
STOP_TOKEN = "<end_of_turn>"

_GENERATION_TAG = re.compile(r"\s*\{%-? *(?:end)?generation *-?%\}\s*")


@functools.cache
def training_template(family: str = "gemma3") -> str:
    """The template with `{% generation %}` around what is trained on.

    Args:
        family: Name of a file of `templates/`.
    """
    return (Path(__file__).parent / "templates" / f"{family}.jinja").read_text(encoding="utf-8")


@functools.cache
def served_template(family: str = "gemma3") -> str:
    """The same template as it is saved with a model: the tag is Transformers' own, engines need not know it.

    It renders the same text to the byte: every tag of the file trims the blanks around it.
    """
    body = training_template(family).partition("-#}")[2].lstrip()
    return _GENERATION_TAG.sub("\n", body)
