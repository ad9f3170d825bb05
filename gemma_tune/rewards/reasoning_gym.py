r"""The score of reasoning-gym's own verifier.

Gamed if a verifier gives any answer a small score (0.01 to 0.1), or a partial one to the answer within other words.

The answer is the content of `<answer>…</answer>`, `\boxed{…}` or the line after `####`, whichever is found first, else
the whole text. Some verifiers run the answer as Python; they receive it only if it is plain data or plain arithmetic.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from gemma_tune.config.reward import ReasoningGymReward
from gemma_tune.rewards.base import Completion, Reward, Task, per_completion, require_package
from gemma_tune.rewards.extract import boxed, hashes, tagged

# Generators whose verifier calls `eval` on the answer, and those whose verifier gives it to sympy's parser, which does
# the same: of plain arithmetic, and of formulas.
EVALUATED = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
SUMS = ("countdown", "puzzle24")
FORMULAS = ("intermediate_integration", "polynomial_multiplication", "simple_integration")
_LONGEST, _DEEPEST, _BRACKETS = 5000, 50, 500
_LARGEST, _LARGEST_POWER, _POWERS, _CALLS = 10**15, 30, 20, 2
_FUNCTIONS = ("sin", "cos", "tan", "exp", "log", "ln", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "tanh", "Abs")
_SUM = ast.Add | ast.Sub | ast.Mult | ast.Div


def _is_data(node: ast.expr, deep: int = 0) -> bool:
    """Whether it is a constant or a (nested) list of constants."""
    if isinstance(node, ast.List | ast.Tuple):
        return deep < _DEEPEST and all(_is_data(item, deep + 1) for item in node.elts)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.Constant)


def _is_sum(node: ast.expr, powers: bool, deep: int = 0, calls: int = 0) -> bool:
    """Whether it is arithmetic on numbers; with `powers`, variables, powers and functions are allowed, too.

    Towers of powers and of functions are not: their value may have more digits than fit in memory.
    """
    if deep > _DEEPEST:
        return False
    if isinstance(node, ast.Constant):
        number = node.value
        return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= _LARGEST
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub | ast.UAdd) and _is_sum(node.operand, powers, deep + 1, calls)
    if powers and isinstance(node, ast.Name):
        return len(node.id) == 1 or node.id == "pi"
    if powers and isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        return named and calls < _CALLS and all(_is_sum(item, powers, deep + 1, calls + 1) for item in node.args)
    if not isinstance(node, ast.BinOp):
        return False
    power = powers and isinstance(node.op, ast.Pow) and _height(node) <= _LARGEST_POWER
    inner = (node.left, node.right)
    return (power or isinstance(node.op, _SUM)) and all(_is_sum(n, powers, deep + 1, calls) for n in inner)


def _height(node: ast.expr) -> float:
    """The product of nested exponents; infinite if an exponent contains a power."""
    heights = [_height(n) for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]
    height = max(heights, default=1.0)
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)):
        return height
    above = list(ast.walk(node.right))
    if any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow) for n in above):
        return math.inf
    numbers = [abs(n.value) for n in above if isinstance(n, ast.Constant) and isinstance(n.value, int | float)]
    return _height(node.left) * math.prod(max(1.0, float(min(n, _LARGEST))) for n in numbers)


def trusted(name: str, answer: str) -> bool:
    """Whether a generator's verifier may receive the answer: if it would run it, it must be harmless."""
    if name not in EVALUATED + SUMS + FORMULAS:
        return True
    if len(answer) > _LONGEST or sum(answer.count(mark) for mark in "([{") > _BRACKETS:
        return False
    try:
        tree = ast.parse(answer.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # `eval` fails on it, too, so the verifier only compares it; sympy's parser might still read it
        return name in EVALUATED
    if name in EVALUATED:
        # A lowercase name may be a variable of the verifier, such as `oracle_answer`.
        return _is_data(tree) or (isinstance(tree, ast.Name) and tree.id.isupper())
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Pow)]
    return len(nodes) <= _POWERS and _is_sum(tree, powers=name in FORMULAS)


def answer_of(text: str) -> str:
    """The answer in a text, as the docstring at the top has it."""
    found = next((f for f in (tagged(text), boxed(text), hashes(text)) if f is not None), text)
    return found.strip()


@lru_cache(maxsize=256)
def _verifier(name: str) -> Callable[[str | None, dict[str, Any]], float]:
    """Raises ValueError for an unknown generator."""
    from reasoning_gym import get_score_answer_fn  # type: ignore[import-untyped]

    made: Callable[[str | None, dict[str, Any]], float] = get_score_answer_fn(name)
    return made


def prepare(options: ReasoningGymReward) -> Reward:
    """From 0 to 1, as the verifier of the row's generator scores it; a completion that was cut off scores 0.

    An answer that its verifier would run, and that isn't plain data or arithmetic, is scored as no answer.

    Raises:
        UserError: reasoning-gym is not installed.
        ValueError: From the reward: a row without `dataset` (the generator's name) and `entry` (question, answer and
            metadata), or whose values the verifier can't use.
    """
    require_package("reasoning_gym", "reasoning-gym")

    def verifier(record: Task) -> Callable[[str | None, dict[str, Any]], float]:
        name, entry = record.row.get("dataset"), record.row.get("entry")
        if not isinstance(name, str) or not isinstance(entry, dict) or "answer" not in entry:
            raise ValueError(
                f"{record.where}: the row has no dataset and entry as reasoning-gym makes them; use data=reasoning_gym."
            )
        try:
            return _verifier(name)
        except Exception as error:  # an unknown name, or a generator that can't be made with its defaults
            raise ValueError(f"{record.where}: dataset: {error}; name a generator of reasoning-gym.") from error

    def score(completion: Completion, record: Task) -> float:
        verify = verifier(record)
        if not completion.stopped:
            return 0.0
        name, entry, answer = record.row["dataset"], record.row["entry"], answer_of(completion.text)
        try:
            with warnings.catch_warnings(action="ignore"):  # from Python and numpy, about the answer's syntax
                given = float(verify(answer if trusted(name, answer) else None, entry))
        except Exception as error:  # the answer's fault, unless the row's own answer fails, too
            try:
                verify(entry["answer"], entry)
            except Exception:
                raise ValueError(
                    f"{record.where}: entry: the verifier of {name} fails on its own answer "
                    f"({type(error).__name__}: {error}); generate the row again."
                ) from error
            return 0.0
        return min(1.0, max(0.0, given)) if math.isfinite(given) else 0.0

    return per_completion(score)
