"""TranslateGemma's chat: a user's message is one text or one image, and says from which language into which.

No copy of the published template is available, so none is written here: it is used as it stands beside the checkpoint's
tokenizer, and is known by the names of the two fields that it reads.
"""

from __future__ import annotations

from typing import Any

from gemma_tune.chat.forms import Unrenderable
from gemma_tune.config.data import LANGUAGES


def translates(template: str) -> bool:
    """Whether a chat template reads the two languages of a message."""
    return all(name in template for name in LANGUAGES)


def names_languages(message: dict[str, Any]) -> bool:
    """Whether a part of a message says one of the languages."""
    content = message.get("content")
    return isinstance(content, list) and any(not part.keys().isdisjoint(LANGUAGES) for part in content)


def translated_part(part: str, source: str, target: str) -> list[dict[str, str]]:
    """The content of a user's message: a text, from one language into another."""
    return [{"type": "text", LANGUAGES[0]: source, LANGUAGES[1]: target, "text": part}]


def greeting(translating: bool) -> str | list[dict[str, str]]:
    """The content of a message that stands in commands to copy."""
    return translated_part("Hello!", "en", "de") if translating else "Hello!"


def check_parts(content: Any) -> None:
    """Raises Unrenderable if a user's message isn't one part that says its languages."""
    if not isinstance(content, list) or len(content) != 1 or any(not content[0].get(name) for name in LANGUAGES):
        raise Unrenderable(
            "this model translates: a message of the user's is one text or one image with its languages, "
            "{'type': 'text', 'source_lang_code': 'en', 'target_lang_code': 'de', 'text': …}; or a row has the fields "
            "source_lang_code, target_lang_code, text and translation."
        )
