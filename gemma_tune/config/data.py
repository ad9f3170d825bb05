"""`data=…`: which rows are trained on and held out, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_tune.config.option import option

# The formats of rows; `auto` takes the first of them whose fields a row has.
RECOGNISED = ("columns", "preference", "messages", "sharegpt", "prompt_completion", "alpaca", "text")


@dataclass
class DataConfig:
    """File and share names are those of Transformers' training scripts."""

    format: str = option(
        "auto",
        "messages, columns, text, alpaca, sharegpt, prompt_completion or preference; auto: recognised by the first "
        "row's fields, for each file; or a reader of yours: `path/to/file.py:function`.",
        path="function",
    )
    train_file: str = option(
        "",
        "Rows to train on: a file (.jsonl, .json, .csv, .tsv, .parquet, each also .gz), a folder of them, or a glob.",
        path="rows",
    )
    train_files: dict[str, str | None] = option(
        {},
        "Several sets to train on, by name, in place of `data.train_file`: `data.train_files.mine=my.jsonl`; they are "
        "mixed in the shares of `data.weights`.",
        path="rows",
    )
    weights: dict[str, float] = option(
        {}, "Share of each of `data.train_files` among the rows; 1 where it is not named."
    )
    stopping_strategy: str = option(
        "first_exhausted",
        "Where the mixed sets end: with the first that has no row left, or, all_exhausted, when each was read whole "
        "(the others are begun again until then). Names of `datasets.interleave_datasets`.",
        choices=("first_exhausted", "all_exhausted"),
    )
    dataset_name: str | None = option(
        None,
        "Data set on the Hugging Face Hub to train on, in place of a file; `datasets` loads it.",
        path="dataset",
    )
    dataset_config_name: str | None = option(None, "Its configuration (subset).")
    split: str = option("train", "Its split of the rows to train on; a part of one is `train[:10%]`.")
    validation_split: str | None = option(None, "Its split of the rows held out.")
    revision: str | None = option(None, "Its branch, tag or commit.")
    generator: str | None = option(
        None, "RL: generator of reasoning-gym to train on, in place of a file, for example `chain_sum`."
    )
    generator_options: dict[str, Any] = option(
        {}, "Its options by their names there, most of them for the difficulty: `data.generator_options.max_terms=3`."
    )
    generator_seed: int = option(0, "Seed of its first task; each task has one of its own.", at_least=0)
    streaming: bool = option(
        False,
        "Read the rows to train on while training, in place of before it; needs `train.max_steps`. They are shuffled "
        "within `data.shuffle_buffer_size`.",
    )
    shuffle_buffer_size: int = option(
        1000, "Rows among which the next one is drawn where rows are streamed.", at_least=1
    )
    validation_file: str | None = option(None, "Rows held out: a file, a folder or a glob.", path="rows")
    test_files: dict[str, str | None] = option(
        {},
        "Test rows by name, for evaluation by answers: `data.test_files.mine=my_test.jsonl`; null leaves one out.",
        path="rows",
    )
    on_bad_row: str = option(
        "error",
        "error: the first row that can't be used ends the run; skip: such rows are left out, counted, and listed in "
        "report.md.",
        choices=("error", "skip"),
    )
    validation_split_percentage: float = option(
        0.0,
        "Share of the training rows to hold out, in percent, drawn with `seed`; equal rows stay together.",
        at_least=0,
        at_most=90,
    )
    max_train_samples: int | None = option(None, "Use only the first so many rows.", at_least=1)
    max_eval_samples: int | None = option(None, "Evaluate on only the first so many held-out rows.", at_least=1)
    messages_column: str = option("messages", "messages: the field with the conversation.")
    tools_column: str = option("tools", "messages: the field with the tools; rows may lack it.")
    prompt_column: str | None = option(None, "columns: the field with the user's side: a text, or messages.")
    completion_column: str | None = option(None, "columns: the field with the answer.")
    system_column: str | None = option(None, "columns: the field with the system text, if any.")
    prompts_only: bool = option(
        False,
        "RL: rows need no answer, as for rewards that look at the completion alone; one that is there stays.",
    )
    enable_thinking: bool = option(
        False, "RL and its evaluation: prompts ask the model to think before it answers (Gemma 4)."
    )
    text_column: str = option("text", "text: the field with the running text.")

    @property
    def skips_rows(self) -> bool:
        """Whether rows that can't be used are left out; tasks that are made have no other in their place."""
        return self.on_bad_row == "skip" and not self.generator

    def named(self) -> dict[str, str]:
        """Every file, folder or glob that is named, by its key."""
        train = {
            "data.train_file": self.train_file,
            **{f"data.train_files.{k}": v for k, v in self.train_files.items()},
        }
        tests = {f"data.test_files.{k}": v for k, v in self.test_files.items()}
        found = {**train, "data.validation_file": self.validation_file, **tests}
        return {key: name for key, name in found.items() if name}
