"""The schema of the configuration: one dataclass per group. Imports no torch.

Fixed defaults stand here; those that depend on the method or the size of the model stand in methods.py
and cli/defaults.py; `configs/*/*.yaml` name only what an option sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_tune.config.adapter import AdapterConfig
from gemma_tune.config.chat import ChatConfig
from gemma_tune.config.compare import CompareConfig
from gemma_tune.config.copy import CopyConfig
from gemma_tune.config.data import DataConfig
from gemma_tune.config.doctor import DoctorConfig
from gemma_tune.config.engine import EngineConfig
from gemma_tune.config.eval import EvalConfig
from gemma_tune.config.export import ExportConfig
from gemma_tune.config.launch import LaunchConfig
from gemma_tune.config.methods import METHODS, Method
from gemma_tune.config.model import ModelConfig
from gemma_tune.config.models import ModelsConfig
from gemma_tune.config.option import SEED, option
from gemma_tune.config.parallel import ParallelConfig
from gemma_tune.config.plan import PlanConfig
from gemma_tune.config.preview import PreviewConfig
from gemma_tune.config.push import PushConfig
from gemma_tune.config.quant import QuantConfig
from gemma_tune.config.renamed import unknown_method
from gemma_tune.config.reward import RewardConfig
from gemma_tune.config.serve import ServeConfig
from gemma_tune.config.tracker import TrackerConfig
from gemma_tune.config.train import TrainConfig

__all__ = [
    "AdapterConfig",
    "ChatConfig",
    "CompareConfig",
    "Config",
    "CopyConfig",
    "DataConfig",
    "DoctorConfig",
    "EngineConfig",
    "EvalConfig",
    "ExportConfig",
    "LaunchConfig",
    "ModelConfig",
    "ModelsConfig",
    "ParallelConfig",
    "PlanConfig",
    "PreviewConfig",
    "PushConfig",
    "QuantConfig",
    "RewardConfig",
    "ServeConfig",
    "TrackerConfig",
    "TrainConfig",
]


@dataclass
class Config:
    """The whole configuration of one run."""

    recipe: str = option("", "Name of the recipe; chosen with `recipe=NAME`.")
    method: str = option("", "What the recipe does to the model, a row of config/methods.py; set by the recipe.")
    recipe_file: str | None = option(
        None, "The steps of a recipe of your own; set by `recipe=path/to/my_recipe.py`.", path="file"
    )
    seed: int = option(
        42,
        "Seed of Python, NumPy and torch; it also decides the order of the examples and which ones are held out.",
        at_least=0,
        at_most=SEED,
    )
    output_dir: str | None = option(
        None, "Run folder; null: runs/<recipe>-<digest of the configuration>.", path="output"
    )
    overwrite: bool = option(
        False,
        "Replace a run folder that holds another run, or a `chat.output_file`, `preview.output_file` or "
        "`plan.output_file` that exists.",
    )
    dry_run: bool = option(
        False,
        "Check the configuration and the data, count tokens and estimate the memory; stop before the first weight "
        "is loaded.",
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    copy: CopyConfig = field(default_factory=CopyConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    push: PushConfig = field(default_factory=PushConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)

    @property
    def traits(self) -> Method:
        """What the method is; for an unknown one, which the checks name, that of SFT."""
        return METHODS.get(self.method, METHODS["sft"])

    @property
    def unknown_method(self) -> tuple[str, str] | None:
        """`method`, and why it is none of the table, as the end of a sentence; None where it is one."""
        return unknown_method(self.method)

    @property
    def processes(self) -> int:
        """Processes of all machines that train one model."""
        return (self.launch.num_processes or 1) * (self.launch.num_nodes or 1)

    @property
    def answer_tokens(self) -> int:
        """Tokens of an answer at most: those of a completion in training, where the model is trained on its own."""
        in_training = self.train.max_completion_length if self.traits.rewarded else None
        return in_training or self.eval.max_new_tokens

    @property
    def evaluator_names(self) -> list[str]:
        """Every evaluator that the run uses: before and after training, and every `train.eval_steps` steps."""
        during = self.eval.during_training if self.train.eval_steps else ()
        return list(dict.fromkeys([*self.eval.evaluators, *during]))
