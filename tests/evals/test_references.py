"""Scores against several references: equal to published implementations, and what is refused."""

from __future__ import annotations

import random
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from evals.test_answers import Said

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.config.eval import WerConfig
from gemma_tune.data.records import Record
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.evals.anls import anls, edit_distance
from gemma_tune.evals.evaluation import Evaluation, as_text, conditions_of, evaluate, prepare_evaluators
from gemma_tune.evals.references import references_of
from gemma_tune.evals.statistics import interval
from gemma_tune.evals.vqa_accuracy import normalized, vqa_accuracy
from gemma_tune.evals.wer import normalizer_of, word_errors
from gemma_tune.steps.data import NO_ROWS, Data, rows_of_tests
from gemma_tune.validation.best import best_problems

# The contractions of the VQA evaluation that a word in small letters can have
PUBLISHED = """
aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't havent:haven't
hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's isnt:isn't itd:it'd
itd've:it'd've it'dve:it'd've itll:it'll let's:let's maam:ma'am mightnt:mightn't mightnt've:mightn't've
mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've she'dve:she'd've
she's:she's shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've
somebody'd:somebodyd somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll
somebodys:somebody's someoned:someone'd someoned've:someone'd've someone'dve:someone'd've someonell:someone'll
someones:someone's somethingd:something'd somethingd've:something'd've something'dve:something'd've
somethingll:something'll thats:that's thered:there'd thered've:there'd've there'dve:there'd've therere:there're
theres:there's theyd:they'd theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've
twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're
whats:what's whatve:what've whens:when's whered:where'd wheres:where's whereve:where've whod:who'd whod've:who'd've
who'dve:who'd've wholl:who'll whos:who's whove:who've whyll:why'll whyre:why're whys:why's wont:won't
wouldve:would've wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll
y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've
you'dve:you'd've youll:you'll youre:you're youve:you've
"""
CONTRACTIONS = dict(pair.split(":") for pair in PUBLISHED.split())
NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(n)
    for n, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=1)
}
TOKENS = [
    *CONTRACTIONS, *CONTRACTIONS.values(), *NUMBERS, *("a", "an", "the", "A", "The", "stop", "Stop", "sign", "dog's"),
    *("1,000", "1000", "3.5", "3.", ".5", "$5", "12:30", "e.g.", "U.S.A.", "1,,2", "x,y", "x ,", "half-way", "a/b"),
    *("é", "(left)", "[x]", '"stop"', "no!", "why?", "- ", " -", "_", "<b>", "@home", "\n", "\t", "it's", "..." * 15),
]  # fmt: skip


def texts(draw: random.Random, most: int = 4) -> str:
    return draw.choice((" ", " ", "")).join(draw.choices(TOKENS, k=draw.randint(0, most)))


def typed(draw: random.Random, text: str, alphabet: str) -> str:
    """The text with a few mistakes."""
    for _ in range(draw.choice((0, 0, 1, 2, len(text) // 2))):
        i = draw.randint(0, len(text))
        text = text[:i] + draw.choice(("", draw.choice(alphabet))) + text[i + draw.randint(0, 1) :]
    return text


def vqa_by_hand(text: str, textvqa: bool) -> str:
    """The published rules, read a character at a time."""
    if textvqa:
        text = re.sub("[,?]", "", text.lower()).replace("'s", " 's").strip()
    given = re.sub("[\n\t]", " ", text).strip()
    joined = any(
        given[i] == "," and given[i - 1].isdecimal() and given[i + 1 : i + 2].isdecimal() for i in range(1, len(given))
    )
    at_blank = {c for pair in pairwise(given) if " " in pair for c in pair}
    said, stops = "", 0
    for character in given:
        if character in ';/[]"{}()=+\\_-><@`,?!':
            said += "" if joined or character in at_blank else " "
        else:
            said += character
    kept = ""
    for i, character in enumerate(said):
        if character == "." and not said[i + 1 : i + 2].isdecimal() and stops < 32:
            stops += 1
        else:
            kept += character
    words = [NUMBERS.get(word, word) for word in kept.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def test_vqa_accuracy_equals_the_published_rules() -> None:
    """300 answers, each with the ones of ten people, by both normalizers."""
    draw = random.Random(0)
    scores = []
    for i in range(300):
        few = [texts(draw) for _ in range(draw.randint(1, 4))]
        people = draw.choices(few, k=10)
        answer = draw.choice([*few, texts(draw)]).swapcase()
        textvqa = bool(i % 2)
        given, *said = (vqa_by_hand(text, textvqa) for text in (answer, *people))
        wanted = statistics.mean(min(1, (said[:j] + said[j + 1 :]).count(given) / 3) for j in range(10))
        name = "textvqa" if textvqa else "vqa"
        assert [normalized(text, name) for text in (answer, *people)] == [given, *said], (answer, people)
        scores.append(vqa_accuracy(answer, people, name))
        assert scores[-1] == pytest.approx(wanted, abs=1e-12)
    assert len({round(score, 3) for score in scores}) > 4


def test_contractions_are_the_published_ones() -> None:
    assert {said: normalized(said, "vqa") for said in CONTRACTIONS} == CONTRACTIONS


@pytest.mark.parametrize(
    ("answers", "accuracy"),
    [(["x"] * 10, 1.0), (["x"] * 3 + ["y"] * 7, 0.9), (["x"] * 2 + ["y"] * 8, 0.6), (["x"] + ["y"] * 9, 0.3)],
)
def test_a_score_by_hand(answers: list[str], accuracy: float) -> None:
    """Three of ten: 7 times 3/3 and 3 times 2/3."""
    assert vqa_accuracy("The X.", answers) == pytest.approx(accuracy)


def table_distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Levenshtein's distance by its table (Wagner and Fischer)."""
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        row = [i]
        for j, b in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
        before = row
    return before[-1]


def test_anls_equals_the_published_package() -> None:
    published = pytest.importorskip("anls").anls_score
    draw, scores = random.Random(1), []
    for _ in range(300):
        references = [" ".join(draw.choices(("Total", "12.50", "İzmir", "a", "Straße", "of"), k=draw.randint(0, 5)))]
        references += [typed(draw, references[0], "ab ß1.") for _ in range(draw.randint(0, 3))]
        answer = typed(draw, draw.choice(references), "AB \n1İ") + " " * draw.randint(0, 2)
        scores.append(anls(answer, references))
        assert scores[-1] == pytest.approx(published(answer, references), abs=1e-12)
        assert edit_distance(answer, references[0]) == table_distance(answer, references[0])
    assert min(scores) == 0 and max(scores) == 1 and len(set(scores)) > 50
    assert anls("ab", ["ax"]) == 0 and anls("abc", ["abx"]) == pytest.approx(2 / 3)  # half of it changed is too much


def test_wer_equals_jiwer() -> None:
    """All errors by all words; and Levenshtein's table of words says the same."""
    jiwer = pytest.importorskip("jiwer")
    draw, pairs = random.Random(2), []
    for _ in range(300):
        said = " ".join(draw.choices(("the", "quick", "Brown", "fox,", "jumps", "over"), k=draw.randint(1, 12)))
        pairs.append((said, typed(draw, said, "aQ ,") or "x"))
    for name in ("none", "basic"):
        tidy = normalizer_of(name)
        wanted, given = ([tidy(pair[i]) for pair in pairs] for i in (0, 1))
        found = [word_errors(g, [w]) for w, g in zip(wanted, given, strict=True)]
        assert sum(e for e, _ in found) / sum(n for _, n in found) == pytest.approx(jiwer.wer(wanted, given))
        assert found == [
            (table_distance(w.split(), g.split()), len(w.split())) for w, g in zip(wanted, given, strict=True)
        ]
    assert normalizer_of("basic")("The [noise]  Fox, (hm) it's 3.5!") == "the fox it s 3 5"
    assert normalizer_of("none")(" The\nFox, ") == "The Fox,"
    assert word_errors("a b c", ["x y z w", "a b d"]) == (1, 3.5)  # of the nearest, by the mean length


def asked(answer: str | None = "yes", **row: Any) -> Record:
    messages = [{"role": "user", "content": "What is it?"}]
    messages += [] if answer is None else [{"role": "assistant", "content": answer}]
    return Record("t.jsonl:7", messages=messages, row=row)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({}, ["yes"]),
        ({"answers": ["a", "a", 12, 1.5, None]}, ["a", "a", "12", "1.5"]),
        ({"answers": "a"}, ["a"]),
        ({"answers": '["a", "b"]'}, ["a", "b"]),  # a cell of a table
        ({"answers": [{"answer": "a", "answer_id": 1}]}, ["a"]),
        ({"answers": {"text": ["a", "b"], "answer_start": [0, 1]}}, ["a", "b"]),
        ({"answers": []}, ["yes"]),
        ({"answers": None}, ["yes"]),
    ],
)
def test_references_of_a_row(row: dict[str, Any], found: list[str]) -> None:
    assert references_of(asked(**row)) == found


ALL = ["answers", "anls", "vqa_accuracy", "wer"]


@cache
def composed() -> Config:
    return compose_config("evaluate", [])


def of(*names: str, normalizer: str = "basic") -> Config:
    """A configuration with these evaluators."""
    cfg = composed()
    return replace(cfg, eval=replace(cfg.eval, evaluators=list(names), wer=WerConfig(normalizer)))


def measured(engine: Said, records: list[Record], *names: str) -> Evaluation:
    made = prepare_evaluators(of(*names), engine.tokenizer, TokenizedRows(), {"test": records})
    return evaluate(made, engine)


class Counting(Said):
    """Says how often it was asked."""

    asked = 0

    def answers(self, prompts: Any, max_new_tokens: int, name: str) -> list[list[int]]:
        self.asked += 1
        return super().answers(prompts, max_new_tokens, name)


def test_one_answer_is_scored_by_all() -> None:
    """And generated once; an answer that was cut off is wrong, but for the words that it has."""
    records = [asked("stop sign", answers=["stop sign"] * 2 + ["sign"] * 2)] * 3
    engine = Counting(("stop sign", True), ("Stop sing", True), ("stop sign", False))
    found = measured(engine, records, *ALL)
    assert not found.failures and engine.asked == 1
    expected = {"exact_match": 1 / 3, "anls": (1 + 7 / 9) / 3, "vqa_accuracy": (0.5) / 3, "wer": 1 / 4.5}
    for name, value in expected.items():
        assert found.figures[f"test_{name}"] == pytest.approx(value)
        rows = found.rows[f"test_{name}"]
        weights = [row["weight"] for row in rows] if "weight" in rows[0] else None
        spread = interval([row["score"] for row in rows], weights)
        assert spread.mean == pytest.approx(value) and spread.low is not None and spread.low < value < spread.high
    assert found.rows["test_anls"][0]["wanted"] == "stop sign | sign"
    assert found.figures["test_rows"] == 3 and found.figures["test_stopped"] == pytest.approx(2 / 3)
    assert found.lower_is_better == ["test_wer"] and as_text("test_wer", 0.25) == "25.0%"
    measured(engine, records, *ALL)
    assert engine.asked == 2  # the next evaluation is one of another model


def test_the_normalizer_is_named_beside_the_figure() -> None:
    cfg = of(*ALL, normalizer="none")
    found = conditions_of(cfg, cfg.eval.evaluators)
    assert found["eval.wer.normalizer"] == "none" and found["eval.vqa_accuracy.normalizer"] == "textvqa"
    assert "eval.max_new_tokens" in conditions_of(cfg, ["anls"])
    assert "eval.wer.normalizer" not in conditions_of(cfg, ["anls"])


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("anls", asked(None), "t.jsonl:7: there is no answer to compare with"),
        ("anls", asked(answers=[["a"]]), "t.jsonl:7: answers holds list, and references are texts"),
        ("vqa_accuracy", asked(answers=["a", "b"]), "t.jsonl:7: .*fewer than 4 references; there are 2"),
        ("wer", asked(answers=["well", "(hm)"]), r"t.jsonl:7: the reference '\(hm\)' holds no words"),
    ],
)
def test_what_is_refused(name: str, record: Record, said: str) -> None:
    with pytest.raises(UserError, match=f"data.test_files.test: {said}"):
        measured(Said(), [record], name)


def test_wer_without_jiwer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError, match=r"pip install 'gemma_tune\[audio\]'"):
        measured(Said(), [asked()], "wer")


def test_references_count_as_used(tmp_path: Path) -> None:
    """Where they are compared with; `answers` reads one of them alone."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Who?", "answers": ["J. Smith", "Smith"], "page": 3}\n', encoding="utf-8")
    for name, unused in (("anls", ["page"]), ("answers", ["answers.1", "page"])):
        cfg = of(name)
        columns = {"format": "columns", "prompt_column": "question", "completion_column": "answers.0"}
        found = rows_of_tests(replace(cfg, data=replace(cfg.data, test_files={"mine": str(file)}, **columns)))
        (record,) = found["mine"]
        assert references_of(record) == ["J. Smith", "Smith"] and sorted(record.unused) == unused


def test_any_evaluator_that_gives_the_metric_of_the_best_step_will_do() -> None:
    cfg = of("answers", "anls")
    train = replace(cfg.train, metric_for_best_model="test_stopped", eval_steps=1)
    test_files = {"test": "assets://sample/test.jsonl"}
    cfg = replace(cfg, train=train, data=replace(cfg.data, test_files=test_files), method="lora_sft")
    for during, problems in ((["anls"], 0), (["wer"], 0), (["held_out_loss"], 1)):
        assert len(list(best_problems(replace(cfg, eval=replace(cfg.eval, during_training=during))))) == problems


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["anls"], ["anls"]),
        (["held_out_loss", "answers", "wer"], ["answers", "wer"]),
        (["answers"], ["answers"]),
        (["held_out_loss", "answers"], []),  # the default
        ([], []),
    ],
)
def test_a_training_run_says_what_measures_nothing(names: list[str], lacking: list[str]) -> None:
    """For want of test rows; it goes on, since it trains."""
    data = Data(TokenizedRows(), NO_ROWS, dict.fromkeys(names), {}, 0)  # type: ignore[arg-type]
    assert [note.split(": ")[0].removeprefix("nothing is measured by ") for note in data.notes()] == lacking
    assert not replace(data, tests={"mine": [Record("a:1", text="x")]}).notes()
