"""Whether a completion has a form: tags, thinking before the answer, or a pattern.

Gamed by saying anything at all in the form; give it a small weight beside a reward of what is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gemma_tune.config.reward import FormatReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Reward, per_completion


def _says(text: str) -> bool:
    """Whether there is anything to be seen in it: blanks, zero-width and control characters are nothing."""
    return any(mark.isprintable() and not mark.isspace() for mark in text)


def has_tags(text: str, tags: Sequence[str]) -> bool:
    """Whether a text is `<a>…</a> <b>…</b>` for the tags a and b: each once, with something in it, nothing around."""
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    rest = text.strip()
    for tag in tags:
        if not rest.startswith(f"<{tag}>"):
            return False
        within, closed, rest = rest.removeprefix(f"<{tag}>").partition(f"</{tag}>")
        if not closed or not _says(within) or any(mark in within for mark in marks):
            return False
        rest = rest.lstrip()
    return not rest


def _checked_tags(tags: Sequence[str]) -> None:
    wrong = [tag for tag in tags if not re.fullmatch(r"[A-Za-z][\w.-]*", tag)]
    twice = [tag for tag in tags if tags.count(tag) > 1]
    if not tags:
        raise UserError("reward.format.tags is empty; name a tag or more, for example [think, answer].")
    if wrong:
        raise UserError(f"reward.format.tags: {wrong[0]!r} is no name of a tag; write it without < and >.")
    if twice:
        raise UserError(f"reward.format.tags: {twice[0]} is there twice, and each tag may stand once; leave one out.")


def _pattern(regex: str | None) -> re.Pattern[str]:
    if not regex:
        raise UserError("reward.format.regex is not set, and reward.format.form=regex needs it; write the pattern.")
    try:
        return re.compile(regex, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"reward.format.regex: {regex!r} is no regular expression ({error}); mend it.") from error


def prepare(options: FormatReward) -> Reward:
    """1 where the completion has the form, else 0; with tags and a pattern it is the text without thinking and calls.

    A pattern that takes for ever over some text is stopped by `reward.timeout`.

    Raises:
        UserError: Tags that can't be ones, or a pattern that isn't one.
    """
    if options.form == "tags":
        _checked_tags(options.tags)
        return per_completion(lambda said, record: float(has_tags(said.text, options.tags)))
    if options.form == "thinking":
        return per_completion(lambda said, record: float(_says(said.thinking) and _says(said.text)))
    if options.form == "regex":
        pattern = _pattern(options.regex)
        return per_completion(lambda said, record: float(pattern.fullmatch(said.text) is not None))
    raise UserError(f"reward.format.form={options.form}: there is no such form; use tags, thinking or regex.")
