"""What the embedded model can do: the figures that `data/README.md` shows, and the limits they are held to."""

from __future__ import annotations

import copy
import itertools
import math
import random
import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from tqdm import tqdm

from gemma_tune.chat import Rendered
from gemma_tune.engines.generate import greedy_answers
from gemma_tune.engines.transformers import row_losses
from gemma_tune.errors import RunError
from gemma_tune.models.contexts import evaluating
from tools.tiny_model import sums as arithmetic
from tools.tiny_model import text
from tools.tiny_model import words as w
from tools.tiny_model.pretrain import encode

# Figure: (what it is, lowest, highest).
LIMITS: dict[str, tuple[str, float, float]] = {
    "least_count": ("times that the rarest token was trained", 1000, math.inf),
    "copied": ("unseen spans copied right", 0.95, 1),
    "sums_greedy": ("held-out problems right, greedily", 0.2, 0.6),
    "sums_one_of_8": ("held-out problems right at least once in 8 samples", 0.7, 1),
    "test_exact_match": ("sample task right before tuning", 0, 0.1),
    "kl_q4_0": ("mean KL after rounding to Q4_0, nats a token", 0.01, math.inf),
}
QUESTIONS = (
    "Hello!", "Who are you?", "What is the colour of a lemon?", "Where do I cook?", "What does a timer do?",
    "What is the opposite of warm?", "My name is Yusuf and I live in Oslo.", "What is 12 plus 5?",
    "Write as a record: room is kitchen, day is Friday", "Turn on the light in the kitchen.",
)  # fmt: skip
UNSEEN_NAMES = w.words(
    """
    Yusuf Ingrid Dmitri Noor Ravi Keiko Gerda Tomas Aisha Ludwig Marek Petra Sofia Bilal Hannah Viktor Ronja
    Matteo Dagmar Ulrich Zeynep Abel Bianca Cosimo Edda Farid Gustav Hedwig Ilse Jakub Kirsten Lorenz Mirjam
    Nils
    """
)


class TooWeak(RunError):
    """The model doesn't reach its figures."""


def _prompt(tokenizer: Any, question: str) -> list[int]:
    return list(tokenizer(text.turn("user", question) + "<start_of_turn>model\n")["input_ids"])


def _ask(model: Any, tokenizer: Any, questions: list[str], max_new_tokens: int, name: str) -> list[str]:
    prompts = [_prompt(tokenizer, q) for q in questions]
    rows = greedy_answers(model, tokenizer, prompts, max_new_tokens, batch_size=64, name=name)
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


def answers(model: Any, tokenizer: Any) -> dict[str, str]:
    """Greedy answers to a few questions, to be read."""
    return dict(zip(QUESTIONS, _ask(model, tokenizer, list(QUESTIONS), 40, "answers"), strict=True))


def copied(model: Any, tokenizer: Any, seen: Collection[str], count: int = 400) -> float:
    """Share of unseen spans (names, invented words, numbers, phrases with them) that are repeated without a fault.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        seen: Words and numbers of the training text; none of them is taken for a name, word or number.
        count: How many.
    """
    rng = random.Random(99)

    def unseen(make: Callable[[random.Random], str]) -> str:
        return next(word for word in iter(lambda: make(rng), None) if word not in seen)

    def name(rng: random.Random) -> str:
        return rng.choice(UNSEEN_NAMES)

    def number(rng: random.Random) -> str:
        return str(rng.randint(100, 99999))

    kinds: list[Callable[[], str]] = [
        lambda: unseen(name),
        lambda: unseen(number),
        lambda: unseen(w.invented),
        lambda: f"{unseen(name)} and {unseen(w.invented)} {w.phrase(rng, 1, 4)} {rng.randint(1, 999)}",
    ]
    forms = [
        ("Repeat this: {}", "{}."),
        ("Say {} again.", "{}."),
        ("Copy {} for me.", "{}."),
        ("Put {} in quotes.", '"{}"'),
    ]
    questions, wanted = [], []
    for i in range(count):
        span, (question, answer) = kinds[i % len(kinds)](), rng.choice(forms)
        questions.append(question.format(span))
        wanted.append(answer.format(span))
    said = _ask(model, tokenizer, questions, 48, "copying")
    return sum(a == b for a, b in zip(said, wanted, strict=True)) / count


def _number(answer: str) -> str:
    found = re.findall(r"-?\d+", answer)
    return found[-1] if found else ""


def sums(model: Any, tokenizer: Any, count: int = 300, samples: int = 8) -> dict[str, float]:
    """Problems of two numbers that are in no training text.

    Returns:
        `sums_greedy`: share right greedily; `sums_one_of_8`: share right at least once in `samples` answers at
        temperature 1; `sums_sampled`: share of those answers that are right.
    """
    rng = random.Random(7)
    problems = [arithmetic.sum_of(rng, held=True) for _ in range(count)]
    questions = [arithmetic.arithmetic_question(*p, rng) for p in problems]
    right = [str(arithmetic.result(*p)) for p in problems]
    greedy = [_number(a) == r for a, r in zip(_ask(model, tokenizer, questions, 12, "sums"), right, strict=True)]
    hits: list[list[bool]] = []
    with evaluating(model):
        torch.manual_seed(0)
        for question, result in zip(
            tqdm(questions, desc="sums, 8 samples", disable=None, leave=False), right, strict=True
        ):
            ids = torch.tensor([_prompt(tokenizer, question)])
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=samples, max_new_tokens=12,
            )  # fmt: skip
            hits.append(
                [_number(tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True)) == result for row in out]
            )
    return {
        "sums_greedy": sum(greedy) / count,
        f"sums_one_of_{samples}": sum(map(any, hits)) / count,
        "sums_sampled": sum(map(sum, hits)) / count / samples,
    }


def held_out_rows(tokenizer: Any, seed: int, count: int = 500) -> list[list[int]]:
    """Fresh documents of another seed, as token ids."""
    return encode(tokenizer, list(itertools.islice(text.documents(seed), count)))


def _log_probs(model: Any, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [N, V] at every position of the rows that has a next token, and those tokens [N]."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    real = torch.arange(1, width) < lengths[:, None]
    with evaluating(model):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1][real]
    return logits.float().log_softmax(-1), ids[:, 1:][real]


def _batches(rows: list[list[int]]) -> list[list[list[int]]]:
    ordered = sorted(rows, key=len)
    return [ordered[i : i + 16] for i in range(0, len(ordered), 16)]


def mean_loss(model: Any, rows: list[list[int]], pad_id: int) -> float:
    """Nats a token, over all tokens of the rows."""
    rendered = [Rendered(row, row) for row in rows]
    losses = row_losses(model, rendered, pad_id, 16, "held-out loss")
    return sum(losses) / sum(row.trained_tokens for row in rendered)


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """The weight rounded to llama.cpp's Q4_0: blocks of 32 in a row, scale = the value of largest magnitude / -8."""
    blocks = weight.float().reshape(-1, 32)
    scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
    inverse = torch.where(scale == 0, 0, 1 / scale)
    codes = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
    return (codes * scale.half().float()).reshape(weight.shape).to(weight.dtype)


def rounding(model: Any, rows: list[list[int]]) -> dict[str, float]:
    """What rounding every matrix to Q4_0 changes: `kl_q4_0` in nats a token, `perplexity_up_q4_0` as a share."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                parameter.copy_(q4_0(parameter))
    kl, worse, n = 0.0, 0.0, 0
    for batch in _batches(rows):
        p, targets = _log_probs(model, batch)
        q, _ = _log_probs(rounded, batch)
        kl += functional.kl_div(q, p, log_target=True, reduction="sum").item()
        worse += (p - q).gather(1, targets[:, None]).sum().item()
        n += len(targets)
    return {"kl_q4_0": kl / n, "perplexity_up_q4_0": math.exp(worse / n) - 1}


def figures(model: Any, tokenizer: Any, held_out: list[list[int]], seen: Collection[str]) -> dict[str, float]:
    """Everything that is measured of the weights; the sample task and the tokens' counts are the recipe's."""
    return {
        "held_out_loss": mean_loss(model, held_out, tokenizer.pad_token_id),
        "copied": copied(model, tokenizer, seen),
        **sums(model, tokenizer),
        **rounding(model, held_out),
    }


def say(found: dict[str, float], said: dict[str, str]) -> None:
    """Prints the figures beside their limits, and the answers."""
    table = Table(title="The embedded model", title_justify="left")
    for name in ("", "figure", "lowest", "highest"):
        table.add_column(name, justify="right" if name else "left")
    for name, value in found.items():
        what, low, high = LIMITS.get(name, (name.replace("_", " "), -math.inf, math.inf))
        ends = ("" if math.isinf(end) else f"{end:g}" for end in (low, high))
        table.add_row(what, f"{value:,.4g}", *ends)
    console = Console(highlight=False)
    console.print(table)
    for question, answer in said.items():
        console.print(f"{question}  →  {answer}", markup=False)


def check(found: dict[str, float]) -> None:
    """Raises TooWeak with every figure that is out of its limits."""
    wrong = [
        f"{what}: {found[name]:.4g}, and it must be {f'at least {low:g}' if found[name] < low else f'at most {high:g}'}"
        for name, (what, low, high) in LIMITS.items()
        if not low <= found[name] <= high
    ]
    if wrong:
        raise TooWeak("The model doesn't reach its figures: " + "; ".join(wrong) + ".")
