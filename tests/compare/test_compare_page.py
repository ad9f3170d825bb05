"""The comparison as a page and as Markdown: every number and every differing row, whatever the texts hold."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from media_files import picture
from page_of import Page

from gemma_tune.compare.comparison import Comparison, compare_models
from gemma_tune.compare.results import ModelResults
from gemma_tune.compare.sections import PAGE_MARK, write_comparison
from gemma_tune.compare.wording import Wording
from gemma_tune.evals.statistics import Interval
from gemma_tune.page.charts import Dot, interval_chart

EVIL = (
    "</pre></details><script>alert(1)</script><b>bold</b> &amp; ```\n# no title\n| a | b |\n"
    "[x](http://x) \u202eabc\x1b[31m \ud83d"
)


def measured(name: str, right: list[int], losses: list[float], **more: Any) -> ModelResults:
    answers = [
        {"id": f"q{n}", "score": float(r), "prompt": f"Question {n}?", "wanted": f"{n}", "answer": f"{n * r}", **more}
        for n, r in enumerate(right)
    ]
    texts = [{"id": f"t{n}", "score": x, "weight": 10 + n, "prompt": f"Text {n}"} for n, x in enumerate(losses)]
    figures = {"test_exact_match": sum(right) / len(right), "perplexity": 7.5}
    return ModelResults(name, figures, {"test_exact_match": answers, "held_out_loss": texts})


BASE = measured("base", [0] * 10 + [1] * 10, [1.5 + n / 10 for n in range(12)])
TUNED = measured("runs/tuned", [0] * 2 + [1] * 17 + [0], [1.25 + n / 10 + n % 3 / 100 for n in range(12)])


def page_of(comparison: Comparison, file: Path) -> Page:
    write_comparison(comparison, file.with_suffix(".md"))
    return Page(str(file))


def markdown(comparison: Comparison, tmp_path: Path) -> str:
    write_comparison(comparison, tmp_path / "comparison.md")
    return (tmp_path / "comparison.md").read_text("utf-8")


def parsed(text: str) -> list[Token]:
    """Markdown as CommonMark and its tables say it."""
    return MarkdownIt("commonmark").enable("table").parse(text)


@pytest.fixture
def shown(tmp_path: Path) -> Page:
    return page_of(compare_models([BASE, TUNED]), tmp_path / "page.html")


def test_every_number_is_on_the_page(shown: Page) -> None:
    """As they are computed by hand."""
    assert "50.0% 29.9 to 70.1" in shown.text  # Wilson, 10 of 20
    assert "85.0% 64.0 to 94.8" in shown.text  # and 17 of 20
    assert "+35.0 points +5.4 to +58.2" in shown.text  # Bonett and Price: 7/22 ± 1.96 √((11/22 - (7/22)²) / 22)
    assert "better / worse / same" in shown.text and "8 / 1 / 11" in shown.text
    assert "McNemar's exact test: p = 0.039" in shown.text  # 20 / 512
    assert "runs/tuned is better than base" in shown.text
    assert "12 rows; lower is better" in shown.text and "20 rows; higher is better" in shown.text
    assert "perplexity 7.5 7.5" in shown.text
    assert "paired t-test" in shown.text
    assert "Holm’s correction keeps the chance of any false verdict at 5%" in shown.text


def test_rows_that_differ_are_shown(shown: Page) -> None:
    """By who is right, the largest group first, then losses, the most different first."""
    tuned_alone, base_alone, losses = shown.rows[:8], shown.rows[8:9], shown.rows[9:]
    assert [re.search(r"Question (\d+)", row["text"])[1] for row in tuned_alone] == [str(n) for n in range(2, 10)]
    assert "Question 19?" in base_alone[0]["text"] and "✓✗" in base_alone[0]["summary"]
    assert all("✗✓" in row["summary"] for row in tuned_alone)
    assert "runs/tuned right, base wrong (8)" in shown.text and "base right, runs/tuned wrong (1)" in shown.text
    assert "They differ on 9 of 20 rows." in shown.text
    assert "runs/tuned ✓ right" in shown.text and "base ✗ wrong" in shown.text
    assert len(losses) == 12
    apart = [(10 + n) * (0.25 - n % 3 / 100) for n in range(12)]
    order = sorted(range(12), key=lambda n: -apart[n])
    assert [re.search(r"Text (\d+)", row["text"])[1] for row in losses] == [str(n) for n in order]
    assert "1.5" in losses[order.index(0)]["summary"] and "1.25" in losses[order.index(0)]["summary"]


def test_nothing_is_loaded_or_run(shown: Page) -> None:
    """One file: no script, no address, no picture from elsewhere; and both colour schemes."""
    assert PAGE_MARK in shown.source
    assert "default-src 'none'; style-src 'unsafe-inline'" in shown.source
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    for _, attributes in shown.tags:
        assert not {"src", "srcset", "style", "onclick"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    style = shown.source[shown.source.index("<style>") : shown.source.index("</style>")]
    assert "prefers-color-scheme: dark" in style and "url(" not in style and "@import" not in style
    used = set(re.findall(r"var\((--[a-z-]+)\)", style))
    assert used and all(f"{name}:" in style for name in used)
    links = {a["href"] for tag, a in shown.tags if tag == "a"}
    assert links == {f"#{a['id']}" for tag, a in shown.tags if tag == "section" and "id" in a}


def test_texts_stay_texts(tmp_path: Path) -> None:
    """Whatever models say, and whatever they are called."""
    evil = measured(f"{EVIL} 1", [1, 0, 1], [1.0, 2.0], answer=EVIL, wanted=EVIL)
    other = measured(f"{EVIL} 2", [0, 1, 1], [1.0, 3.0], answer=EVIL)
    comparison = compare_models([evil, other])
    seen = page_of(comparison, tmp_path / "page.html")
    assert {tag for tag, _ in seen.tags}.isdisjoint({"script"})
    names = {"\u202e": "‹U+202E›", "\x1b": "‹U+001B›", "\ud83d": "‹U+D83D›"}
    said = EVIL.translate(str.maketrans(names))
    assert seen.rows[0]["text"].count(said) == 3
    assert "\u202e" not in seen.source and "\x1b" not in seen.source
    tokens = [t for token in parsed(markdown(comparison, tmp_path)) for t in (token, *(token.children or ()))]
    assert not {token.type for token in tokens} & {"html_block", "html_inline", "link_open", "image", "code_inline"}
    blocks = [t.content for t in tokens if t.type == "fence"]
    assert blocks.count(f"{said}\n") == 6  # two rows, each with two answers and what is wanted
    assert " ".join(f"{said} 1".replace("\n", "⏎").split()) in [t.content for t in tokens if t.type == "text"]


def test_long_texts_are_folded(tmp_path: Path) -> None:
    """All of a text is there, unless it is beyond what a browser draws; the folded part shows its beginning."""
    words = " ".join(str(n) for n in range(1000))
    one, other = (measured(name, r, [1.0], answer=words) for name, r in (("a", [0]), ("b", [1])))
    seen = page_of(compare_models([one, other]), tmp_path / "page.html")
    assert [a.get("class") for tag, a in seen.tags if tag == "details"].count("long") == 2
    assert seen.source.count(f">\n{words}</pre>") == 2
    assert f"show all {len(words):,} characters" in seen.text
    one, other = (measured(name, r, [1.0], answer="word " * 20_000) for name, r in (("a", [0]), ("b", [1])))
    text = page_of(compare_models([one, other]), tmp_path / "page.html").text
    assert "79,999 characters are left out here" in text and len(text) < 60_000
    assert len(markdown(compare_models([one, other]), tmp_path)) < 10_000


def test_many_rows(tmp_path: Path) -> None:
    """The first ones of each group, and how many there are."""
    one, other = (measured(name, r, [1.0]) for name, r in (("a", [0] * 900 + [1] * 300), ("b", [1] * 900 + [0] * 300)))
    seen = page_of(compare_models([one, other]), tmp_path / "page.html")
    assert len(seen.rows) == 200
    assert "b right, a wrong (the first 100 of 900)" in seen.text
    assert "a right, b wrong (the first 100 of 300)" in seen.text
    text = markdown(compare_models([one, other]), tmp_path)
    assert text.count("prompt:") == 20 and "(the first 10 of 900)" in text


def test_pictures_stand_beside_the_answers(tmp_path: Path) -> None:
    """As one of the models has stored them; rows match by their ids, whatever else they hold."""
    file = picture(tmp_path / "meter.png", 300, 100)
    media = [{"kind": "image", "path": str(file)}, {"kind": "image", "path": str(tmp_path / "gone.png")}]
    comparison = compare_models([BASE, measured("tuned", [0] * 2 + [1] * 18, [1.0] * 12, media=media)])
    seen = page_of(comparison, tmp_path / "page.html")
    pictures = [attributes["alt"] for tag, attributes in seen.tags if tag == "img"]
    assert pictures == ["image meter.png"] * 8 and "They differ on 8 of 20 rows." in seen.text
    assert seen.text.count("image gone.png the file isn't there any more") == 8
    text = markdown(comparison, tmp_path)
    assert text.count("media: \\[image meter.png\\] \\[image gone.png\\]") == 8 and "base64" not in text


def test_few_rows(tmp_path: Path) -> None:
    """One row, rows without texts, and rows that are all the same make a page, too."""
    one = ModelResults("a", {}, {"loss": [{"id": "1", "score": 0.0}], "acc": [{"id": "1", "score": 1.0}]})
    other = ModelResults("b", {}, {"loss": [{"id": "1", "score": 2.0}], "acc": [{"id": "1", "score": 1.0}]})
    comparison = compare_models([one, other])
    seen = page_of(comparison, tmp_path / "page.html")
    assert "+2.0000 –" in seen.text and "0 –" in seen.text and "1 row; lower is better" in seen.text
    assert "All models have the same score on each of the 1 rows." in seen.text
    for text in (seen.source, markdown(comparison, tmp_path)):
        assert not re.search(r"\b(nan|inf|None)\b", text)


def test_many_models(tmp_path: Path) -> None:
    models = [measured(f"model {n}", [1] * n + [0] * (8 - n), [1.0 + n, 2.0]) for n in range(8)]
    seen = page_of(compare_models(models), tmp_path / "page.html")
    assert seen.source.count("<circle") == 2 * (8 + 7)
    assert "model 7 right, model 0, model 1, model 2, model 3, model 4, model 5 and model 6 wrong (1)" in seen.text


def test_markdown_tables(tmp_path: Path) -> None:
    """Two, with a cell in every place; the numbers are those of the page."""
    text = markdown(compare_models([BASE, TUNED]), tmp_path)
    types = [token.type for token in parsed(text)]
    assert (types.count("table_open"), types.count("td_open")) == (2, 4 * 7 + 3)
    assert "85.0% (64.0 to 94.8) | +35.0 points (+5.4 to +58.2) | better | 0.039 | 8 / 1 / 11 |" in text
    assert "### runs/tuned right, base wrong (8)" in text and text.startswith("# 2 models on the same rows\n")


def test_digits_are_those_that_are_sure() -> None:
    (shares, losses) = compare_models([BASE, TUNED]).figures
    wording = Wording(shares)
    assert wording.value(0.12345) == "12.3" and wording.value(-0.5, "+") == "−50.0"
    assert wording.value(0.0) == wording.value(-0.0001, "+") == "0" or wording.value(-0.0001, "+") == "0.0"
    test = losses.model_stats[1].test
    assert test is not None and test.difference.low is not None and test.difference.high is not None
    half = (test.difference.high - test.difference.low) / 2
    assert 1e-3 < half < 1e-2  # so that two digits of it are the third and fourth
    assert Wording(losses).value(1.23456789) == "1.2346"


# The drawing


def axis(svg: str) -> tuple[float, float]:
    """Slope and offset from places to values, from the labels of the axis."""
    labels = re.findall(r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([−\d.]+)</text>', svg)
    places = [(float(x), float(label.replace("−", "-"))) for x, label in labels]
    (x0, v0), (x1, v1) = places[0], places[-1]
    slope = (v1 - v0) / (x1 - x0)
    for x, value in places:
        assert v0 + slope * (x - x0) == pytest.approx(value, abs=abs(v1 - v0) / 1000)
    return slope, v0 - slope * x0


@pytest.mark.parametrize("around_zero", [True, False])
@pytest.mark.parametrize(
    ("low", "mean", "high"),
    [(0.2, 0.5, 0.7), (-3, -2, -1), (1e-5, 2e-5, 4e-5), (99.5, 100, 100.1), (0.5, 0.5, 0.5), (0, 0, 0), (-9e6, 0, 1e6)],
)
def test_dots_stand_where_their_values_are(low: float, mean: float, high: float, around_zero: bool) -> None:
    dots = [Dot("a", Interval(mean, low, high), "said"), Dot("b", Interval(mean, None, None), "said", "better")]
    svg = interval_chart(dots, "Title", "caption", lambda v, n: f"{v:.{n}f}".replace("-", "−"), around_zero)
    slope, offset = axis(svg)
    assert slope > 0
    close = pytest.approx
    drawn = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    left, right = map(float, re.findall(r'd="M([\d.]+) \d+v10m0-5H([\d.]+)m0-5v10"', svg)[0])
    for x, value in [(left, low), (right, high), *((x, mean) for x in drawn)]:
        assert 0 <= x <= 400
        assert slope * x + offset == close(value, abs=0.2 * slope)
    assert len(drawn) == 2 and svg.count("<path") == 1 and 'class="dot better"' in svg
    zero = re.findall(r'<line class="zero" x1="([\d.]+)"', svg)
    assert len(zero) == around_zero
    assert all(math.isclose(slope * float(x) + offset, 0, abs_tol=0.2 * slope) for x in zero)


def test_long_names_have_a_line_of_their_own() -> None:
    """Names say what differs, from their first letter on; only beyond the chart's width is the begin left out."""
    names = ["logging_steps=4, formats=[merged], seed=42", "a", f"runs/{'x' * 60}"]
    dots = [Dot(name, Interval(0.5, 0.25, 0.75), "0.50 (0.25 to 0.75)") for name in names]
    alone, both = (
        interval_chart(some, "Title", "caption", lambda v, n: f"{v:.{n}f}", False) for some in (dots[1:2], dots)
    )
    places = re.findall(r'<text class="name" x="[\d.]+" y="([\d.]+)" text-anchor="(start|end)">([^<]*)<', both)
    assert [said for _, anchor, said in places if anchor == "start"] == [*names[:2], f"…{names[2][-50:]}"]
    heights = [float(y) for y, _, _ in places]
    assert heights == sorted(set(heights))  # no text beside or above another
    beside = re.findall(r'<text class="name" x="[\d.]+" y="([\d.]+)"', alone)
    assert beside[0] == beside[1]
