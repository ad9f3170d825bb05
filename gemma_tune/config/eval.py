"""`eval=…`: what is measured before, during and after training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gemma_tune.config.option import BATCH, ROWS, TOKENS, option

# gemma_tune/evals/<name>.py each.
EVALUATORS = (
    "held_out_loss", "answers", "anls", "vqa_accuracy", "wer", "preference", "rewards", "tool_calls", "kl", "lm_eval",
    "long_context",
)  # fmt: skip
# Those that score the same greedy answers to `data.test_files`
ON_ANSWERS = ("answers", "anls", "vqa_accuracy", "wer")
# The column of a test row's reference answers, where there are several
REFERENCES = "answers"
# Those that need probabilities: a model that is only served gives answers
NEED_PROBABILITIES = ("held_out_loss", "preference", "kl", "lm_eval")
# Keys about evaluations before and during training
IN_TRAINING = ("before", "during_training", "max_samples_during_training")
LONG_CONTEXT_KINDS = ("needle", "multi_key", "multi_value", "multi_query", "variable_tracking")
_LOWER_IS_BETTER = re.compile(r"(^|_)(loss|perplexity|kl|bits_per_byte|brier_score|wer)$")


def lower_is_better(figure: str) -> bool:
    """Whether a lower value of a metric is better, judging by its name: a loss, a perplexity, a divergence, …"""
    return bool(_LOWER_IS_BETTER.search(figure))


@dataclass
class AnswersConfig:
    """Greedy answers to the rows of `data.test_files`, and when one is correct."""

    match: str = option(
        "exact_match",
        "exact_match: the same tool calls (compared as JSON), or the same words; number: the same final answer, read "
        "as `reward.math` does (`\\boxed{…}`, `<answer>…</answer>`, `#### …`, `answer is …`, else the last number), "
        "without computing formulas; regex: the same match of `eval.answers.regex`.",
        choices=("exact_match", "number", "regex"),
    )
    regex: str | None = option(
        None,
        "regex: the pattern to find in the model's answer and in the reference answer, for example `#### "
        "(-?[0-9.,]+)`; the last match counts, and its first group if it has groups.",
    )


@dataclass
class VqaAccuracyConfig:
    """VQA accuracy of greedy answers to the rows of `data.test_files`, by the answers of several people."""

    normalizer: str = option(
        "textvqa",
        "When two answers are equal. vqa: by the rules of the VQA v2 evaluation (capitals, articles, number words, "
        "contractions and punctuation don't matter); textvqa: by TextVQA's, which first leaves out commas and "
        "question marks and parts `'s` from its word.",
        choices=("textvqa", "vqa"),
    )


@dataclass
class WerConfig:
    """Word error rate of greedy answers to the rows of `data.test_files`."""

    normalizer: str = option(
        "basic",
        "What is done to both texts first. basic: Whisper's basic normalizer (small letters; brackets with what is in "
        "them, punctuation and symbols out); none: nothing, words are what stands between blanks.",
        choices=("basic", "none"),
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
    """KL divergence from another model, and the share of positions with the same top token, on the validation set."""

    reference: str | None = option(
        None, "The reference model: a folder, an adapter, a run folder, or a name on the Hub.", path="model"
    )
    max_samples: int = option(64, "Maximum number of validation examples to compare.", at_least=1, at_most=ROWS)


@dataclass
class LmEvalConfig:
    """Tasks of lm-evaluation-harness; names are those of its command."""

    tasks: list[str] = option([], "Names of tasks or groups, for example `[mmlu,hellaswag]`.")
    include_path: str | None = option(
        None, "Folder with your own task YAMLs; a run that uses only those needs no network.", path="folder"
    )
    num_fewshot: int | None = option(
        None, "Few-shot examples in the prompt; null: as each task says.", at_least=0, at_most=10_000
    )
    limit: int | None = option(
        None,
        "Maximum number of rows of each task; null: all, but `eval.max_samples` in a run that trains.",
        at_least=1,
        at_most=ROWS,
    )
    apply_chat_template: bool = option(False, "Ask with the chat template.")
    batch_size: int = option(8, "Rows of one batch.", at_least=1, at_most=BATCH)


@dataclass
class LongContextConfig:
    """Retrieval from long texts, as in RULER."""

    kinds: list[str] = option(
        ["needle", "multi_key", "variable_tracking"], f"Which tasks, of {', '.join(LONG_CONTEXT_KINDS)}."
    )
    lengths: list[int] = option(
        [2048, 8192],
        "Lengths of a prompt and its answer in tokens, chat template included.",
        at_least=1,
        at_most=TOKENS,
    )
    num_samples: int = option(
        10, "Rows of each kind and length, whatever `eval.max_samples` is.", at_least=1, at_most=ROWS
    )
    distractor_keys: int = option(3, "multi_key: keys beside the one that is asked for.", at_least=1, at_most=10_000)
    values: int = option(4, "multi_value: values of the key.", at_least=2, at_most=10_000)
    queries: int = option(4, "multi_query: keys that are asked for.", at_least=2, at_most=10_000)
    hops: int = option(4, "variable_tracking: assignments after the first one.", at_least=1, at_most=10_000)
    chains: int = option(
        1, "variable_tracking: chains of assignments, of which one is asked for.", at_least=1, at_most=10_000
    )
    text_file: str | None = option(None, "Your own text to hide the facts in; null: generated sentences.", path="file")
    max_new_tokens: int = option(64, "Maximum number of tokens of an answer.", at_least=1, at_most=TOKENS)


@dataclass
class EvalConfig:
    """Which evaluators run, and on how many rows."""

    evaluators: list[str] = option(
        ["held_out_loss", "answers"],
        "Evaluators to run before and after training, or by `recipe=evaluate`: held_out_loss (and perplexity), "
        "answers (to `data.test_files`), anls, vqa_accuracy and wer (of the same answers, by one or several "
        "references), rewards (of such answers, by `reward`), preference (of validation pairs), tool_calls, kl, "
        "lm_eval, long_context, or your own `path/to/file.py:function`.",
        path="function",
    )
    before: bool = option(True, "Evaluate before training, too.")
    during_training: list[str] = option(
        ["held_out_loss"], "Evaluators to run every `train.eval_steps` steps, too.", path="function"
    )
    max_samples_during_training: int = option(
        64,
        "Maximum number of rows that an evaluator answers during training, of each test set or task (long_context: "
        "an equal share of each kind and length, at least one); losses are computed on all rows.",
        at_least=1,
        at_most=ROWS,
    )
    max_samples: int | None = option(
        None,
        "Maximum number of rows to answer before and after training, the first ones: of each of `data.test_files`, "
        "of the questions of tool_calls, and in a run that trains of each task of lm_eval; null: 200, or all for "
        "models with a hidden size below 512. kl and long_context have limits of their own.",
        at_least=1,
        at_most=ROWS,
    )
    num_samples: int = option(
        4,
        "Answers shown side by side, before and after training: to test rows, or to validation rows without any.",
        at_least=0,
        at_most=10_000,
    )
    batch_size: int | None = option(
        None,
        "Prompts answered in one batch; null: 8, or 64 for models with a hidden size below 512.",
        at_least=1,
        at_most=BATCH,
    )
    max_new_tokens: int = option(
        64,
        "Maximum number of tokens of such an answer; in training with rewards `train.max_completion_length` counts.",
        at_least=1,
        at_most=TOKENS,
    )
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    vqa_accuracy: VqaAccuracyConfig = field(default_factory=VqaAccuracyConfig)
    wer: WerConfig = field(default_factory=WerConfig)
    tool_calls: ToolCallsConfig = field(default_factory=ToolCallsConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)
    long_context: LongContextConfig = field(default_factory=LongContextConfig)

    @property
    def answers_tests(self) -> bool:
        """Whether the rows of `data.test_files` are read: for answers, `rewards`, and user functions."""
        names = (*self.evaluators, *self.during_training)
        return any(name in (*ON_ANSWERS, "rewards") or ":" in name for name in names)

    @property
    def reads_references(self) -> bool:
        """Whether the column `answers` of those rows is read."""
        return bool({*ON_ANSWERS[1:]} & {*self.evaluators, *self.during_training})
