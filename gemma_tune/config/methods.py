"""What each method is: the one table that says what a recipe does to a model. Imports nothing of ours and no torch.

A recipe's YAML names its method (`method: qat`). Code outside `config/` and `recipes/` never asks for that name, only
for a property of the method (`cfg.traits.four_bit`). So a new method is one row here, a file in `recipes/`, a YAML, and
where it has a trainer of its own that trainer (`train/`) and its losses (`validation/trainer_tables.py`). Rows of
another kind also need a member of `Reads`, a reader in `data/`, and checks in `validation/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Kind(Enum):
    """What a method does, in one word; it decides which groups of the configuration have an effect."""

    TRAIN = "train"
    MEASURE = "measure"
    COMPARE = "compare"
    EXPORT = "export"
    PREVIEW = "preview"
    CHAT = "chat"
    DOCTOR = "doctor"
    COPY = "copy"
    PLAN = "plan"
    MODELS = "models"
    SERVE = "serve"
    PUSH = "push"


class Reads(Enum):
    """What a method reads of `data`."""

    EXAMPLES = "conversations or text, as token ids and labels"
    PAIRS = "pairs of a better and a worse answer"
    LABELLED = "answers that are labelled good or bad, or pairs"
    PROMPTS = "prompts with reference answers; the completions are the model's own"
    HELD_OUT = "validation and test sets only"
    QUESTIONS = "prompts of `chat`; nothing of `data`"
    NOTHING = "nothing of `data`"


@dataclass(frozen=True)
class Rates:
    """Default peak learning rates: wide models, and those narrower than `NARROW` (models/family.py).

    Attributes:
        full: Where every weight is trained.
        adapter: Where an adapter is.
    """

    full: tuple[float, float]
    adapter: tuple[float, float]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        file: The file of `recipes/` that holds the order of steps.
        kind: What it does.
        reads: What it reads of `data`.
        trainer: TRL's dataclass of options behind it; None where nothing is trained.
        rates: Default learning rates; None where learning rate, packing and batch need no default.
        batch: Default examples of a forward pass on one device, as (wide, narrow) model; with packing
            `_BATCH_PACKED` of cli/defaults.py replaces the first.
        float32: Weights are held in float32 whatever is trained (a quantization format rounds full weights).
        four_bit: Whether the base may be in 4 bit.
        streams: Whether training data may be streamed.
        packs: Whether several examples may be packed into one sequence.
        quantizes: Whether `quant` has an effect.
        stages: The methods that it runs one after the other, each with a run folder inside its own.
        evaluators: Whether `eval.evaluators` measures the model; a reward model is measured by its pairs. No meaning
            where nothing is measured (chat, preview).
        gguf: Whether the model may be a GGUF file.
        group: The group of the configuration that only this method uses.
        beside_group: What has an effect beside `group`, of a method that reads no `data`: keys, or whole groups.
        run_folder: Whether it keeps a run folder.
        new_tokens: Whether `model.added_tokens` may name new ones. A quantized student would learn them from a teacher
            that doesn't know them, and a reward model writes none.
        takes_over: Whether a run folder as its model brings its settings, and where rows are read these and its
            evaluators, too (cli/run_settings.py).
        adapter_recipes: Whether full weights, LoRA and QLoRA have recipes of their own (`full_sft`, `lora_sft`, …).
        reference: Whether the model as it was before the first step decides on the loss, and is computed first.
        own_loss: Whether `train.loss` may take the place of the loss.
        media: Whether rows may have images, sounds and videos.
    """

    file: str
    kind: Kind
    reads: Reads
    trainer: str | None = None
    rates: Rates | None = None
    batch: tuple[int, int] = (8, 4)
    float32: bool = False
    four_bit: bool = True
    streams: bool = False
    packs: bool = False
    quantizes: bool = False
    stages: tuple[str, ...] = ()
    evaluators: bool = True
    gguf: bool = False
    group: str | None = None
    beside_group: tuple[str, ...] = ()
    run_folder: bool = True
    new_tokens: bool = False
    takes_over: bool = False
    adapter_recipes: bool = False
    reference: bool = False
    own_loss: bool = False
    media: bool = False

    @property
    def trains(self) -> bool:
        """Whether weights change."""
        return self.kind is Kind.TRAIN

    @property
    def continues(self) -> bool:
        """Whether the adapter of a run is trained on with, on its own base; quantized training merges it first."""
        return self.trains and not self.float32

    @property
    def run_takes(self) -> tuple[str, ...]:
        """What `run` of its recipe is called with."""
        return ("cfg", "folder") if self.run_folder else ("cfg",)

    @property
    def read_takes(self) -> tuple[str, ...]:
        """What `read` of its recipe is called with, which a dry run calls; empty where it calls none."""
        if not self.run_folder:
            return ()
        return ("cfg", "setup") if self.trains else ("cfg", "folder")

    def functions(self, dry_run: bool) -> dict[str, tuple[str, ...]]:
        """The functions that its recipe must have, each with what it is called with."""
        return {"run": self.run_takes, **({"read": self.read_takes} if dry_run and self.read_takes else {})}

    @property
    def measures(self) -> bool:
        """Whether it measures models and trains none."""
        return self.kind in (Kind.MEASURE, Kind.COMPARE, Kind.EXPORT)

    @property
    def rewarded(self) -> bool:
        """Whether the model is trained on its own completions, by rewards."""
        return self.reads is Reads.PROMPTS

    @property
    def classifies(self) -> bool:
        """Whether it trains a classifier, whose head gives a conversation one score."""
        return self.trainer == "RewardConfig"

    @property
    def reads_training_set(self) -> bool:
        """Whether it reads the training set, to train on it or to show it."""
        return self.reads in (Reads.EXAMPLES, Reads.PAIRS, Reads.LABELLED, Reads.PROMPTS)

    @property
    def compares_answers(self) -> bool:
        """Whether it learns from better and worse answers that the rows hold."""
        return self.reads in (Reads.PAIRS, Reads.LABELLED)

    @property
    def answers_prompts(self) -> bool:
        """Whether the model writes answers that are scored: rows need no answer, and prompts may ask it to think."""
        return self.rewarded or self.measures

    @property
    def sequences(self) -> int:
        """Sequences of one example in a batch: both answers of a pair, each behind its prompt, are two."""
        return 2 if self.reads is Reads.PAIRS else 1


_SFT_RATES = Rates(full=(2e-5, 2e-3), adapter=(2e-4, 8e-3))
_RL_RATES = Rates(full=(1e-6, 2e-4), adapter=(1e-5, 2e-3))


def _rl(trainer: str) -> Method:
    return Method("rl", Kind.TRAIN, Reads.PROMPTS, trainer, _RL_RATES, batch=(8, 256), new_tokens=True, media=True)


METHODS: dict[str, Method] = {
    "sft": Method(
        "sft", Kind.TRAIN, Reads.EXAMPLES, "SFTConfig", _SFT_RATES, streams=True, packs=True, adapter_recipes=True,
        new_tokens=True, own_loss=True, media=True,
    ),
    "dpo": Method(
        "dpo", Kind.TRAIN, Reads.PAIRS, "DPOConfig", Rates(full=(1e-6, 5e-4), adapter=(1e-5, 2e-3)),
        new_tokens=True, reference=True, media=True,
    ),
    "kto": Method(
        "kto", Kind.TRAIN, Reads.LABELLED, "KTOConfig", Rates(full=(1e-6, 1.5e-4), adapter=(1e-5, 2e-3)), batch=(8, 8),
        new_tokens=True, reference=True, media=True,
    ),
    "reward_model": Method(
        "reward_model", Kind.TRAIN, Reads.PAIRS, "RewardConfig", Rates(full=(1e-5, 3e-4), adapter=(1e-4, 2e-3)),
        four_bit=False, evaluators=False,
    ),
    "grpo": _rl("GRPOConfig"),
    "dapo": _rl("GRPOConfig"),
    "dr_grpo": _rl("GRPOConfig"),
    "gspo": _rl("GRPOConfig"),
    "rloo": _rl("RLOOConfig"),
    # The gradient is noisier in a quantization format: batches of 4 recovered half as much of the loss as batches of 8
    "qat": Method(
        "qat", Kind.TRAIN, Reads.EXAMPLES, "SFTConfig", Rates(full=(1e-5, 1e-4), adapter=(1e-4, 1e-3)), batch=(8, 8),
        float32=True, four_bit=False, packs=True, quantizes=True, takes_over=True, media=True,
    ),
    "tune_to_int4": Method(
        "tune_to_int4", Kind.TRAIN, Reads.EXAMPLES, "SFTConfig", _SFT_RATES, packs=True, quantizes=True,
        stages=("sft", "qat"), new_tokens=True, media=True,
    ),
    "export": Method(
        "export", Kind.EXPORT, Reads.HELD_OUT, float32=True, four_bit=False, quantizes=True, takes_over=True,
        media=True,
    ),
    "evaluate": Method("evaluate", Kind.MEASURE, Reads.HELD_OUT, gguf=True, takes_over=True, media=True),
    "compare": Method("compare", Kind.COMPARE, Reads.HELD_OUT, group="compare", takes_over=True, media=True),
    "preview": Method(
        "preview", Kind.PREVIEW, Reads.EXAMPLES, rates=_SFT_RATES, streams=True, packs=True, group="preview",
        run_folder=False, new_tokens=True, media=True,
    ),
    "chat": Method("chat", Kind.CHAT, Reads.QUESTIONS, group="chat", run_folder=False, gguf=True),
    "doctor": Method("doctor", Kind.DOCTOR, Reads.NOTHING, group="doctor", run_folder=False),
    "copy": Method("copy", Kind.COPY, Reads.NOTHING, group="copy", run_folder=False),
    "plan": Method(
        "plan", Kind.PLAN, Reads.NOTHING, group="plan", run_folder=False,
        beside_group=(
            "model.model_name_or_path", "model.revision", "model.device", "train", "seed", "overwrite",
            "launch.num_processes", "launch.num_nodes", "parallel",
        ),
    ),
    "models": Method("models", Kind.MODELS, Reads.NOTHING, group="models", run_folder=False),
    "serve": Method(
        "serve", Kind.SERVE, Reads.NOTHING, group="serve", run_folder=False, gguf=True, takes_over=True,
        beside_group=("model", "engine"),
    ),
    "push": Method(
        "push", Kind.PUSH, Reads.NOTHING, group="push", run_folder=False, beside_group=("model.model_name_or_path",)
    ),
}  # fmt: skip


def named_method(tree: Mapping[str, Any]) -> Method | None:
    """The method that a configuration's mapping names; None where it names none of the table."""
    return METHODS.get(str(tree.get("method")))


TRAINERS = tuple(dict.fromkeys(m.trainer for m in METHODS.values() if m.trainer))
