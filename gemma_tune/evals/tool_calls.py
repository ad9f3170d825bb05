"""Function calls to questions in the format of the Berkeley Function-Calling Leaderboard, scored by its rules."""

from __future__ import annotations

from gemma_tune.chat import form_of, render_prompt
from gemma_tune.chat.answer_text import answer_text
from gemma_tune.chat.calls import content_text, parse_answer
from gemma_tune.engines.base import Dialogue, Engine
from gemma_tune.errors import UserError
from gemma_tune.evals.base import Evaluator, Inputs, Outcome, ScoredRow, mean
from gemma_tune.evals.bfcl import check_answer, read_bfcl
from gemma_tune.evals.samples import dialogue_replies
from gemma_tune.run.paths import resolve


def prepare(inputs: Inputs) -> Evaluator:
    """Answers every question greedily; an answer that was cut off is wrong.

    Returns:
        An evaluator that returns `tool_calls_accuracy`, the same for each category where there are several,
        `tool_calls_stopped` (shares of 1) and `tool_calls_rows`. The `kind` of a wrong row is the
        leaderboard's name of the error (`cut_off` for an answer without an end), and its `error` a message; both are
        empty for a right row.

    Raises:
        UserError: A bad file (and line), or a model whose chat template has no calls.
    """
    cfg, tokenizer, form = inputs.cfg.eval, inputs.tokenizer, form_of(inputs.tokenizer)
    if not form.calls:
        raise UserError(f"eval.evaluators: tool_calls: the chat template {form.name} has no calls; name another model.")
    rows = read_bfcl(resolve(str(cfg.tool_calls.questions_file)), resolve(str(cfg.tool_calls.answers_file)))
    rows = rows[: cfg.max_samples]
    for row in rows:
        render_prompt(tokenizer, row.messages, row.tools)  # before a model is loaded
    asked = [Dialogue(row.messages, row.tools) for row in rows]

    def evaluate(engine: Engine, limit: int | None = None) -> Outcome:
        answers = dialogue_replies(engine, asked[:limit], cfg.max_new_tokens, "tool calls")
        scored: list[ScoredRow] = []
        by_category: dict[str, list[ScoredRow]] = {}
        for row, ids in zip(rows, answers, strict=False):
            answer = answer_text(tokenizer, ids)
            stopped = bool(ids) and ids[-1] in engine.stops
            verdict = check_answer(parse_answer(answer, form).calls, row)
            scored.append(
                {
                    "id": row.id,
                    "prompt": content_text(row.messages[-1]),
                    "wanted": "\n".join(f"→ {call}" for call in row.gold()),
                    "answer": answer,
                    "stopped": stopped,
                    "score": float(verdict.right and stopped),
                    "kind": verdict.kind if stopped else "cut_off",
                    "error": verdict.message if stopped else "it was cut off",
                }
            )
            by_category.setdefault(f"tool_calls_{row.category}_accuracy", []).append(scored[-1])
        several = by_category if len(by_category) > 1 else {}
        figures = {
            "tool_calls_accuracy": mean(scored),
            **{name: mean(part) for name, part in several.items()},
            "tool_calls_stopped": sum(row["stopped"] for row in scored) / len(scored),
            "tool_calls_rows": len(scored),
        }
        return Outcome(figures, {"tool_calls_accuracy": scored, **several})

    return evaluate
