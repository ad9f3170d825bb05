"""TRL's GRPOTrainer and RLOOTrainer with our prompts, our rewards, and the time that each part of a step takes."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from accelerate.utils import gather
from peft import PeftModel
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOTrainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from gemma_tune.chat.calls import content_text
from gemma_tune.config import Config
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.adapter import complete_reference, drop_reference, plain_copies
from gemma_tune.models.kernels.allocator import hand_back_freed_memory
from gemma_tune.processes import gathered
from gemma_tune.rl.scoring import Scorer, weighted_sum
from gemma_tune.rl.tasks import Tasks, parse_completion
from gemma_tune.rl.updates import UpdateTrainer
from gemma_tune.train.build import build_trainer
from gemma_tune.train.nonfinite import NonFiniteGuard

# The parts of a step: generating completions, their log-probabilities, their rewards, and the update.
PARTS = ("generate", "score", "reward", "update")
Sample = dict[str, Any]


class TaskGuard(NonFiniteGuard):
    """Names the rows of a step in its messages by their index."""

    def __init__(self, tasks: Tasks) -> None:
        super().__init__(lambda rows: [])
        self._tasks = tasks
        self._places: dict[int, None] = {}

    def begin(self) -> None:
        """Starts an optimizer step."""
        self._places = {}

    def saw(self, inputs: Any) -> None:
        """Records the rows of one forward pass."""
        rows = [row["row"] for row in inputs]
        self._count(rows)
        self._places |= dict.fromkeys(rows)

    def rows(self) -> str:
        """A sentence that names file and line of this step's rows."""
        return f"The rows of this step: {', '.join(self._tasks.where(i) for i in islice(self._places, 20))}."


class OptimizerTimer(TrainerCallback):  # type: ignore[misc]
    """Measures the optimizer's time, which isn't part of `training_step`."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._begun = seconds, 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds["update"] += time.perf_counter() - self._begun


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's order of the prompts, made to depend on seed and epoch only, so that a resumed run has the same order.

    TRL draws each epoch's order from one generator: a run that is resumed in its third epoch would start with the order
    of the first.
    """

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0; it is called before each iteration."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class RewardedTrainer(UpdateTrainer):
    """Stands before GRPOTrainer or RLOOTrainer, and:

    - what `UpdateTrainer`, `PromptTrainer` and `GemmaTrainer` add.
    - rewards receive the parsed completion and the row; a completion that a reward failed on is left out of its group,
      where TRL would count the failed reward as 0.
    - every step logs, beside TRL's own metrics, `rewards/<name>/failed` (a share), the seconds of each part
      (`time/generate`, …) and `tokens_per_second` (of completions).
    - completions are passed to `keep`, each with its rewards.
    - with `train.beta` and all weights trained, the reference is a copy of the initial model. TRL would load one by the
      name in the config: perhaps another revision, or one with vision and audio towers.

    Args:
        scorer: The rewards.
        tasks: The rows.
        keep: Receives the completions of one generation.
        prefix_caching: Whether the completions of a prompt share its prefill.
        skip_zero_advantages: Whether rows without an advantage are left out of the update.
        keep_freed_memory: Whether freed memory stays with the process around a generation, too; None: not on a CPU.
    """

    def __init__(
        self,
        *args: Any,
        scorer: Scorer,
        tasks: Tasks,
        keep: Callable[[Sequence[Sample]], None] = lambda samples: None,
        prefix_caching: bool = True,
        skip_zero_advantages: bool = True,
        keep_freed_memory: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self._prefix_caching, self._skip_zero_advantages = prefix_caching, skip_zero_advantages
        self._keep_freed_memory = keep_freed_memory
        self._scorer, self._tasks, self._keep = scorer, tasks, keep
        self._seconds: dict[str, float] = defaultdict(float)
        self._tokens = self._steps_logged = 0
        self._since_tokens = 0.0
        model, settings = kwargs["model"], kwargs["args"]
        beta = settings.beta
        reference = copy.deepcopy(model) if beta and not isinstance(model, PeftModel) else None
        if reference is not None:
            settings.beta = 0.0  # so that TRL loads no reference
        with plain_copies(model):
            super().__init__(*args, reward_funcs=[_named(name) for name in scorer.weights], **kwargs)
        complete_reference(self.model)
        if not beta:  # RLOOTrainer creates one that is never used
            drop_reference(self.model)
        if reference is not None:
            wide = getattr(settings, "cast_lm_head_to_fp32", False)  # RLOO lacks this option
            add_fused_lm_head(reference.eval().requires_grad_(False), self.temperature, wide)
            self.use_our_forward(reference)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
            self.args.beta = self.beta = beta
        self.add_callback(OptimizerTimer(self._seconds))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - begun

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        done = super()._init_training_state(*args, **kwargs)
        self._steps_logged = self.state.global_step
        return done

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass, and a generation before it when due."""
        others = sum(self._seconds.values())
        begun = time.perf_counter()
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._seconds["update"] += time.perf_counter() - begun - (sum(self._seconds.values()) - others)
        return loss

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> EpochSampler:
        theirs = super()._get_train_sampler(*args, **kwargs)
        names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        return EpochSampler(**{name: getattr(theirs, name) for name in names})

    def release(self) -> None:
        """As `GemmaTrainer`, and also frees the reference model's memory."""
        self.ref_model = None
        drop_reference(self.model)
        super().release()

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        hands_back = self.accelerator.device.type == "cpu" and not self._keep_freed_memory
        with self._timed("generate"):
            if hands_back:
                hand_back_freed_memory()
            found = super()._generate_single_turn(*args, **kwargs)
            if hands_back:
                hand_back_freed_memory()
            return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        others = sum(self._seconds.values())
        begun = time.perf_counter()
        found = super()._generate_and_score_completions(inputs)
        self._seconds["score"] += time.perf_counter() - begun - (sum(self._seconds.values()) - others)
        return found

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """The completions' scores, [N of all processes, rewards]; a row of NaN where one failed."""
        with self._timed("reward"):
            stops = frozenset(self.eos_token_ids)
            tasks = [self._tasks[row["row"]] for row in inputs]
            answers = [parse_completion(self.processing_class, ids, stops) for ids in completion_ids_list]
            self._tokens += sum(gathered(sum(map(len, completion_ids_list))))
            self._scorer.attach(  # the state is another object once training begins
                trainer_state=self.state, log_extra=self._log_completion_extra, log_metric=self._log_metric
            )
            scores = self._scorer.score(answers, tasks)
            names = list(self._scorer.weights)
            rows = [{name: scores.values[name][i] for name in names} for i in range(len(answers))]
            for name in names:
                shares = gathered(scores.share_failed(name))
                self._metrics["train"][f"rewards/{name}/failed"].append(sum(shares) / len(shares))
            self._keep(
                [
                    {
                        "step": self.state.global_step,
                        "where": task.where,
                        "prompt": content_text(task.prompt[-1]),
                        "completion": str(answer),
                        "stopped": answer.stopped,
                        **{f"reward.{name}": value for name, value in row.items()},
                        "reward": weighted_sum(row, self._scorer.weights) if scores.complete(i) else None,
                        "failed": {name: why[i] for name, why in scores.failed.items() if i in why},
                    }
                    for i, (task, answer, row) in enumerate(zip(tasks, answers, rows, strict=True))
                ]
            )
            values = [
                [float("nan") if row[name] is None or not scores.complete(i) else row[name] for name in names]
                for i, row in enumerate(rows)
            ]
            # Of all processes, as TRL takes them: a group of completions may lie on several
            return gather(torch.tensor(values, dtype=torch.float32, device=self.accelerator.device))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to TRL's metrics the seconds per step of each part since the last logged step."""
        if "loss" in logs and self.state.global_step > self._steps_logged:
            steps = self.state.global_step - self._steps_logged
            logs |= {f"time/{part}": self._seconds[part] / steps for part in PARTS}
            self._since_tokens += sum(self._seconds.values())
            if self._tokens:  # none in steps that train on an earlier generation (train.steps_per_generation)
                logs["tokens_per_second"] = self._tokens / max(self._since_tokens, 1e-9)
                self._tokens, self._since_tokens = 0, 0.0
            self._seconds.clear()
            self._steps_logged = self.state.global_step
        super().log(logs, start_time)


class GemmaGRPOTrainer(RewardedTrainer, GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer with the changes of `RewardedTrainer`."""


class GemmaRLOOTrainer(RewardedTrainer, RLOOTrainer):  # type: ignore[misc]
    """RLOOTrainer with the changes of `RewardedTrainer`."""


def rl_trainer(
    cfg: Config,
    args: Any,
    model: Any,
    tokenizer: Any,
    tasks: Tasks,
    scorer: Scorer,
    keep: Callable[[Sequence[Sample]], None] = lambda samples: None,
) -> RewardedTrainer:
    """The trainer of the arguments: GRPO, with its variants, or RLOO.

    Args:
        cfg: The configuration.
        args: GRPOConfig or RLOOConfig.
        model: The model to train.
        tokenizer: Its tokenizer.
        tasks: The rows.
        scorer: The rewards.
        keep: Receives the completions of one generation.

    Raises:
        UserError: As `build_trainer`; or TRL would generate without the prompts' media.
    """
    if tasks.most_media and getattr(args, "use_transformers_continuous_batching", False):
        raise UserError(
            "train.extra.use_transformers_continuous_batching=true: it takes no images, sounds and videos, and the "
            "prompts have some; leave it out."
        )
    kind = GemmaGRPOTrainer if isinstance(args, GRPOConfig) else GemmaRLOOTrainer
    ours = {name: getattr(cfg.train, name) for name in ("prefix_caching", "skip_zero_advantages", "keep_freed_memory")}
    ours |= {"scorer": scorer, "tasks": tasks, "keep": keep}
    return build_trainer(kind, cfg, args, model, tokenizer, tasks.dataset, TaskGuard(tasks), **ours)


def _named(name: str) -> Callable[..., Any]:
    """A placeholder for a reward in TRL's list, from which TRL takes its name and weight."""

    def reward(**given: Mapping[str, Any]) -> Any:
        raise NotImplementedError(f"{name} is scored by RewardedTrainer")

    reward.__name__ = name
    return reward
