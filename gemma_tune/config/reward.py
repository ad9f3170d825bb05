"""`reward=…`: what completions are rewarded for, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_tune.config.option import BATCH, ROWS, TOKENS, option

# One file each, gemma_tune/rewards/<name>.py; `model` is gemma_tune/rl/reward_model.py. Rewards for correct answers
# come first: the first one that is used is the headline metric of a run.
REWARDS = (
    "math", "exact", "tool_call", "code", "reasoning_gym", "json_schema", "model", "format", "language", "length",
    "repetition",
)  # fmt: skip
# Rewards for correct answers
RIGHT = ("math", "exact", "tool_call", "code", "reasoning_gym", "json_schema")
_MOST, _DAY = 1e6, 86_400
_WEIGHT = "Weight in the sum; 0: not used."


@dataclass
class MathReward:
    """1 where the answer equals the reference answer, as a number or a formula, else 0."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    formats: list[str] = option(
        ["boxed", "answer", "hashes", "plain"],
        "Where the answer is looked for; the first that is found counts: boxed (`\\boxed{…}`), answer "
        "(`<answer>…</answer>`), hashes (`#### …`), plain (after `answer is` or the like, else the last number).",
    )


@dataclass
class ExactReward:
    """1 where the text equals the reference answer word for word, else 0."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    ignore_case: bool = option(False, "Compare without regard to upper and lower case.")


@dataclass
class FormatReward:
    """1 where the completion has the required format, else 0."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    form: str = option(
        "tags",
        "tags: `reward.format.tags`, one after the other, each once, nothing around them; thinking: Gemma 4's "
        "thinking channel, then an answer; regex: the whole completion matches `reward.format.regex`.",
        choices=("tags", "thinking", "regex"),
    )
    tags: list[str] = option(["think", "answer"], "tags: their names in order.")
    regex: str | None = option(None, "regex: the pattern; a dot matches line breaks, too.")


@dataclass
class LengthReward:
    """1 between two lengths, falling to 0 over a margin on either side."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    min_tokens: int = option(0, "Minimum length in tokens.", at_least=0, at_most=TOKENS)
    max_tokens: int | None = option(None, "Maximum length in tokens; null: no limit.", at_least=1, at_most=TOKENS)
    margin: int = option(
        16,
        "Tokens below the minimum or above the maximum over which the reward falls to 0.",
        at_least=0,
        at_most=TOKENS,
    )


@dataclass
class RepetitionReward:
    """From 0 (no repetition) down to -1: minus the share of word n-grams that occurred before."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    ngram_size: int = option(3, "Words of an n-gram.", at_least=1, at_most=1000)


@dataclass
class LanguageReward:
    """Confidence that the completion is in the wanted language, from 0 to 1 (lingua)."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    language: str | None = option(
        None, "ISO 639-1 code, for example `de`; null: the row's field `language`, else the language of the prompt."
    )


@dataclass
class JsonSchemaReward:
    """1 where the completion is JSON that satisfies the schema, 0.2 where it is other JSON, else 0."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    schema_file: str | None = option(None, "File with the JSON schema; null: the row's field `schema`.", path="file")


@dataclass
class ToolCallReward:
    """1 where the calls equal the reference calls (name and arguments, compared as JSON), else 0."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    partial: bool = option(False, "Partial credit: half for the right tool, the rest by the share of right arguments.")


@dataclass
class CodeReward:
    """Share of the row's tests that the completion's code passes, in a sandbox (bubblewrap) without a network."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    timeout: float = option(
        5.0,
        "Seconds for one test; the failing tests of a completion together take at most 3 times that.",
        above=0,
        at_most=_DAY,
    )
    memory_mb: int = option(512, "Memory limit of one test in MiB.", at_least=64, at_most=2**20)
    processes: int = option(
        16,
        "Maximum number of threads; other processes are refused, so that `memory_mb` limits all of it.",
        at_least=1,
        at_most=4096,
    )
    file_mb: int = option(16, "MiB of files that the code may write in total, in memory.", at_least=1, at_most=2**20)
    max_tests: int | None = option(
        None, "Run only the first tests of a row, up to this number; null: all.", at_least=1, at_most=ROWS
    )


@dataclass
class ReasoningGymReward:
    """The score of reasoning-gym's own verifier, from 0 to 1 (`data=reasoning_gym`)."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)


@dataclass
class ModelReward:
    """The score of a reward model, unchanged."""

    weight: float = option(0.0, _WEIGHT, at_least=-_MOST, at_most=_MOST)
    model_name_or_path: str | None = option(
        None,
        "A run folder of `recipe=reward_model`, or a checkpoint for sequence classification with one label.",
        path="model",
    )
    batch_size: int = option(8, "Completions scored in one batch.", at_least=1, at_most=BATCH)


@dataclass
class RewardConfig:
    """Rewards by their weights: `reward.math.weight=1.0 reward.format.weight=0.2`."""

    math: MathReward = field(default_factory=MathReward)
    exact: ExactReward = field(default_factory=ExactReward)
    format: FormatReward = field(default_factory=FormatReward)
    length: LengthReward = field(default_factory=LengthReward)
    repetition: RepetitionReward = field(default_factory=RepetitionReward)
    language: LanguageReward = field(default_factory=LanguageReward)
    json_schema: JsonSchemaReward = field(default_factory=JsonSchemaReward)
    tool_call: ToolCallReward = field(default_factory=ToolCallReward)
    code: CodeReward = field(default_factory=CodeReward)
    reasoning_gym: ReasoningGymReward = field(default_factory=ReasoningGymReward)
    model: ModelReward = field(default_factory=ModelReward)
    functions: dict[str, str] = option(
        {},
        "Your own rewards by name: `reward.functions.polite=my.py:polite`, a function (completions, records), or with "
        "TRL's signature (prompts, completions, **kwargs).",
        path="function",
    )
    weights: dict[str, float] = option(
        {}, "Weights of `reward.functions`; 1 where it is not set.", at_least=-_MOST, at_most=_MOST
    )
    timeout: float = option(
        20.0,
        "Seconds that a reward may take for a batch and, where that was too long, for each completion; code and "
        "model have no such limit.",
        above=0,
        at_most=_DAY,
    )
    max_failure_share: float = option(
        0.1,
        "Share of the last 256 completions on which a reward may fail (an error, a time-out, no number); above it "
        "the run stops.",
        at_least=0,
        at_most=1,
    )

    def weighted(self) -> dict[str, float]:
        """Weights of the rewards that are used, by name: rewards for correct answers first, for the report."""
        ours = {name: float(getattr(self, name).weight) for name in REWARDS}
        yours = {name: float(self.weights.get(name, 1.0)) for name in self.functions}
        right = {name: ours.pop(name) for name in REWARDS if name in RIGHT}
        return {name: weight for name, weight in (right | yours | ours).items() if weight}
