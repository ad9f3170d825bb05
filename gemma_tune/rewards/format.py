"""Whether a completion has a given format: tags, thinking before the answer, or a regular expression.

Gamed by any text in that format; give it a small weight beside a reward for the content.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gemma_tune.config.reward import FormatReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Reward, per_completion


def _is_visible(text: str) -> bool:
    """Whether a text has visible characters: not only blanks, zero-width or control characters."""
    return any(mark.isprintable() and not mark.isspace() for mark in text)


def has_tags(text: str, tags: Sequence[str]) -> bool:
    """Whether a text is `<a>…</a> <b>…</b>` for the tags a and b: each once and not empty, with nothing around."""
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    rest = text.strip()
    for tag in tags:
        if not rest.startswith(f"<{tag}>"):
            return False
        within, closed, rest = rest.removeprefix(f"<{tag}>").partition(f"</{tag}>")
        if not closed or not _is_visible(within) or any(mark in within for mark in marks):
            return False
        rest = rest.lstrip()
    return not rest


def _checked_tags(tags: Sequence[str]) -> None:
    wrong = [tag for tag in tags if not re.fullmatch(r"[A-Za-z][\w.-]*", tag)]
    twice = [tag for tag in tags if tags.count(tag) > 1]
    if not tags:
        raise UserError("reward.format.tags is empty; name a tag or more, for example [think, answer].")
    if wrong:
        raise UserError(f"reward.format.tags: {wrong[0]!r} is not a tag name; write it without < and >.")
    if twice:
        raise UserError(f"reward.format.tags: {twice[0]} is listed twice; list each tag once.")


def _pattern(regex: str | None) -> re.Pattern[str]:
    if not regex:
        raise UserError("reward.format.regex is not set, and reward.format.form=regex needs it; write the pattern.")
    try:
        return re.compile(regex, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"reward.format.regex: {regex!r} is not a regular expression ({error}); fix it.") from error


def prepare(options: FormatReward) -> Reward:
    """1 if the completion has the format, else 0; tags and patterns are matched on the text without thinking and calls.

    A pattern that backtracks without end is stopped by `reward.timeout`.

    Raises:
        UserError: Invalid tag names, or an invalid pattern.
    """
    if options.form == "tags":
        _checked_tags(options.tags)
        return per_completion(lambda answer, record: float(has_tags(answer.text, options.tags)))
    if options.form == "thinking":
        return per_completion(lambda answer, record: float(_is_visible(answer.thinking) and _is_visible(answer.text)))
    if options.form == "regex":
        pattern = _pattern(options.regex)
        return per_completion(lambda answer, record: float(pattern.fullmatch(answer.text) is not None))
    raise UserError(f"reward.format.form={options.form}: there is no such form; use tags, thinking or regex.")
