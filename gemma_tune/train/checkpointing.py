"""Checkpoints of our trainers: whole or absent, each with the digests of its files, and exact to resume from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.trainer_callback import TrainerState

from gemma_tune.errors import RunError
from gemma_tune.models.towers.trained_towers import restore_towers, save_towers
from gemma_tune.processes import barrier
from gemma_tune.run.checkpoints import STATE, checkpoints, is_of_shards, seal, to_disk
from gemma_tune.train.profiling import Profile
from gemma_tune.train.sharded_trainer import ShardedTrainer
from gemma_tune.train.throughput import NoThroughput

_COUNTED = "counted.json"  # what TRL counts beside the trainer's state


class CheckpointedTrainer(ShardedTrainer):
    """Part of `GemmaTrainer`:

    - A checkpoint is written under another name, sealed with its digests, and renamed when the disk has all of it:
      `step-N` is never half a checkpoint.
    - All weights of a checkpoint are restored, or the run ends; so is TRL's count of tokens.
    - `take_up` goes on behind the last step, where only evaluation and export are left.
    - `train_loss` is the mean over all steps, where Transformers gives the mean since the run was resumed.

    Attributes:
        checkpoints_kept: How many checkpoints to keep, or None for all.
        throughput: Gives each line its tokens per second; with rewards, which say their own, it gives nothing.
        profile: What `train.profile` asks for.
    """

    control: Any
    checkpoints_kept: int | None = None
    throughput = NoThroughput()
    profile: Profile | None = None

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """A resumed run logs, evaluates and saves by the current options, and finds its best checkpoint by step."""
        done: tuple[int, int] = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        self._find_best()
        return done

    def _find_best(self) -> None:
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / f"step-{self.state.best_global_step}")

    def take_up(self, checkpoint: Path) -> None:
        """Takes the state and the weights of a checkpoint after which nothing is left to train.

        Raises:
            RunError: Its weights aren't the model's.
        """
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._find_best()
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        self.log({"train_loss": self._mean_loss()})  # a kill may have come before this line

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """The line at the end of training gets the mean loss over all steps."""
        if "train_loss" in logs:
            logs["train_loss"] = self._mean_loss()
        super().log(logs, *args, **kwargs)

    def _mean_loss(self) -> float:
        """From the lines of the trainer's state, which checkpoints hold."""
        total, done = 0.0, 0
        for line in self.state.log_history:
            if "loss" in line:  # a mean itself, over the steps since the line before
                total, done = total + line["loss"] * (line["step"] - done), line["step"]
        return total / max(done, 1)

    def counted_tokens(self) -> int:
        """What TRL has counted as `num_tokens`: its own number, or with rewards one of the trainer's state."""
        return int(getattr(self, "_total_train_tokens", 0) or self.state.num_input_tokens_seen)

    def keep_the_end(self) -> None:
        """Keeps what was trained until the run is finished: the weights, where no checkpoint of the last step is."""
        if not (Path(self.args.output_dir) / f"step-{self.state.global_step}").is_dir():
            self.args.save_only_model, self.checkpoints_kept = True, None
            self._save_checkpoint(self.model, None)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether to save: what Transformers says, or `SaveSteps`, which it would overrule."""
        return bool(super()._determine_best_metric(metrics, trial)) or self.control.should_save

    def _load_best_model(self) -> None:
        if self.state.best_global_step != self.state.global_step:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        counted = Path(resume_from_checkpoint) / _COUNTED
        if counted.is_file() and hasattr(self, "_total_train_tokens"):
            self._total_train_tokens = json.loads(counted.read_text(encoding="utf-8"))["tokens"]
        if is_of_shards(Path(resume_from_checkpoint)):
            self.load_shards(Path(resume_from_checkpoint))
        elif isinstance(self.model, PeftModel):
            adapter = self.model.active_adapter
            self._issue_warnings_after_load(self.model.load_adapter(resume_from_checkpoint, adapter, is_trainable=True))
            restore_towers(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raises where Transformers would only warn and keep the weights in memory.

        Raises:
            RunError: The checkpoint's weights aren't the model's.
        """
        tied = () if isinstance(self.model, PeftModel) else self.model.all_tied_weights_keys
        lost = [*load_result.unexpected_keys, *(k for k in load_result.missing_keys if k not in tied)]
        if lost:
            raise RunError(f"the checkpoint doesn't fit the model: {len(lost)} weights, for example {lost[0]}.")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves the weights under the names that the loaded model has.

        `save_pretrained` would restore the names of the checkpoint with towers that a language part was loaded from.
        Under those, Transformers does not find the weights when it resumes (silently), nor when it loads them.
        """
        folder = Path(output_dir or self.args.output_dir)
        if isinstance(self.model, PeftModel):  # the adapter that is trained, and not TRL's copy of it
            own = [self.model.active_adapter]
            # As `AdapterSaver` does: no adapter holds the whole embedding
            self.model.save_pretrained(
                folder, state_dict=state_dict, selected_adapters=own, save_embedding_layers=False
            )
            self.processing_class.save_pretrained(folder)
            save_towers(self.model, folder)
            return
        self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
        self.processing_class.save_pretrained(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.throughput.paused():
            self._save_whole(model, trial)

    def _save_whole(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        written = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(written, ignore_errors=True)  # what a killed process left half-written
            written.mkdir(parents=True)
        barrier()
        super()._save_checkpoint(model, trial)
        if self.is_fsdp_enabled and self.args.save_only_model:
            self.save_shards(written)  # else it has been saved with the optimizer's state
        barrier()  # each process has written its random state
        whole = folder / f"step-{self.state.global_step}"
        is_best = self.state.best_model_checkpoint == str(written)
        if is_best:  # on every process: each loads it at the end
            self.state.best_model_checkpoint = str(whole)
        if not self.args.should_save:
            return
        if is_best:
            self.state.save_to_json(str(written / STATE))
        if hasattr(self, "_total_train_tokens"):
            (written / _COUNTED).write_text(json.dumps({"tokens": self._total_train_tokens}) + "\n", encoding="utf-8")
        seal(written)
        shutil.rmtree(whole, ignore_errors=True)
        written.rename(whole)
        to_disk(folder)
        if self.checkpoints_kept:
            for old in checkpoints(folder)[: -self.checkpoints_kept]:
                if old.name != f"step-{self.state.best_global_step}":
                    shutil.rmtree(old.rename(folder / f"checkpoint-{old.name}"))  # never half a step-N
