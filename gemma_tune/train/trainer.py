"""TRL's SFTTrainer with what Gemma, exactness and safe checkpoints need."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from transformers import PrinterCallback
from transformers.trainer_utils import has_length
from trl import SFTConfig, SFTTrainer

from gemma_tune.config import Config
from gemma_tune.data.dataset import Rows
from gemma_tune.errors import UserError
from gemma_tune.train.callbacks import Progress
from gemma_tune.train.guard import FindRows, Guard, NonFiniteLoss
from gemma_tune.train.sampling import LengthGroups

CHECKPOINT = re.compile(r"^step-(\d+)$")


class GemmaSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer, and:

    - adapters keep their float32. TRL rounds them to bfloat16 over 4-bit weights, which changes an adapter that is
      continued, and loses updates below 2⁻⁸ of a weight.
    - LoRA+ (`loraplus_lr_ratio`), through PEFT's optimizer.
    - a checkpoint is written under another name and renamed when it is whole: `step-N` is never half a checkpoint.
    - batches of rows of like length come in random order, and in the same one when resumed.
    - a loss or a gradient that is no number ends the run before it changes a weight, with a checkpoint and the rows.
    - evaluations while training weigh tokens, not batches: `evaluator` gives `eval_loss`.
    - `create_model_card` writes nothing: the run's report.md is the card.

    Args:
        loraplus_lr_ratio: Learning rate of B as a multiple of A's, or None.
        checkpoints_kept: How many checkpoints to keep, or None for all.
        evaluator: Gives the held-out figures, `held_out_loss` among them.
        guard: Watches each step.
    """

    optimizer: Any
    control: Any

    def __init__(
        self,
        *args: Any,
        loraplus_lr_ratio: float | None = None,
        checkpoints_kept: int | None = None,
        evaluator: Callable[[], dict[str, float]] | None = None,
        guard: Guard | None = None,
        **kwargs: Any,
    ) -> None:
        model = kwargs["model"]
        before = {}
        if isinstance(model, PeftModel):
            before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._checkpoints_kept = checkpoints_kept
        self._evaluator = evaluator
        self._guard = guard or Guard(lambda rows: [])
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # prints every log as a dict; the progress callback shows the loss
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.data = before[name]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        lengths = [len(ids) for ids in dataset["input_ids"]]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroups(lengths, self.args.train_batch_size, seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """PEFT's LoRA+ optimizer where a ratio is set, else Transformers' own choice."""
        if self._loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        target = self.model if model is None else model
        optimizer_cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, target)
        self.optimizer = create_loraplus_optimizer(
            target,
            optimizer_cls,
            loraplus_lr_ratio=self._loraplus_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **kwargs,
        )
        return self.optimizer

    def _send_telemetry(self) -> None:
        """Sends nothing: TRL's switch is read when it is imported, which may have been before us."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            NonFiniteLoss: The loss is no number.
        """
        self._guard.saw(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._stop_if("loss", loss.item())
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None:
            self._stop_if("grad_norm", float(norm))
        self._guard.begin()
        return norm

    def _stop_if(self, name: str, value: float) -> None:
        """Ends the run where the value is no number: nothing of this step has reached a weight yet."""
        if math.isfinite(value):
            return
        before = self.state.global_step
        kept = "It is the first step, so there is no checkpoint."
        if before:
            self._save_checkpoint(self.model, None)
            kept = f"The weights before it are in checkpoints/step-{before}."
        raise NonFiniteLoss(
            f"{name} is {value} at step {before + 1}; nothing was changed by it. {self._guard.rows()} {kept} Lower "
            "train.learning_rate, or look at these rows; metrics.jsonl holds all steps before."
        )

    def release(self) -> None:
        """Gives the optimizer's memory back after training: evaluation and export may need it."""
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The evaluator's figures as `eval_…`: the same quantity before, while and after training."""
        if self._evaluator is None:
            return dict(super().evaluate(*args, **kwargs))
        names = {"held_out_loss": "eval_loss", "perplexity": "eval_perplexity"}
        figures = {names[k]: v for k, v in self._evaluator().items() if k in names}
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        written = folder / f"checkpoint-{self.state.global_step}"
        shutil.rmtree(written, ignore_errors=True)  # what a killed process left half-written
        super()._save_checkpoint(model, trial)
        if not self.args.should_save:
            return
        whole = folder / f"step-{self.state.global_step}"
        shutil.rmtree(whole, ignore_errors=True)
        written.rename(whole)
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(whole)
            self.state.save_to_json(str(whole / "trainer_state.json"))
        if self._checkpoints_kept:
            keep = {self.state.best_model_checkpoint}
            for old in checkpoints(folder)[: -self._checkpoints_kept]:
                if str(old) not in keep:
                    shutil.rmtree(old.rename(folder / f"checkpoint-{old.name}"))  # never half a step-N


def sft_trainer(
    cfg: Config,
    args: SFTConfig,
    model: Any,
    tokenizer: Any,
    train: Rows,
    held_out: Rows,
    evaluator: Callable[[], dict[str, float]],
    find_rows: FindRows,
) -> GemmaSFTTrainer:
    """The trainer for rendered rows, with our progress bar and the stop at a loss that is no number.

    Raises:
        UserError: TRL refuses an option, an optimizer's package is missing, or there is no whole batch.
    """
    try:
        trainer = GemmaSFTTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=train.dataset,
            eval_dataset=held_out.dataset if cfg.train.eval_steps else None,
            callbacks=[Progress()],
            loraplus_lr_ratio=cfg.adapter.loraplus_lr_ratio,
            checkpoints_kept=cfg.train.save_total_limit,
            evaluator=evaluator,
            guard=Guard(find_rows),
        )
        trainer.get_optimizer_cls_and_kwargs(args, model)  # imports what the optimizer needs
    except (ValueError, ImportError) as error:
        raise UserError(f"train: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise UserError(f"output_dir: {error.filename} can't be made ({error.strerror}).") from error
    if not cfg.data.streaming and len(trainer.get_train_dataloader()) == 0:
        raise UserError(
            f"train.extra.dataloader_drop_last=true drops all {len(train.rendered)} rows: they are fewer than a batch."
        )
    return trainer


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first."""
    found = [p for p in folder.glob("step-*") if CHECKPOINT.match(p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))
