"""What counts as the right answer, compared with math-verify, and what a model can't do to the judge."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.config.reward import MathReward
from gemma_tune.errors import UserError
from gemma_tune.rewards.answers import final_answer
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rewards.extract import boxed
from gemma_tune.rewards.math import prepare

# name: (the row's answer, the completion, whether it is right)
CASES: dict[str, tuple[str, str, bool]] = {
    # where the answer stands
    "boxed": ("72", r"So we get \boxed{72}.", True),
    "boxed_wrong": ("72", r"So we get \boxed{27}.", False),
    "boxed_text_after": ("72", r"\boxed{72} is what I found after 3 steps.", True),
    "boxed_nested": (r"\frac{1}{2}", r"$\boxed{\frac{1}{2}}$", True),
    "boxed_in_box": ("5", r"\boxed{\boxed{5}}", True),
    "boxed_escaped_braces": (r"\{1,2\}", r"\boxed{\{1, 2\}}", True),
    "boxed_last_counts": ("5", r"\boxed{5} or rather \boxed{6}", False),
    "boxed_last_counts_too": ("6", r"\boxed{5} or rather \boxed{6}", True),
    "boxed_empty": ("5", r"5 \boxed{}", False),
    "boxed_before_plain": ("7", r"\boxed{7}. The answer is 8.", True),
    "answer_tags": ("72", "<answer>72</answer>", True),
    "answer_tags_blanks": ("72", "<answer>\n  72\n</answer>\n", True),
    "answer_tags_last": ("72", "<answer>71</answer> No: <answer>72</answer>", True),
    "answer_tags_sentence": ("12", "<answer>The answer is 12.</answer>", True),
    "answer_tags_box": ("12", r"<answer>\boxed{12}</answer>", True),
    "answer_tags_open": ("12", "<answer>12", True),
    "hashes": ("48+24=72\n#### 72", "First 48, then 24.\n#### 72", True),
    "hashes_wrong": ("#### 72", "#### 73", False),
    "hashes_unit": ("#### 72", "#### 72 clips", True),
    "hashes_in_the_middle": ("#### 72", "#### 72\nI hope that 100 people like it.", True),
    "hashes_heading": ("72", "#### Step 1: add 48\nIt is 72.", True),
    "hashes_numbered_heading": ("72", "#### 1. Add the numbers\nIt is 72.", True),
    "hashes_thousands": ("#### 1,200", "#### 1200", True),
    "plain_answer_is": ("12", "The answer is 12.", True),
    "plain_answer_is_then_more": ("12", "The answer is 12. I checked it 3 times.", True),
    "plain_bold": ("12", "**Answer:** 12 apples", True),
    "plain_final": ("12", "Final answer: $12$", True),
    "plain_reason": ("12", "The answer is 12 because 15 - 3 is 12, and 3 are lost.", True),
    "plain_sum_in_words": ("72", "**Answer:** Natalia sold 48 + 24 = 72 clips in total.", True),
    "plain_last_of_the_sentence": ("72", "The answer is that of 80 we keep 72. It was easy as 1.", True),
    "plain_letter": ("B", "The answer is (B).", True),
    "plain_calculator": ("20", "They had answers for 1800+1400= <<1800+1400=3200>>3200\nHe has 20.", True),
    "plain_calculator_marked": ("8", "The answer is <<32*0.25=8>>8.", True),
    "plain_next_line": ("12", "The answer is:\n\n12\n\nHave fun with 7.", True),
    "plain_sum": ("15", "The answer is 12 + 3 = 15.", True),
    "plain_last_number": ("72", "Natalia sold 48 + 24 = 72 clips.", True),
    "plain_last_number_only": ("48", "Natalia sold 48 + 24 = 72 clips.", False),
    "plain_last_formula": (r"\frac{3}{4}", r"Thus we find $\frac{3}{4}$.", True),
    "plain_last_formula_wrong": (r"\frac{3}{4}", r"Thus we find $\frac{1}{4}$.", False),
    "plain_range": ("10", "It takes 5-10 minutes", True),
    "nothing": ("72", "I don't know.", False),
    "empty": ("72", "", False),
    # numbers
    "thousands": ("1200", r"\boxed{1,200}", True),
    "thousands_latex": ("1200", r"\boxed{1{,}200}", True),
    "thousands_thin": ("1200", r"\boxed{1\,200}", True),
    "thousands_decimals": ("1,200", r"\boxed{1200.0}", True),
    "thousands_wrong": ("1200", r"\boxed{1,20}", False),
    "negative": ("-5", r"\boxed{-5}", True),
    "negative_sign": ("-5", "The answer is \N{MINUS SIGN}5.", True),
    "negative_missed": ("-5", r"\boxed{5}", False),
    "decimal": ("0.5", r"\boxed{.5}", True),
    "decimal_zeros": ("2.50", r"\boxed{2.5}", True),
    "decimal_near": ("2.5", r"\boxed{2.51}", False),
    "decimal_full_stop": ("2.5", "The answer is 2.5.", True),
    "fraction_decimal": ("0.5", r"\boxed{1/2}", True),
    "fraction_latex": ("1/2", r"\boxed{\frac{1}{2}}", True),
    "fraction_short": ("1/2", r"\boxed{\dfrac12}", True),
    "fraction_not_reduced": ("1/2", r"\boxed{\frac{2}{4}}", True),
    "fraction_negative": ("-1/2", r"\boxed{\frac{-1}{2}}", True),
    "fraction_wrong": ("1/2", r"\boxed{\frac{2}{1}}", False),
    "fraction_sign": ("1/2", r"\boxed{½}", True),
    "fraction_mixed": ("3/2", r"\boxed{1\frac{1}{2}}", True),
    "fraction_mixed_words": ("1.5", "The answer is 1 1/2.", True),
    "fraction_endless": ("1/3", r"\boxed{0.333333}", True),
    "fraction_endless_cut": ("1/3", r"\boxed{0.33}", False),
    "fraction_endless_off": ("2/3", r"\boxed{0.666666}", False),
    "fraction_by_zero": ("5", r"\boxed{\frac{1}{0}}", False),
    "small_numbers": ("1e-7", r"\boxed{2e-7}", False),
    "seventh_place": ("0.1234567", r"\boxed{0.1234571}", False),
    "percent": ("50%", r"\boxed{50\%}", True),
    "percent_word": ("50%", "The answer is 50 percent.", True),
    "percent_number": ("50", r"\boxed{50\%}", True),
    "percent_dropped": ("50%", r"\boxed{50}", True),
    "percent_share": ("0.5", r"\boxed{50\%}", True),
    "percent_decimals": ("12.5", r"\boxed{12.5\%}", True),
    "percent_wrong": ("50%", r"\boxed{5}", False),
    "currency": ("5", r"\boxed{\$5}", True),
    "currency_plain": ("#### 5", "She pays $5.", True),
    "currency_twice": ("5", "She had $10 and now has $5.", True),
    "currency_euro": ("5", "The answer is 5 €.", True),
    "currency_thousands": ("1,200", "The answer is $1,200.00.", True),
    "currency_negative": ("-5", r"\boxed{-\$5}", True),
    "scientific": ("1500", r"\boxed{1.5e3}", True),
    "scientific_latex": ("1500", r"\boxed{1.5 \times 10^{3}}", True),
    "scientific_small": ("0.0015", r"\boxed{1.5 \cdot 10^{-3}}", True),
    "scientific_wrong": ("1500", r"\boxed{1.5 \times 10^{4}}", False),
    "power_of_ten": ("1000", r"\boxed{10^3}", True),
    "million": ("5000000", "The answer is 5 million people.", True),
    "million_dropped": ("5", "The answer is 5 million people.", True),
    "million_or_thousand": ("5 thousand", "The answer is 5 million people.", False),
    "million_share": ("5 million", r"\boxed{5\%}", False),
    "unit": ("5", r"\boxed{5 \text{ cm}}", True),
    "unit_words": ("12", "The answer is 12 apples.", True),
    "unit_square": ("25", r"\boxed{25\text{ cm}^2}", True),
    "unit_speed": ("60", r"\boxed{60 km/h}", True),
    "unit_of_the_row": ("5 cm", r"\boxed{5}", True),
    "degrees": ("30", r"\boxed{30^\circ}", True),
    "degrees_sign": ("30", "The answer is 30°.", True),
    "degrees_brace": ("30^{\\circ}", r"\boxed{30}", True),
    "variable_is_no_unit": ("5", r"\boxed{5x}", False),
    # formulas
    "assigned": ("5", r"\boxed{x = 5}", True),
    "assigned_in_the_row": ("x = 5", r"\boxed{5}", True),
    "assigned_to_another": ("y = 5", r"\boxed{x = 5}", False),
    "equation_is_no_value": ("2x+z = 1", r"\boxed{1}", False),
    "function_value": ("f(x) = 5", r"\boxed{5}", True),
    "chain": ("15", r"\boxed{12 + 3 = 15}", True),
    "root": (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", True),
    "root_wrong": (r"2\sqrt{3}", r"\boxed{\sqrt{13}}", False),
    "root_of_square": ("2", r"\boxed{\sqrt{4}}", True),
    "root_words": (r"\sqrt{2}", r"\boxed{sqrt(2)}", True),
    "root_sign": (r"\sqrt{2}", "The answer is √2.", True),
    "pi": (r"2\pi", r"\boxed{2\pi}", True),
    "pi_sign": (r"2\pi", r"\boxed{2π}", True),
    "pi_word": (r"2\pi", r"\boxed{2 pi}", True),
    "pi_missed": (r"2\pi", r"\boxed{2}", False),
    "pi_decimals": (r"\pi", r"\boxed{3.14159265}", True),
    "other_order": ("x^2 + 3x", r"\boxed{3x + x^2}", True),
    "factored": ("x^2 - 1", r"\boxed{(x-1)(x+1)}", True),
    "stars": ("x^2 + 3x", r"\boxed{x**2 + 3*x}", True),
    "other_formula": ("x^2 + 3x", r"\boxed{x^2 - 3x}", False),
    "fraction_of_x": (r"\frac{x}{2}", r"\boxed{0.5x}", True),
    "set": (r"\{1,2,3\}", r"\boxed{\{3, 1, 2\}}", True),
    "set_too_much": (r"\{1,2\}", r"\boxed{\{1, 2, 3\}}", False),
    "pair": ("(1, 2)", r"\boxed{(1,2)}", True),
    "pair_swapped": ("(1, 2, 3)", r"\boxed{(2, 1, 3)}", False),
    "interval": ("[0, 1)", r"\boxed{[0,1)}", True),
    "interval_closed": ("[0, 1)", r"\boxed{[0,1]}", False),
    "interval_union": (r"(-\infty, 0) \cup (1, \infty)", r"\boxed{(1,\infty)\cup(-\infty,0)}", True),
    "inequality_turned": ("x > 5", r"\boxed{5 < x}", True),
    "matrix": (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", True),
    "complex": ("2+3i", r"\boxed{3i + 2}", True),
    "logarithm": ("3", r"\boxed{\log_2 8}", True),
    "binomial": ("120", r"\boxed{\binom{10}{3}}", True),
    "factorial": ("120", r"\boxed{5!}", True),
    "letter": ("B", r"\boxed{B}", True),
    "letter_text": ("B", r"\boxed{\text{B}}", True),
    "letter_wrong": ("B", r"\boxed{C}", False),
    "word": (r"\boxed{\text{yes}}", r"\boxed{Yes}", True),
    "word_wrong": (r"\boxed{\text{yes}}", r"\boxed{no}", False),
    # nothing to be computed with
    "time": ("3:30", r"\boxed{3 : 30}", True),
    "time_of_its_quotient": ("1/3", r"\boxed{10:30}", False),
    "time_of_another": ("10:30", r"\boxed{20:60}", False),
    "base": ("12_5", r"\boxed{12_{5}}", True),
    "base_of_another": ("12_5", r"\boxed{12_6}", False),
    "base_in_braces_of_another": ("12_{10}", r"\boxed{12_{16}}", False),
    "date": ("2020-01-01", r"\boxed{2020-01-01}", True),
    "date_of_its_difference": ("2018", r"\boxed{2020-01-01}", False),
    "date_of_another": ("2020-01-02", r"\boxed{2020-02-01}", False),
    # many for one
    "row_of_numbers": ("5", "1 2 3 4 5", False),
    "row_of_numbers_boxed": ("5", r"\boxed{1 2 3 4 5}", False),
    "row_summed_by_math_verify": ("15", r"\boxed{1 2 3 4 5}", False),
    "row_with_commas": ("5", "1, 2, 3, 4, 5", False),
    "row_in_tags": ("5", "<answer>1, 2, 3, 4, 5</answer>", False),
    "row_with_and": ("5", "It may be 3, 4, and 5.", False),
    "row_of_words_boxed": ("5", r"\boxed{1 \text{ or maybe } 5}", False),
    "row_of_blanks_boxed": ("5", r"\boxed{1 \quad 5}", False),
    "row_of_text_boxed": ("5", r"\boxed{1\text{ }5}", False),
    "row_of_lines_boxed": ("5", r"\boxed{1 \\ 5}", False),
    "row_of_bars_boxed": ("5", r"\boxed{1 | 5}", False),
    "row_of_semicolons_boxed": ("5", r"\boxed{4; 5}", False),
    "row_of_ands_boxed": ("5", r"\boxed{1 & 5}", False),
    "row_of_boxes_in_tags": ("5", r"<answer>\boxed{5} \boxed{4}</answer>", False),
    "row_by_lines": ("5", "\n".join("12345"), False),
    "either": ("5", "The answer is 4 or 5.", False),
    "either_boxed": ("5", r"\boxed{4 \text{ or } 5}", False),
    "either_plain": ("5", "It must be 4 or 5", False),
    "two_equations": ("5", r"\boxed{x = 1, x = 5}", False),
    "many_boxes": ("5", "".join(rf"\boxed{{{n}}}" for n in (3, 5, 4)), False),
}  # fmt: skip
# Where math-verify's own verdict of the texts is another, and why ours is.
DIFFERENT = {
    "the last box counts, not the set of all": ["boxed_last_counts_too"],
    "an empty box is an answer": ["boxed_empty"],
    "it doesn't know `####`, nor an answer on the next line": ["hashes_in_the_middle", "plain_next_line"],
    "it takes the first number behind `answer`": ["plain_last_of_the_sentence", "plain_calculator"],
    "it reads 5-10 as a difference": ["plain_range"],
    r"it adds up what `\,` parts": ["thousands_thin"],
    "it reads mixed numbers in LaTeX only": ["fraction_mixed_words"],
    "it rounds at the sixth place": ["seventh_place"],
    "it reads the e as Euler's, and units and pi as products of letters": ["scientific", "unit_speed", "pi_word"],
    "it leaves out `million`": ["million"],
    "it doesn't know `**`": ["stars"],
    "it divides times, subtracts dates and leaves out bases": [
        "time_of_its_quotient", "time_of_another", "base_of_another", "base_in_braces_of_another",
        "date_of_its_difference", "date_of_another",
    ],
    "it takes the last of a row, or its sum": [
        "row_of_numbers", "row_summed_by_math_verify", "row_with_commas", "row_with_and", "row_of_lines_boxed",
        "row_of_bars_boxed", "row_of_ands_boxed", "row_by_lines", "either_plain",
    ],
}  # fmt: skip


def score(answer: str, text: str, formats: list[str] | None = None, stopped: bool = True) -> Any:
    reward = prepare(MathReward(formats=formats) if formats else MathReward())
    return reward([Completion(text, stopped=stopped)], [Task("rows.jsonl:1", answer=answer)])[0]


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    answer, text, right = CASES[name]
    assert score(answer, text) == float(right)


def test_math_verify_gives_the_same_verdicts() -> None:
    from math_verify import parse, verify

    other, compared = [], 0
    for name, (answer, text, right) in CASES.items():
        wanted = rf"\boxed{{{final_answer(answer, MathReward().formats)}}}"
        gold, said = (parse(t, fallback_mode="no_fallback", parsing_timeout=None) for t in (wanted, text))
        if gold and said:
            compared += 1
            other += [name] if verify(gold, said, timeout_seconds=None) != right else []
    assert other == [name for name in CASES if any(name in names for names in DIFFERENT.values())]
    assert compared > 100


def test_formats_are_looked_for_in_their_order() -> None:
    text = r"\boxed{1} <answer>2</answer> the answer is 3." + "\n#### 4"
    assert [final_answer(text, [name]) for name in ("boxed", "answer", "hashes", "plain")] == ["1", "2", "4", "3"]
    assert score("2", text, ["answer", "boxed"]) == 1.0
    assert score("2", text, ["boxed", "answer"]) == 0.0
    assert score("72", "72", ["boxed"]) == 0.0
    assert score("#### 72", r"\boxed{72}", ["boxed"]) == 1.0  # the row's own form is found all the same


def test_what_was_cut_off_is_wrong() -> None:
    assert score("72", r"\boxed{72}", stopped=False) == 0.0


@pytest.mark.parametrize("answer", ["", "  ", "It is a matter of taste."])
def test_row_without_an_answer_is_named(answer: str) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: the row has"):
        score(answer, "72")


@pytest.mark.parametrize("formats", [[], ["boxed", "latex"]])
def test_unknown_formats_are_named(formats: list[str]) -> None:
    with pytest.raises(UserError, match=r"reward\.math\.formats: .* name some of boxed, answer, hashes, plain"):
        prepare(MathReward(formats=formats))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"pip install 'gemma_tune\[rl\]'"):
        prepare(MathReward())


def test_text_and_not_thinking_is_judged() -> None:
    said = Completion("<think>72</think>I can't say.", text="I can't say.", thinking="72")
    assert prepare(MathReward())([said], [Task("rows.jsonl:1", answer="72")]) == [0.0]


def test_no_alarm_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "alarm", lambda *_: pytest.fail("an alarm"))
    assert score(r"2\sqrt{3}", r"\boxed{\sqrt{12}}") == 1.0


HUGE = [
    "9**9**9", "9^9^9", "10^{10^{10}}", "(10^{10})!", "1000000!", "5!!!!!!!!", r"\binom{1000000000}{100000000}",
    r"\binom{9^9}{9^8}", r"\dbinom{99 \cdot 99 \cdot 99}{9^9}", "5 million million",
    r"\sum_{n=1}^{10^{10}} \frac{1}{n^2}", r"\prod_{n=1}^{1000000} n", r"\int_0^1 x^2 dx", r"2^{10000000}",
    r"\lfloor 10^{10^{10}} \rfloor", r"\lfloor e^{10^{10}} \rfloor", r"10^{10^{10}} \mod 7", "1e999", "1e999999999",
    "1.5 \\times 10^{999999999}", "(x+y+z)^{1000}", "(x+1)^{(x+1)^{(x+1)^9}}", "9" * 250, "9" * 5000, "0." + "3" * 280,
    "(" * 100 + "5" + ")" * 100, "{" * 100 + "5" + "}" * 100, r"\frac{1}{" * 100 + "5" + "}" * 100,
    r"\left(" * 30 + "5" + r"\right)" * 30, r"\sqrt{" * 60 + "5" + "}" * 60, "|" * 60 + "5" + "|" * 60, r"\frac{1}{0}",
    r"\frac{0}{0}", r"0^{-1}", "\\", "^", "_", "{", "}", "&", "$", "%", "#", "\0", "\ud800", "\ud800 5", "５",
    "٣", "∞", "", "2^{-10000000}", r"\text{", r"\begin{pmatrix}", r"\input{/etc/passwd}",
    r"\write18{ls}", "__import__('os').abort()",
]  # fmt: skip
# What would take a search that looks back or ahead without a bound minutes.
LONG = [
    "1 " * 100_000, "1," * 100_000, "9" * 200_000, "$" * 200_000, "\\(" * 100_000, "\\[ 1" * 50_000,
    "<answer>" * 25_000, "####" * 50_000, "#### 1 x\n" * 20_000, "answer is " * 20_000, "answer " * 28_000,
    "1,111" * 40_000, " " * 200_000, "-" * 200_000, "1/" * 100_000, "a" * 200_000, "1\n" * 100_000, "=" * 200_000,
    "\\boxed{" * 28_000, "{" * 200_000,
    r"\frac" * 40_000, "\\" * 200_000, "$1$ " * 50_000, r"\boxed{5}" * 22_000, "answer: 1 or 2 " * 13_000,
    "is it " * 33_000, "16 dollars or " * 14_000, "a b c d " * 25_000, "1 " + " " * 200_000 + "or 2", "not " * 50_000,
    "answer is not " * 14_000, "1, maybe " * 22_000, "C. " * 66_000, "1_" * 100_000, "1:" * 100_000, "<<1" * 66_000,
]  # fmt: skip
_CHILD = r"""
import sys
sys.path.insert(0, sys.argv[1])
from test_math import HUGE, LONG, score
for text in HUGE:
    for wanted in ("7", r"2\sqrt{3}"):
        assert score(wanted, rf"\boxed{{{text}}}") == 0.0, (wanted, text)
    for said in (f"<answer>{text}</answer>", f"The answer is {text}.", text):
        assert score("7", said) == 0.0, said
for text in LONG:
    assert score("7", text) == 0.0, text[:40]
    assert score("7", rf"\boxed{{{text}}}") == 0.0, text[:40]
"""


def test_nothing_said_stops_the_judge() -> None:
    """In a process of its own, since a power that is computed in C heeds no timer of Python's."""
    child = [sys.executable, "-c", _CHILD, str(Path(__file__).parent)]
    done = subprocess.run(child, timeout=100, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_long_reasoning_before_the_answer() -> None:
    assert score("72", "Let me think of 3 and 4. " * 8_000 + r"\boxed{72}") == 1.0
    assert score("72", "Let me think of 3 and 4. " * 8_000 + "So it is 72.") == 1.0


def test_unclosed_box_is_none() -> None:
    assert boxed(r"\boxed{5") is None
    assert boxed(r"\boxed{4} \boxed{5") == "4"
    assert boxed(r"} \boxed{\frac{1}{2}} }") == r"\frac{1}{2}"
