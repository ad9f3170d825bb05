"""Arms of a comparison, TRL and ours, in one process: each trains with its trainer's own loop, and they take turns.

Every arm has a thread, of which one runs at a time: after each optimizer step the next one has its turn. So all meet
the same device, and what is measured is the whole loop: collating, forward and backward pass, clipping, update, log.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from gpu_shapes import SHAPES, built, config_of, device, sharing, synchronize
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from gemma_tune.cli.compose import compose_config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import first_line
from gemma_tune.models.adapters.adapter import attach
from gemma_tune.models.contexts import training_attention
from gemma_tune.models.estimate.memory import estimate
from gemma_tune.models.estimate.size import size_of
from gemma_tune.models.family import BY_DOCUMENT, FAMILIES
from gemma_tune.models.hardware import mixed_precision
from gemma_tune.models.kernels.label_positions import compute_all_positions
from gemma_tune.models.source import Source
from gemma_tune.models.unwrap import language_part
from gemma_tune.run.paths import ASSETS
from gemma_tune.train.arguments import sft_arguments
from gemma_tune.train.sft import sft_trainer

TRL = "TRL at its best"
WARM_UP, STEPS = 3, 10  # optimizer steps of each arm
# Arms share their weights, and one that moves the table moves it for all: measured where an arm is alone
TABLE_ON_GPU, TABLE_ON_HOST = (f"model.per_layer_table_on_host={word}" for word in ("false", "null"))
_GIB = 2**30


@dataclass
class Case:
    """What all arms of a comparison train on.

    Attributes:
        model: The Hub's name.
        rows: As a trainer takes them; with `seq_lengths` they are packed.
        length: Tokens of the longest row.
        batch: Rows of a step.
        recompute: Whether layers are computed again in the backward pass.
        recipe: Ours.
        tiny: Whether a small model stands in.
    """

    model: str
    rows: Dataset
    length: int
    batch: int
    recompute: bool = False
    recipe: str = "lora_sft"
    tiny: bool = False

    @property
    def packed(self) -> bool:
        return "seq_lengths" in self.rows.column_names

    def words(self, asked: Sequence[str], steps: int) -> list[str]:
        """The words of our configuration; of words that are asked for twice the last one counts."""
        return [
            SHAPES[self.model][0], "tracker=none", "eval=none", "export=none", f"train.max_steps={steps}",
            f"train.max_length={self.length}", f"train.per_device_train_batch_size={self.batch}",
            f"train.packing={str(self.packed).lower()}", "train.logging_steps=1", "train.learning_rate=1e-4",
            f"train.gradient_checkpointing={str(self.recompute).lower()}", TABLE_ON_GPU, *asked,
        ]  # fmt: skip


@dataclass
class Arm:
    """One way of training, and what it gave.

    Attributes:
        name: What it is called.
        asked: Words of our configuration, or None for TRL.
        trainer: Its trainer.
        cfg: Our configuration.
        seconds: Of each step by the clock, from one synchronization to the next.
        peak: Bytes that were allocated at most, with what the other arms hold.
        error: The first line of what ended it, or None.
    """

    name: str
    asked: list[str] | None
    trainer: Any = None
    cfg: Any = None
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    error: str | None = None

    @property
    def held(self) -> int:
        """Bytes of its adapter and of its optimizer's state."""
        if self.trainer is None:
            return 0
        trained = [p for p in self.trainer.model.parameters() if p.requires_grad]
        state = getattr(self.trainer.optimizer, "state", {}).values()
        tensors = [*trained, *(x for s in state for x in s.values() if isinstance(x, torch.Tensor))]
        return sum(x.numel() * x.element_size() for x in tensors if x.device.type == "cuda")


class Turns(TrainerCallback):
    """Gives the device to one arm after the other.

    Args:
        arms: In their order.
        until: `time.monotonic()` after which no more rounds begin.
    """

    def __init__(self, arms: Sequence[Arm], until: float) -> None:
        self._waiting, self._changed, self._until = list(arms), threading.Condition(), until
        self._begun = 0.0
        self._last = 1 << 30  # number of the last round, the same for all

    def wait(self, arm: Arm) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] is arm)
        synchronize()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._begun = time.perf_counter()

    def stepped(self, arm: Arm, control: Any) -> None:
        """At the end of a step: what it took, and the next one's turn."""
        synchronize()
        arm.seconds.append(time.perf_counter() - self._begun)
        if torch.cuda.is_available() and len(arm.seconds) > WARM_UP:
            arm.peak = max(arm.peak, torch.cuda.max_memory_allocated())
        if time.monotonic() > self._until:
            self._last = min(self._last, len(arm.seconds) + 1)  # arms before it in this round have gone on
        if len(arm.seconds) >= self._last:
            control.should_training_stop = True
        with self._changed:
            self._waiting.append(self._waiting.pop(0))
            self._changed.notify_all()
        self.wait(arm)

    def leave(self, arm: Arm) -> None:
        with self._changed:
            self._waiting.remove(arm)
            self._changed.notify_all()


class OfArm(TrainerCallback):
    def __init__(self, arm: Arm, turns: Turns) -> None:
        self._arm, self._turns = arm, turns

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self._turns.stepped(self._arm, control)
        return control


def compare(
    case: Case, arms: dict[str, list[str] | None], until: float, change: Callable[[Any], Any] | None = None
) -> dict[str, Any]:
    """Trains all arms in turns; once more with recomputation where the device's memory is too small.

    Args:
        case: What they train on.
        arms: By name our words, or None for TRL.
        until: `time.monotonic()` at which it should be over.
        change: What becomes of the model before it is adapted, such as 4-bit weights.
    """
    found = _compared(case, arms, until, change)
    first = list(found["arms"].values())[:2]  # TRL's and ours; others say by themselves that they need more
    if not case.recompute and any("out of memory" in (arm["error"] or "") for arm in first):
        case.recompute = True
        errors = {name: arm["error"] for name, arm in found["arms"].items()}
        found = {**_compared(case, arms, until, change), "without_recomputation": errors}
    return found


def _compared(case: Case, arms: dict[str, list[str] | None], until: float, change: Any) -> dict[str, Any]:
    base = built(config_of(case.model, case.tiny))
    base = base if change is None else change(base)
    made = [Arm(name, asked) for name, asked in arms.items()]
    with tempfile.TemporaryDirectory() as scratch:
        first: dict[str, torch.Tensor] = {}
        for arm in made:
            _set_up(arm, case, base, Path(scratch), first)
        ready = [arm for arm in made if arm.error is None]
        turns = Turns(ready, until)
        threads = [threading.Thread(target=_train, args=(arm, turns), daemon=True) for arm in ready]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = {
            "model": case.model, "length": case.length, "batch": case.batch, "packed": case.packed,
            "recompute": case.recompute, "tokens": sum(map(len, case.rows["input_ids"])) * case.batch // len(case.rows),
            "arms": {arm.name: _result(arm, made, case) for arm in made},
        }  # fmt: skip
        for arm in made:
            arm.trainer = None
        del base, ready, turns, threads, made, first
        _free()
        return found


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _set_up(arm: Arm, case: Case, base: Any, scratch: Path, first: dict[str, torch.Tensor]) -> None:
    try:
        steps = WARM_UP + (2 if case.tiny else STEPS)
        torch.manual_seed(0)
        model = sharing(base)
        make = _theirs if arm.asked is None else _ours
        make(arm, case, model, scratch / str(len(list(scratch.iterdir()))), steps)
        trained = {n: p for n, p in arm.trainer.model.named_parameters() if p.requires_grad}
        if not first:
            first |= {n: p.detach().clone() for n, p in trained.items()}
        assert trained.keys() == first.keys(), "other layers are adapted"
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(first[name])
        arm.trainer.remove_callback(PrinterCallback)
    except Exception as error:  # an arm that can't be had doesn't end the others
        arm.error = f"{type(error).__name__}: {first_line(error)}"


def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


def _theirs(arm: Arm, case: Case, model: Any, folder: Path, steps: int) -> None:
    """A plain TRL trainer: bfloat16 products, SDPA, its own head, no recomputation unless it is needed."""
    layers = FAMILIES[model.config.model_type].linear_layers  # "all-linear" would reach more in Gemma 4
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=list(layers), task_type="CAUSAL_LM")
    args = SFTConfig(
        output_dir=str(folder), use_cpu=device().type == "cpu", bf16=True, packing=case.packed, max_length=case.length,
        gradient_checkpointing=case.recompute, per_device_train_batch_size=case.batch, max_steps=steps,
        logging_steps=1, learning_rate=1e-4, report_to="none", save_strategy="no", disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True}, dataloader_pin_memory=device().type != "cpu",
    )  # fmt: skip
    arm.trainer = SFTTrainer(
        model=get_peft_model(model, lora), args=args, train_dataset=case.rows, processing_class=_tokenizer()
    )


def _ours(arm: Arm, case: Case, model: Any, folder: Path, steps: int) -> None:
    cfg = arm.cfg = compose_config(case.recipe, case.words(arm.asked or [], steps))
    source = Source(cfg.model.model_name_or_path, None, None, str(ASSETS / "tiny"))
    asked = cfg.model.attn_implementation
    if asked not in (None, "sdpa", BY_DOCUMENT):
        model.set_attn_implementation(asked)
    if not cfg.model.layers_at_labels:
        compute_all_positions(model)
    adapted = attach(model, cfg.adapter, source)
    args = sft_arguments(cfg, SimpleNamespace(checkpoints=folder), device())
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    rows = TokenizedRows(dataset=case.rows, longest=case.length)
    arm.trainer = sft_trainer(cfg, args, adapted, _tokenizer(), rows, lambda wanted: [])


def _train(arm: Arm, turns: Turns) -> None:
    try:
        turns.wait(arm)
        arm.trainer.add_callback(OfArm(arm, turns))
        base = language_part(arm.trainer.model)
        asked = "sdpa" if arm.cfg is None else arm.cfg.model.attn_implementation
        with training_attention(base, asked):
            arm.trainer.train()
    except Exception as error:
        arm.error = f"{type(error).__name__}: {first_line(error)}"
        error.__traceback__ = None
        arm.trainer.model.zero_grad(set_to_none=True)
        _free()
    finally:
        turns.leave(arm)


def _result(arm: Arm, arms: Sequence[Arm], case: Case) -> dict[str, Any]:
    """What an arm gave; `peak_gib` is without what the others hold, `estimate_gib` what a dry run says."""
    history = [] if arm.trainer is None else arm.trainer.state.log_history
    others = sum(other.held for other in arms if other is not arm)
    expected = None
    if arm.cfg is not None:
        size = size_of(config_of(case.model, case.tiny))
        longest = case.length
        mixed, on_gpu = mixed_precision(arm.cfg, device()), device().type == "cuda"
        expected = estimate(arm.cfg, size, mixed, longest, on_gpu=on_gpu)["total"]
    return {
        "words": arm.asked,
        "seconds": arm.seconds[WARM_UP:],
        "losses": [line["loss"] for line in history if "loss" in line],
        "grad_norms": [line["grad_norm"] for line in history if "grad_norm" in line],
        "peak_gib": (arm.peak - others) / _GIB if arm.peak else None,
        "estimate_gib": expected,
        "error": arm.error,
    }
