"""Answers of models to the same prompt, side by side, as HTML."""

from __future__ import annotations

from gemma_tune.page.blocks import SampleAnswer, SampleRow
from gemma_tune.page.media import media_figures
from gemma_tune.page.text import escaped

_LONG, _LINES = 700, 12  # a text of more characters or lines is folded
_BEGINNING = 300  # characters of it that are shown even so
_MOST = 20_000  # characters of a text at most: a browser must draw all rows
_PROMPT = 160  # characters of the prompt in a folded row; its end, where the question is


def sample(number: int, row: SampleRow, unfolded: bool) -> str:
    """A row that unfolds: the prompt, the reference answer, and the answers of the models."""
    prompt = " ".join((row.prompt or row.id[0])[-2 * _PROMPT :].split())[-_PROMPT:]
    signs = "".join(
        f'<span class="sign {_kind(answer)}" title="{escaped(answer.name)}: {escaped(answer.mark)}">'
        f"{escaped(answer.sign)}</span>"
        for answer in row.answers
        if answer.sign
    )
    texts = (("prompt", row.prompt), ("reference", row.reference))
    above = media_figures(row.media) + "".join(_part(name, text) for name, text in texts if text is not None)
    answers = "".join(
        _part(f"{escaped(answer.name)} <small>{escaped(answer.facts)}</small>", answer.text, _kind(answer))
        for answer in row.answers
    )
    name, facts = row.id
    note = f'<p class="quiet"><small>row <code>{escaped(name)}</code>{escaped(facts)}</small></p>' if name else ""
    return (
        f'<details class="row"{" open" if unfolded else ""}><summary><b>{number:,}</b>'
        f'<span class="ask" dir="auto">{escaped(prompt)}</span>{signs}</summary><div class="parts">{above}'
        f'<div class="answers">{answers}</div>{note}</div></details>'
    )


def _kind(answer: SampleAnswer) -> str:
    return answer.mark if answer.mark in ("right", "wrong") else ""


def _part(title: str, text: str | None, kind: str = "") -> str:
    """A text below its title, folded where it is long; the title alone where there is no text."""
    if text is None:
        return f'<div class="part {kind}"><b>{title}</b></div>'
    if not text.strip():
        return f'<div class="part {kind}"><b>{title} <small>(empty)</small></b></div>'
    whole = _pre(text)
    if len(text) > _LONG or text.count("\n") >= _LINES:
        begin = "\n".join(text[:_BEGINNING].split("\n")[: _LINES // 2])
        whole = (
            f'<details class="long"><summary>{_pre(f"{begin} …")}<span class="more">show all {len(text):,} characters'
            f'</span><span class="less">show less</span></summary>{whole}</details>'
        )
    return f'<div class="part {kind}"><b>{title}</b>{whole}</div>'


def _pre(text: str) -> str:
    if len(text) > _MOST:
        half = _MOST // 2
        text = f"{text[:half]}\n[… {len(text) - _MOST:,} characters are left out here …]\n{text[-half:]}"
    # Browsers drop a line break at the start of <pre>, hence one more
    return f'<pre dir="auto">\n{escaped(text)}</pre>'
