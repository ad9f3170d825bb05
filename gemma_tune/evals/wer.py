"""Word error rate of transcripts, as `jiwer` computes it: words to insert, delete or replace by words to be said."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gemma_tune.errors import UserError
from gemma_tune.evals.base import Evaluator, Inputs
from gemma_tune.evals.references import prepare_scored

_NO_JIWER = "eval.evaluators: wer needs jiwer, which is not installed: pip install 'gemma_tune[audio]'."


def normalizer_of(name: str) -> Callable[[str], str]:
    """What `eval.wer.normalizer` does to a text; in any case words stand one blank apart."""
    if name == "none":
        return lambda text: " ".join(text.split())
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    basic = BasicTextNormalizer()
    return lambda text: " ".join(basic(text).split())


def word_errors(answer: str, references: Sequence[str]) -> tuple[int, float]:
    """Errors against the nearest reference, and the mean number of words of all, as the translation edit rate has it.

    That number is the same for every answer, so that rows weigh the same for every model.

    Args:
        answer: The transcript, with one blank between words.
        references: What was said, so, too; none is empty.
    """
    import jiwer

    found = [jiwer.process_words(reference, answer) for reference in references]
    words = sum(len(one.references[0]) for one in found) / len(found)
    return min(one.substitutions + one.deletions + one.insertions for one in found), words


def prepare(inputs: Inputs) -> Evaluator:
    """`<name>_wer` of greedy answers to each of `data.test_files`: all errors by all words of the references.

    The score of a row is its own rate, its weight the number of words of its reference (of several, their mean). An
    answer that was cut off counts as it stands.

    Raises:
        UserError: jiwer isn't installed, a row has no references, or one without words.
    """
    try:
        import jiwer  # noqa: F401
    except ImportError as error:
        raise UserError(_NO_JIWER) from error
    name = inputs.cfg.eval.wer.normalizer
    tidy = normalizer_of(name)

    def judge(answer: str, references: list[str], stopped: bool) -> tuple[float, float]:
        errors, words = word_errors(tidy(answer), [tidy(reference) for reference in references])
        return errors / words, words

    def check(references: list[str]) -> str | None:
        empty = next((reference for reference in references if not tidy(reference)), None)
        if empty is None:
            return None
        return f"the reference {empty!r} holds no words (eval.wer.normalizer={name}), so that no rate can be given."

    return prepare_scored(inputs, "wer", judge, check)
