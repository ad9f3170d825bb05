"""How surely a completion is in the wanted language, by lingua.

Gamed by any words of the language, sense or none; short texts, numbers and code are hardly told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gemma_tune.config.reward import LanguageReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion

if TYPE_CHECKING:
    from lingua import Language, LanguageDetector


def _language(code: str) -> Language:
    """Raises ValueError where there is no such language."""
    from lingua import IsoCode639_1
    from lingua import Language as Languages

    return Languages.from_iso_code_639_1(IsoCode639_1.from_str(code.strip()))


@lru_cache(maxsize=1)
def _detector() -> LanguageDetector:
    """Of all languages; by trigrams only, which takes some 60 MB where all n-grams take 900."""
    from lingua import LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def asked(prompt: Sequence[dict[str, Any]]) -> str:
    """The text of the last message of the user's."""
    content = next((m.get("content") for m in reversed(prompt) if m.get("role") == "user"), None) or ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text") or "") for part in content)


def prepare(options: LanguageReward) -> Reward:
    """Lingua's confidence, from 0 to 1, that the text is in the wanted language; 0 where it can't tell (no letters).

    None where the language is to be the prompt's and lingua can't tell that (a prompt of numbers, say).

    Raises:
        UserError: Lingua is missing, or a language that it doesn't know.
        ValueError: From the reward: the row's `language` is none that it knows.
    """
    try:
        import lingua  # noqa: F401
    except ImportError as error:
        raise UserError("reward.language: lingua is not installed; pip install 'gemma_tune[rl]'.") from error
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
            return detected(_clean(asked(record.prompt)))
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
