"""`eval=…`: what is measured before, while and after training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gemma_tune.config.option import option

# gemma_tune/evals/<name>.py each.
EVALUATORS = ("held_out_loss", "answers", "preference", "rewards", "tool_calls", "kl", "lm_eval", "long_context")
LONG_CONTEXT_KINDS = ("needle", "multi_key", "multi_value", "multi_query", "variable_tracking")
_LOWER_IS_BETTER = re.compile(r"(^|_)(loss|perplexity|kl|bits_per_byte|brier_score)$")


def lower_is_better(figure: str) -> bool:
    """Whether a figure is the better the lower it is, as far as its name says: a loss, a perplexity, a divergence, …"""
    return bool(_LOWER_IS_BETTER.search(figure))


@dataclass
class AnswersConfig:
    """Greedy answers to the rows of `data.test_files`, and when one is right."""

    match: str = option(
        "exact_match",
        "exact_match: the same calls as data, or the same words; number: the same final answer, read as `reward.math` "
        "does (`\\boxed{…}`, `<answer>…</answer>`, `#### …`, `answer is …`, else the last number), without computing "
        "formulas; regex: the same match of `eval.answers.regex`.",
        choices=("exact_match", "number", "regex"),
    )
    regex: str | None = option(
        None,
        "regex: what to look for in the answer and in the wanted one, for example `#### (-?[0-9.,]+)`; the last find "
        "counts, and of groups the first.",
    )


@dataclass
class ToolCallsConfig:
    """Files of the Berkeley Function-Calling Leaderboard, as they are."""

    questions_file: str | None = option(
        None, "Questions with their functions (`BFCL_v4_simple_python.json`, …).", path="file"
    )
    answers_file: str | None = option(None, "Their ground truth (`possible_answer/…`).", path="file")


@dataclass
class KLConfig:
    """Kullback-Leibler divergence to another model, and how often the best token is the same, on the held-out rows."""

    reference: str | None = option(
        None, "The other model: a folder, an adapter, a run folder, or a name of the Hub.", path="model"
    )
    max_samples: int = option(64, "Rows that are compared at most.", at_least=1)


@dataclass
class LmEvalConfig:
    """Tasks of lm-evaluation-harness; names are those of its command."""

    tasks: list[str] = option([], "Names of tasks or groups, for example `[mmlu,hellaswag]`.")
    include_path: str | None = option(
        None, "Folder with your own task YAMLs; with it they can run without a network.", path="folder"
    )
    num_fewshot: int | None = option(None, "Examples in the prompt; null: as each task says.", at_least=0)
    limit: int | None = option(
        None, "Rows of each task at most; null: all, but in a run that trains `eval.max_samples`.", at_least=1
    )
    apply_chat_template: bool = option(False, "Ask in the form of a chat.")
    batch_size: int = option(8, "Rows of one pass.", at_least=1)


@dataclass
class LongContextConfig:
    """Finding what stands in a long text, as in RULER."""

    kinds: list[str] = option(
        ["needle", "multi_key", "variable_tracking"], f"Which tasks, of {', '.join(LONG_CONTEXT_KINDS)}."
    )
    lengths: list[int] = option([2048, 8192], "Tokens of a prompt and its answer, the template counted.")
    num_samples: int = option(10, "Rows of each kind and length, whatever `eval.max_samples` is.", at_least=1)
    distractor_keys: int = option(3, "multi_key: keys beside the one that is asked for.", at_least=1)
    values: int = option(4, "multi_value: values of the one key.", at_least=2)
    queries: int = option(4, "multi_query: keys that are asked for.", at_least=2)
    hops: int = option(4, "variable_tracking: assignments after the first one.", at_least=1)
    chains: int = option(1, "variable_tracking: chains of assignments, of which one is asked for.", at_least=1)
    text_file: str | None = option(
        None, "Text of yours to hide things in; null: sentences that are made up.", path="file"
    )
    max_new_tokens: int = option(64, "Tokens of an answer at most.", at_least=1)


@dataclass
class EvalConfig:
    """Evaluators, and how much of each."""

    evaluators: list[str] = option(
        ["held_out_loss", "answers"],
        "What is measured before and after training, or by `recipe=evaluate`: held_out_loss (and perplexity), answers "
        "(to `data.test_files`), rewards (of such answers, by `reward`), preference (of held-out pairs), tool_calls, "
        "kl, lm_eval, long_context, or `path/to/file.py:function` of yours.",
        path="function",
    )
    before: bool = option(True, "Measure before training, too.")
    during_training: list[str] = option(
        ["held_out_loss"],
        "Which of them are measured every `train.eval_steps` steps, too.",
        path="function",
    )
    max_samples_during_training: int = option(
        64,
        "Rows that an evaluator answers at most while training, of each test or task (of long_context an equal share "
        "of each kind and length, at least one); losses are taken of all rows.",
        at_least=1,
    )
    max_samples: int | None = option(
        None,
        "Rows that are answered at most, before and after, the first ones: of each of `data.test_files`, of the "
        "questions of tool_calls, and in a run that trains of each task of lm_eval; null: 200, or all for models "
        "narrower than 512. kl and long_context have limits of their own.",
        at_least=1,
    )
    num_samples: int = option(
        4, "Answers shown side by side, before and after: of test rows, or of held-out ones.", at_least=0
    )
    batch_size: int | None = option(
        None, "Prompts answered at once; null: 8, or 64 for models narrower than 512.", at_least=1
    )
    max_new_tokens: int = option(
        64, "Tokens of such an answer at most; where rewards train, `train.max_completion_length` holds.", at_least=1
    )
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    tool_calls: ToolCallsConfig = field(default_factory=ToolCallsConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)
    long_context: LongContextConfig = field(default_factory=LongContextConfig)

    @property
    def answers_tests(self) -> bool:
        """Whether the rows of `data.test_files` are read: for `answers`, and for functions of the user's."""
        return any(name in ("answers", "rewards") or ":" in name for name in (*self.evaluators, *self.during_training))
