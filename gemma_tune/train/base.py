"""What all our trainers add to TRL's: exact resumption, atomic checkpoints, and the run's own evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from transformers import PrinterCallback

from gemma_tune.models.contexts import evaluating, own_forward
from gemma_tune.models.kernels.tiled_head import HeadOptions
from gemma_tune.models.sharded import whole_weight
from gemma_tune.models.towers.towers import seeing
from gemma_tune.models.towers.trained_towers import with_towers_rate
from gemma_tune.models.unwrap import language_part
from gemma_tune.processes import from_main, gathered, highest
from gemma_tune.train.batches import MEDIA
from gemma_tune.train.best import why_not_best
from gemma_tune.train.checkpointing import CheckpointedTrainer
from gemma_tune.train.nonfinite import NonFiniteGuard, NonFiniteLoss
from gemma_tune.train.refused import refused_by_trainer
from gemma_tune.train.scored_forward import Scoring, use_scored_forward


class GemmaTrainer(CheckpointedTrainer):
    """A mixin that precedes one of TRL's trainers (`class Ours(GemmaTrainer, SFTTrainer)`):

    - Adapters stay float32. TRL rounds them to bfloat16 over 4-bit weights, which changes a continued adapter and
      loses updates below 2⁻⁸ of a weight.
    - LoRA+ (`loraplus_lr_ratio`) uses PEFT's optimizer.
    - What `CheckpointedTrainer` adds.
    - Log-probabilities of tokens come from our forward pass (`scored_forward`), where that is faster or asked for.
    - A NaN or infinite loss or gradient stops the run before the weights are updated; the error names the rows, and a
      checkpoint is kept.
    - Evaluations during training call `measure`, so their metrics are those from before and after training. They
      leave the modules' modes and the random state alone, so they change no weight.
    - `create_model_card` writes nothing: the report writes the cards.

    Args:
        loraplus_lr_ratio: Learning rate of B as a multiple of A's, or None.
        checkpoints_kept: How many checkpoints to keep, or None for all.
        towers_learning_rate: Learning rate of trained towers, or None for the one of all.
        tiled_head: Whether the head is ours; None: on a CPU, where TRL's has no kernel.
        compact_batches: Whether batches are computed without padding, and shared prompts once.
        guard: Remembers the batches of each step, to name its rows.

    Attributes:
        measure: Called every `train.eval_steps` steps with the step; returns metrics by name.
        passed_over: Why a step could not become the best one, by step and deciding metric.
        head_outputs: What TRL's trainer reads of the head beside log-probabilities.
        passes_with_media: How many forward passes of a batch there are, each of which takes its media.
    """

    optimizer: Any
    head_outputs: tuple[str, ...] = ("entropy",)
    passes_with_media = 1

    def __init__(
        self,
        *args: Any,
        loraplus_lr_ratio: float | None = None,
        checkpoints_kept: int | None = None,
        towers_learning_rate: float | None = None,
        tiled_head: bool | None = None,
        compact_batches: bool = False,
        guard: NonFiniteGuard | None = None,
        **kwargs: Any,
    ) -> None:
        model = kwargs["model"]
        before = {}
        if isinstance(model, PeftModel):
            before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._towers_learning_rate = towers_learning_rate
        self._tiled_head, self._compact_batches = tiled_head, compact_batches
        self.checkpoints_kept = checkpoints_kept
        self.measure: Callable[[int], dict[str, float]] = lambda step: {}
        self.passed_over: dict[str, str] = {}
        self._guard = guard or NonFiniteGuard(lambda rows: [])
        self._losses: list[torch.Tensor] = []
        self._not_finite: dict[str, float] = {}
        self._ops_of_token: int | None = None
        super().__init__(*args, **kwargs)
        self.use_our_forward(self.model)
        self.remove_callback(PrinterCallback)  # prints every log as a dict; the progress callback shows the loss
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.data = before[name]

    def use_our_forward(self, model: Any) -> None:
        """Gives a model, or the one inside a PeftModel, our forward pass for log-probabilities of tokens."""
        args, tiled = self.args, self._tiled_head
        head = HeadOptions(
            temperature=getattr(self, "temperature", 1.0),
            outputs=self.head_outputs,
            entropy_gradient=getattr(args, "entropy_coef", 0.0) != 0 or getattr(args, "use_adaptive_entropy", False),
        )
        tiled = self.accelerator.device.type == "cpu" if tiled is None else tiled
        wide = getattr(args, "cast_lm_head_to_fp32", False)
        use_scored_forward(language_part(model), Scoring(tiled, self._compact_batches, head, wide))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if MEDIA not in self._signature_columns:
            self._signature_columns.append(MEDIA)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """PEFT's LoRA+ optimizer where a ratio is set, else Transformers' own; towers have a rate of their own."""
        if self.optimizer is None:
            with refused_by_trainer():
                self._create_optimizer(model)
            if self._towers_learning_rate is not None:
                with_towers_rate(self.optimizer, self.model, self._towers_learning_rate, self.args.learning_rate)
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' schedule of the learning rate."""
        with refused_by_trainer():
            made = super().create_scheduler(*args, **kwargs)
        return made

    def _create_optimizer(self, model: Any = None) -> None:
        if self._loraplus_lr_ratio is None:
            super().create_optimizer(model)
            return
        target = self.model if model is None else model
        optimizer_cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, target)
        self.optimizer = create_loraplus_optimizer(
            target,
            optimizer_cls,
            loraplus_lr_ratio=self._loraplus_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **kwargs,
        )

    def _send_telemetry(self) -> None:
        """Sends nothing: TRL's switch is read when it is imported, which may have been before us."""

    @property
    def not_finite_way(self) -> str:
        """What to do about a loss that is NaN or infinite."""
        return "Lower train.learning_rate, or look at these rows."

    def floating_point_ops(self, inputs: Any) -> int:
        """As Trainer's, which walks through all modules to count the weights again for each batch."""
        if self._ops_of_token is None:
            self._ops_of_token = super().floating_point_ops({"input_ids": torch.zeros(1)})
        return inputs["input_ids"].numel() * self._ops_of_token if "input_ids" in inputs else 0

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds to each line with a loss the digest of the batches since the line before: `batch`, 8 hex digits."""
        if "loss" in logs:
            logs["batch"] = self._guard.batches()
            logs |= self.throughput.figures()
        super().log(logs, start_time)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass."""
        self._guard.saw(inputs)
        self.throughput.saw(inputs)
        media = inputs.pop(MEDIA, None) if isinstance(inputs, dict) else None  # with rewards it is a list of rows
        with seeing(self.model, media, passes=self.passes_with_media):
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        # Looked at where all processes can stop; here a GPU would be waited for in each micro-batch
        self._losses.append(loss.detach().reshape(()))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = whole_weight(super()._get_grad_norm(model, grad_norm))
        losses, self._losses = torch.stack(self._losses).tolist(), []
        if wrong := [value for value in losses if not math.isfinite(value)]:
            self._not_finite.setdefault("loss", wrong[0])
        if not math.isfinite(value := float(norm)):
            self._not_finite.setdefault("grad_norm", value)
        if highest(len(self._not_finite)) > 0:  # of any process: all must stop at the same place
            self._stop()
        self._guard.begin()
        return norm

    def _stop(self) -> None:
        """Stops the run at a NaN or infinite value; this step has updated no weight yet.

        Of several processes the first one with such a loss says which rows it had, else the first with such a gradient.
        """
        mine = next(((n, self._not_finite[n]) for n in ("loss", "grad_norm") if n in self._not_finite), None)
        found = [one for one in gathered(mine and (*mine, self._guard.rows())) if one]
        name, value, rows = next((one for one in found if one[0] == "loss"), found[0])
        before = self.state.global_step
        kept = "It is the first step, so there is no checkpoint."
        if before:
            if not (Path(self.args.output_dir) / f"step-{before}").is_dir():
                self.checkpoints_kept = None  # it may not be resumable, so it replaces no other checkpoint
                self._save_checkpoint(self.model, None)
            kept = f"The weights before it are in checkpoints/step-{before}."
        raise NonFiniteLoss(
            f"{name} is {value} at step {before + 1}; this step updated no weight. {rows} {kept} "
            f"{self.not_finite_way} The file metrics.jsonl holds all steps before."
        )

    def release(self) -> None:
        """Frees the optimizer's memory after training, and restores the model's own forward pass.

        Evaluation and export may need the memory, and must run in the same dtypes as before training.
        """
        self.optimizer = self.lr_scheduler = None
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The metrics of `measure` under the names that the trainer's callbacks expect: `eval_<name>`.

        Raises:
            RunError: No evaluation has given the metric that decides on the best step.
        """
        step, decides = self.state.global_step, self.args.metric_for_best_model
        # A user's evaluator may set a seed, or a mode
        with evaluating(self.model), own_forward(self.model), self.throughput.paused():
            measured = self.measure(step)
        figures = from_main(lambda: measured)  # the same decisions on all, whatever an evaluator of the user's gives
        named = {f"eval_{name}": value for name, value in figures.items()}
        if decides is not None:
            name = decides.removeprefix("eval_")
            if reason := why_not_best(name, figures, step, known=self.state.best_metric is not None):
                self.passed_over[f"step {step}: {name}"] = reason
                named[decides] = math.nan  # NaN never counts as better; a missing key would be a KeyError
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        self.control.should_log |= self.control.should_training_stop  # the last loss, whatever logging_steps is
        return named

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing."""
