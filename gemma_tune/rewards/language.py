"""Lingua's confidence that a completion is in the wanted language.

Gamed by any words of the language, even nonsense; short texts, numbers and code can hardly be classified.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gemma_tune.config.reward import LanguageReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion, require_package

if TYPE_CHECKING:
    from lingua import Language, LanguageDetector


def _language(code: str) -> Language:
    """Raises ValueError for an unknown language."""
    from lingua import IsoCode639_1
    from lingua import Language as Languages

    return Languages.from_iso_code_639_1(IsoCode639_1.from_str(code.strip()))


@lru_cache(maxsize=1)
def _detector() -> LanguageDetector:
    """A detector of all languages; it uses trigrams only: about 60 MB, where all n-grams take 900 MB."""
    from lingua import LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def last_user_text(prompt: Sequence[dict[str, Any]]) -> str:
    """The text of the last user message."""
    content = next((m.get("content") for m in reversed(prompt) if m.get("role") == "user"), None) or ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text") or "") for part in content)


def prepare(options: LanguageReward) -> Reward:
    """Lingua's confidence, from 0 to 1, that the text is in the wanted language; 0 if it can't tell (no letters).

    None if the language is taken from the prompt and lingua can't tell it (a prompt of numbers, for example).

    Raises:
        UserError: Lingua is not installed, or doesn't know the language.
        ValueError: From the reward: lingua doesn't know the row's `language`.
    """
    require_package("language", "lingua")
    fixed: Language | None = None
    if options.language is not None:
        try:
            fixed = _language(options.language)
        except ValueError as error:
            raise UserError(
                f"reward.language.language={options.language}: lingua knows no such language; "
                "write its ISO 639-1 code, for example de."
            ) from error

    @lru_cache(maxsize=4096)
    def detected(text: str) -> Language | None:
        return _detector().detect_language_of(text)

    def wanted(record: Task) -> Language | None:
        if fixed is not None:
            return fixed
        code = record.row.get("language")
        if code is None:
            return detected(_clean(last_user_text(record.prompt)))
        try:
            return _language(str(code))
        except ValueError as error:
            raise ValueError(
                f"{record.where}: language: lingua knows no {code!r}; write an ISO 639-1 code, for example de."
            ) from error

    def score(completion: Completion, record: Task) -> float | None:
        language = wanted(record)
        return None if language is None else _detector().compute_language_confidence(_clean(completion.text), language)

    return per_completion(score)
