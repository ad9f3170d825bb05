"""Retrieval from long texts: needles, keys and chains of variables, at any length."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_tune.chat import render_prompt
from gemma_tune.chat.answer_text import answer_text
from gemma_tune.engines.base import Dialogue, Engine
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow, mean
from gemma_tune.evals.haystack import HaystackRow, make_rows, score
from gemma_tune.evals.haystack_facts import Difficulty
from gemma_tune.evals.samples import dialogue_replies
from gemma_tune.run.paths import resolve

# Characters kept of a prompt for people: its end, where the question is.
_SHOWN = 300


def prepare(inputs: Inputs) -> Evaluator:
    """Rows like those of RULER (arXiv:2404.06654), answered greedily; see `haystack.make_rows`.

    Returns:
        An evaluator that returns, for each kind and length, `<kind>_<length>_accuracy`, the share of hidden facts that
        the answers name; `long_context_stopped`, the share of answers that ended with a stop token; and
        `long_context_rows_beyond`, the number of rows longer than the model's `max_position_embeddings` (they are
        evaluated, too, to show how far the model extrapolates). With a limit, each kind and length gets an equal share
        of the rows, at least one, spread over all depths.

    Raises:
        UserError: A length is too short for a kind.
    """
    cfg, tokenizer = inputs.cfg.eval.long_context, inputs.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    template = len(render_prompt(tokenizer, [{"role": "user", "content": "."}])) - count(".")
    rows = make_rows(
        cfg.kinds,
        cfg.lengths,
        cfg.num_samples,
        inputs.cfg.seed,
        count,
        template + cfg.max_new_tokens,
        Difficulty(cfg.distractor_keys, cfg.values, cfg.queries, cfg.hops, cfg.chains),
        resolve(cfg.text_file) if cfg.text_file else None,
    )

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        asked = rows if limit is None else equal_shares(rows, limit)
        dialogues = [Dialogue(row.messages) for row in asked]
        answers = dialogue_replies(engine, dialogues, cfg.max_new_tokens, "long context")
        cells: dict[str, list[ScoredRow]] = {}
        for row, ids in zip(asked, answers, strict=True):
            answer = answer_text(tokenizer, ids)
            cells.setdefault(f"{row.kind}_{row.length}_accuracy", []).append(
                {
                    "id": row.id,
                    "prompt": row.messages[-1]["content"][-_SHOWN:],
                    "wanted": ", ".join(row.wanted),
                    "answer": answer,
                    "stopped": bool(ids) and ids[-1] in engine.stops,
                    "score": score(row, answer),
                    "depth": row.depth,
                }
            )
        figures: dict[str, float] = {name: mean(found) for name, found in cells.items()}
        stopped = [row["stopped"] for found in cells.values() for row in found]
        figures["long_context_stopped"] = sum(stopped) / len(stopped)
        if beyond := sum(row.length > engine.max_length for row in asked):
            figures["long_context_rows_beyond"] = beyond
        return Outcome(figures, cells)

    return evaluate


def equal_shares(rows: Sequence[HaystackRow], limit: int) -> list[HaystackRow]:
    """An equal number of rows of each kind and length, at least one, spread over the depths, in the original order.

    Args:
        rows: The rows by kind, then length, then depth.
        limit: Rows in total, if there are not more combinations of kind and length.
    """
    cells: dict[tuple[str, int], list[HaystackRow]] = {}
    for row in rows:
        cells.setdefault((row.kind, row.length), []).append(row)
    share = max(1, limit // len(cells))
    return [row for cell in cells.values() for row in _spread(cell, share)]


def _spread(cell: list[HaystackRow], n: int) -> list[HaystackRow]:
    """`n` evenly spread rows, including the first and the last; for n = 1 the middle one."""
    if n >= len(cell):
        return cell
    last = len(cell) - 1
    return [cell[round(i * last / (n - 1))] for i in range(n)] if n > 1 else [cell[last // 2]]
