"""Models against the first one: which rows are held against each other, which way is better, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gemma_tune.compare.comparison import ComparedFigure, compare_models, lower_is_better
from gemma_tune.compare.results import ModelResults
from gemma_tune.compare.wording import Wording, facts
from gemma_tune.errors import UserError
from gemma_tune.evals.base import ScoredRow
from gemma_tune.evals.statistics import holm, interval, paired_test


def rows(
    scores: Sequence[float], weights: Sequence[float] | None = None, name: str = "row-", **more: Any
) -> list[dict[str, Any]]:
    found = [{"id": f"{name}{n}", "score": score, **more} for n, score in enumerate(scores)]
    for row, weight in zip(found, weights or (), strict=False):
        row["weight"] = weight
    return found


def model(name: str, figures: dict[str, float] | None = None, **scores: Sequence[ScoredRow]) -> ModelResults:
    return ModelResults(name, figures or {}, scores)


def refusal(*models: ModelResults) -> str:
    with pytest.raises(UserError) as said:
        compare_models(models)
    return str(said.value)


RIGHT = [1.0, 1, 1, 0, 0, 1, 0, 1]
OTHER = [1.0, 0, 1, 1, 1, 1, 0, 0]


def test_rows_are_matched_by_their_ids() -> None:
    """In whatever order each model's rows stand."""
    one, other = rows(RIGHT), rows(OTHER)
    in_order = compare_models([model("a", acc=one), model("b", acc=other)])
    random.Random(0).shuffle(other)
    assert compare_models([model("a", acc=one), model("b", acc=other)]).summary() == in_order.summary()
    (figure,) = in_order.figures
    assert (figure.count, figure.binary, figure.lower_is_better) == (8, True, False)
    first, second = figure.model_stats
    assert (first.mean, second.mean) == (interval(RIGHT), interval(OTHER))
    assert second.test == paired_test(OTHER, RIGHT)
    assert (second.wins, second.losses, second.ties) == (2, 2, 4)
    assert (first.test, first.verdict, second.verdict) == (None, "", "not significant")


@pytest.mark.parametrize(
    "name", ["held_out_loss", "perplexity", "kl", "to_the_merged_kl", "accuracy", "loss_less", "ppl"]
)
def test_which_way_is_better(name: str) -> None:
    """Lower losses win; and a loss of 0 or 1 is no right or wrong answer."""
    lower = name not in ("accuracy", "loss_less")
    assert lower_is_better(name) is (lower and name != "ppl")
    said = ["ppl"]  # an evaluator's own word, where the name doesn't say it
    one, other = {name: rows([1.0] * 20)}, {name: rows([0.0] * 19 + [1])}
    comparison = compare_models([ModelResults("a", {}, one, said), ModelResults("b", {}, other, said)])
    (figure,) = comparison.figures
    better = figure.model_stats[1]
    assert (better.wins, better.losses, better.ties) == ((19, 0, 1) if lower else (0, 19, 1))
    assert better.verdict == ("better" if lower else "worse")
    assert figure.binary is not lower


def test_losses_are_weighted_by_tokens() -> None:
    rng = random.Random(1)
    weights = [rng.randint(1, 50) for _ in range(60)]
    one = [rng.uniform(1, 3) for _ in weights]
    other = [x - rng.uniform(-0.1, 0.2) for x in one]
    (figure,) = compare_models([model("a", loss=rows(one, weights)), model("b", loss=rows(other, weights))]).figures
    total = sum(weights)
    by_hand = sum(w * (y - x) for w, x, y in zip(weights, one, other, strict=True)) / total
    test = figure.model_stats[1].test
    assert test is not None and test.difference.mean == pytest.approx(by_hand)
    assert test == paired_test(other, one, weights)
    assert figure.model_stats[0].mean == interval(one, weights)
    apart = [row.spread for row in figure.rows]
    assert apart == sorted(apart, reverse=True) and len(apart) == 60
    assert apart[0] == pytest.approx(max(w * abs(y - x) for w, x, y in zip(weights, one, other, strict=True)))


def test_rows_that_differ() -> None:
    """Those alone, with what each model said, by who is right; the largest group first."""
    names = ("a", "b", "c")
    answers = {"a": [1.0, 1, 0, 1, 1], "b": [1.0, 0, 0, 1, 0], "c": [1.0, 1, 0, 0, 1]}
    models = [model(n, acc=rows(answers[n], answer=f"{n} says", prompt="?", wanted="!")) for n in names]
    (figure,) = compare_models(models).figures
    assert sorted(row.id for row in figure.rows) == ["row-1", "row-3", "row-4"]
    assert [(title, [row.id for row in part]) for title, part in figure.groups()] == [
        ("a and c right, b wrong", ["row-1", "row-4"]),
        ("a and b right, c wrong", ["row-3"]),
    ]
    assert [one["answer"] for one in figure.rows[0].rows] == ["a says", "b says", "c says"]
    assert (figure.rows[0].text("prompt"), figure.rows[0].text("answers")) == ("?", None)


def test_scores_between_0_and_1_are_one_group() -> None:
    (figure,) = compare_models([model("a", f1=rows([0.5, 0.2, 1])), model("b", f1=rows([0.6, 0.9, 1]))]).figures
    assert not figure.binary
    assert [(title, [row.id for row in part]) for title, part in figure.groups()] == [
        ("Most different first", ["row-1", "row-0"])
    ]


def test_one_model_with_parts_of_a_point_makes_it_no_share() -> None:
    """Both are measured in the same way, even if one of them has whole points alone."""
    (figure,) = compare_models([model("a", f1=rows([0.0, 1, 1])), model("b", f1=rows([0.5, 1, 1]))]).figures
    assert figure.model_stats[0].mean == interval([0.0, 1, 1], binary=False) != interval([0.0, 1, 1])


def test_models_that_agree() -> None:
    same = rows(RIGHT)
    (figure,) = compare_models([model("a", acc=same), model("b", acc=same)]).figures
    assert (figure.rows, figure.groups()) == ([], [])
    assert (figure.model_stats[1].p_corrected, figure.model_stats[1].verdict) == (1.0, "not significant")


def test_verdicts_are_corrected_for_all_tests() -> None:
    """8 rows won and none lost have p = 0.0078; of eight such tests, none may be called a difference."""
    base, tuned = [0.0] * 8 + [1] * 9, [1.0] * 17

    def figures(n: int) -> list[ComparedFigure]:
        a = {f"acc_{i}": rows(base, name=f"{i}-") for i in range(n)}
        b = {f"acc_{i}": rows(tuned, name=f"{i}-") for i in range(n)}
        return compare_models([ModelResults("a", {}, a), ModelResults("b", {}, b)]).figures

    (alone,) = figures(1)
    p_value = 2 / 2**8
    assert (alone.model_stats[1].p_corrected, alone.model_stats[1].verdict) == (pytest.approx(p_value), "better")
    for figure in figures(8):
        test = figure.model_stats[1].test
        assert test is not None and test.p_value == pytest.approx(p_value)
        assert figure.model_stats[1].p_corrected == pytest.approx(8 * p_value)
        assert figure.model_stats[1].verdict == "not significant"


def test_each_verdict_has_its_own_p_value() -> None:
    """Over figures and models, in their order."""
    rng = random.Random(2)
    models = [
        model(name, **{f: rows([float(rng.random() < share) for _ in range(60)]) for f in ("one", "two")})
        for name, share in (("a", 0.2), ("b", 0.5), ("c", 0.9))
    ]
    comparison = compare_models(models)
    model_stats = [s for f in comparison.figures for s in f.model_stats if s.test]
    assert [s.p_corrected for s in model_stats] == holm([s.test.p_value for s in model_stats if s.test])
    assert len({s.p_corrected for s in model_stats}) == 4
    assert json.loads(json.dumps(comparison.summary()))["two"]["c"]["p_corrected"] == model_stats[3].p_corrected
    assert list(comparison.summary()["one"]["a"]) == ["mean", "low", "high"]
    table = comparison.table()
    assert [(row["figure"], row["model"]) for row in table] == [(f, m) for f in ("one", "two") for m in "abc"]
    assert len({tuple(row) for row in table}) == 1 and table[0]["difference"] is None
    assert table[5]["p_corrected"] == model_stats[3].p_corrected


def test_figures_without_rows_stand_beside() -> None:
    a = model("a", {"acc": 0.625, "rows": 8, "perplexity": 3.0}, acc=rows(RIGHT))
    b = model("b", {"acc": 0.625, "rows": 8}, acc=rows(OTHER))
    comparison = compare_models([a, b])
    assert comparison.others == {"rows": [8, 8], "perplexity": [3.0, None]}
    assert comparison.notes == []


def test_what_is_to_be_known() -> None:
    """Figures over more rows than were kept, and those that only some models have."""
    a = model("a", {"acc": 0.5, "loss": 2.0}, acc=rows(RIGHT), loss=rows([1.0, 3.0]), other=rows([1.0]))
    b = model("b", {"acc": 0.625}, acc=rows(OTHER), loss=rows([1.0, 2.0]), other=[])
    notes = compare_models([a, b]).notes
    assert notes == [
        "acc of a is 0.5 over all rows that were evaluated; the value here is that of the 8 rows that were kept.",
        "other can't be compared: b has no rows of it.",
    ]


def test_a_part_is_not_tested_again() -> None:
    """The calls of one category are among all calls: they aren't counted twice. Other scores are."""
    base, tuned = [0.0] * 8 + [1.0] * 12, [1.0] * 20
    a = model("a", whole=rows(base), f1=rows([0.1] * 20), part=rows(base)[:10])
    b = model("b", whole=rows(tuned), f1=rows([0.1] * 19 + [0.2]), part=rows(tuned)[:10])
    comparison = compare_models([a, b])
    whole, f1, part = comparison.figures
    assert (whole.part_of, f1.part_of, part.part_of) == (None, None, "whole")
    first, _, last = (f.model_stats[1] for f in comparison.figures)
    assert first.test is not None and first.p_corrected == pytest.approx(2 * first.test.p_value)  # of two tests
    assert last.verdict == "not tested" and last.test is not None
    assert last.test.difference == paired_test(tuned[:10], base[:10]).difference and (last.wins, last.ties) == (8, 2)
    numbers = comparison.summary()["part"]["b"]
    assert numbers["difference"] == 0.8 and numbers["p_value"] is None and numbers["p_corrected"] is None
    wording = Wording(part)
    assert wording.sentence(last, 0.95).startswith(
        "b and a are not tested, because the rows are a part of whole: 100.0%"
    )
    assert wording.cells(last)[2:4] == ["not tested", "–"] and "part of whole" in facts(part)


def test_other_conditions_are_told() -> None:
    """Of those models of which they are known."""
    conditions = [{"dtype": "float32", "limit": None}, {"dtype": "bfloat16", "limit": None}, {}]
    models = [ModelResults(n, {}, {"acc": rows(RIGHT)}, (), c) for n, c in zip("abc", conditions, strict=True)]
    assert compare_models(models).notes == ["dtype wasn't the same: float32 for a and bfloat16 for b."]
    assert compare_models([models[0], replace(models[0], name="d")]).notes == []
    fewer = ModelResults("e", {}, {"acc": rows(RIGHT)}, (), {"dtype": "float32", "limit": 5})
    assert compare_models([models[0], fewer]).notes == ["limit wasn't the same: null for a and 5 for e."]


# What is left out, and refused


def test_other_rows_are_refused() -> None:
    said = refusal(model("base", acc=rows(RIGHT)), model("tuned", acc=[*rows(OTHER)[:5], {"id": "x", "score": 1.0}]))
    assert "acc" in said and "base has 8, 3 of them not of tuned" in said
    assert "tuned has 6, 1 of them not of base" in said and "same data" in said
    assert "recipe=evaluate model.model_name_or_path=…" in said


def test_what_cannot_be_compared_is_left_out() -> None:
    """With what is wrong; the other figures are compared all the same."""
    nan: list[dict[str, Any]] = rows([1.0, float("nan"), 1.0])
    nan[2]["score"] = None  # as a file has it
    a = model("a", {"acc": 1.0}, few=rows([1.0, 1, 1]), loss=rows([1.0, 1, 1]), twice=rows([1.0]), acc=rows(RIGHT))
    b = model("b", {"few": 1.0}, few=rows([1.0, 1]), loss=nan, twice=[*rows([1.0]), *rows([1.0])], acc=rows(OTHER))
    comparison = compare_models([a, b])
    assert [f.name for f in comparison.figures] == ["acc"] and comparison.others["few"] == [None, 1.0]
    assert comparison.notes[:3] == [
        "few is left out: the rows aren't the same. a has 3, 1 of them not of b; b has 2, 0 of them not of a.",
        "loss is left out: b has no number as score of 2 of 3 rows (the first is row-1).",
        "twice is left out: b has duplicate ids (1 rows too many).",
    ]


def test_losses_over_other_tokens_are_left_out() -> None:
    """Nats a token are of the tokenizer; answers are not."""
    a = model("a", {"loss": 1.0}, acc=rows(RIGHT), loss=rows([1.0, 2], [10, 20]))
    b = model("b", {"loss": 1.1}, acc=rows(OTHER), loss=rows([1.0, 2], [11, 20]))
    comparison = compare_models([a, b])
    assert [f.name for f in comparison.figures] == ["acc"]
    assert comparison.others == {"loss": [1.0, 1.1]}
    assert comparison.notes == [
        "loss is left out: the tokens (or words) of the rows aren't the same in a and b, so it can't be compared."
    ]
    said = refusal(model("a", loss=a.scores["loss"]), model("b", loss=b.scores["loss"]))
    assert "no figure in common" in said and "tokens (or words) of the rows aren't the same in a and b" in said


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([model("a", acc=rows(RIGHT))], "two evaluated models"),
        ([model("a", acc=rows(RIGHT)), model("a", acc=rows(RIGHT))], "more than one is called a"),
        ([model("a", acc=rows(RIGHT)), model("b", f1=rows(RIGHT))], "a and b have no figure in common"),
        ([model("a", acc=[]), model("b", acc=[])], "no figure in common"),
    ],
)
def test_nothing_to_compare(models: list[ModelResults], said: str) -> None:
    assert said in refusal(*models)
