"""What a trainer does with weights that are spread over processes (`parallel=fsdp2`), and with checkpoints of such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import TrainableTokensWrapper
from transformers import Trainer

from gemma_tune.errors import UserError
from gemma_tune.models.sharded import shard
from gemma_tune.run.checkpoints import SHARDS, is_of_shards

_OPTIMIZER, _SCHEDULER = "optimizer_0", "scheduler.pt"  # accelerate's and Transformers' names


class ShardedTrainer(Trainer):  # type: ignore[misc]
    """Part of `GemmaTrainer`:

    - Under FSDP2 the weights are spread when the trainer has been made, and not when training begins, so that what is
      measured before needs no whole model either.
    - A checkpoint of spread weights has a part of each process, in torch's format (`torch.distributed.checkpoint`).
      Any number of processes goes on from it, one among them.

    Attributes:
        blank: What the spread weights can be gathered in.
    """

    model: Any
    optimizer: Any
    blank: Any = None

    def shard(self, blank: Any) -> None:
        """Spreads the weights.

        Args:
            blank: What they can be gathered in.

        Raises:
            UserError: accelerate ignores FSDP2 on this device, as it does on CPUs, without a word.
        """
        if not self.accelerator.is_fsdp2:
            raise UserError(
                "parallel=fsdp2 needs GPUs: accelerate spreads no weights over processes on CPUs; take parallel=ddp."
            )
        if any(isinstance(module, TrainableTokensWrapper) for module in self.model.modules()):
            raise UserError(
                "parallel=fsdp2: this adapter trains rows of the embedding, of which each process has a part; take "
                "parallel=ddp."
            )
        self.blank = blank
        self.model = self.model_wrapped = shard(self.accelerator, self.model)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Transformers' own, for weights that are spread already.

        accelerate finds a parameter of the optimizer by the address of its numbers, where a process has none of them
        it finds another one; here the optimizer is made of what is spread, so there is nothing to find.
        """
        if not self.is_fsdp_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.create_optimizer()
        self.optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        self.create_scheduler(num_training_steps=max_steps)
        if resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self.callback_handler.train_dataloader = train_dataloader
        return self.model, train_dataloader

    def save_shards(self, folder: Path) -> None:
        """Writes this process's part of the weights; all processes do it at once."""
        from accelerate.utils.fsdp_utils import save_fsdp_model

        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_model(plugin, self.accelerator, self.model, str(folder), adapter_only=True)

    def load_shards(self, folder: Path) -> None:
        """Reads the weights of a checkpoint of spread weights, into the parts of each process or a plain model."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

        adapted = isinstance(self.model, PeftModel)  # whose names PEFT shortens
        names = get_peft_model_state_dict if adapted else get_model_state_dict
        state = {"model": names(self.model)}
        dcp.load(state, checkpoint_id=str(folder / SHARDS))
        (set_peft_model_state_dict if adapted else set_model_state_dict)(self.model, state["model"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled or not is_of_shards(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        state = {"optimizer": get_optimizer_state_dict(self.model, optimizer)}
        dcp.load(state, checkpoint_id=str(Path(checkpoint) / _OPTIMIZER))
        set_optimizer_state_dict(self.model, optimizer, state["optimizer"])
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))
