"""`data=…`: the training, validation and test sets, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_tune.config.option import ROWS, SEED, STEPS, option

# The formats of rows; `auto` takes the first of them whose fields a row has.
FORMATS = (
    "columns", "preference", "messages", "sharegpt", "translation", "prompt_completion", "alpaca", "text", "chat_log",
)  # fmt: skip
# What TranslateGemma's chat template reads of the one part of a user's message: from which language into which
LANGUAGES = ("source_lang_code", "target_lang_code")
# Rows of good and bad answers; never recognised, since what trains on answers must not take them for good ones.
LABELLED = "unpaired_preference"
# The training, the validation and the test sets: the keys that say where rows come from, and the keys beside those.
KINDS_OF_ROWS = (
    (
        ("train_file", "train_files", "dataset_name", "generator"),
        (
            "weights", "stopping_strategy", "dataset_config_name", "split", "revision", "generator_options",
            "generator_seed", "streaming", "shuffle_buffer_size",
        ),
    ),
    (("validation_file", "validation_split", "validation_split_percentage"), ()),
    (("test_files",), ()),
)  # fmt: skip


@dataclass
class DataConfig:
    """Names of files and splits are those of Transformers' training scripts."""

    format: str = option(
        "auto",
        "messages, columns, text, alpaca, sharegpt, translation, prompt_completion, preference, unpaired_preference or "
        "chat_log; "
        "auto: recognised for each file by the fields of its first row; or your own reader: "
        "`path/to/file.py:function`.",
        path="function",
    )
    train_file: str = option(
        "",
        "Training set: a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt, each also .gz, .zst, .bz2 or .xz), a "
        "folder of such files, or a glob.",
        path="rows",
    )
    train_files: dict[str, str | None] = option(
        {},
        "Several training sets by name, in place of `data.train_file`: `data.train_files.mine=my.jsonl`; they are "
        "mixed according to `data.weights`.",
        path="rows",
    )
    weights: dict[str, float] = option(
        {}, "Mixing weight of each of `data.train_files`; 1 where it is not set.", at_least=0, at_most=1e9
    )
    stopping_strategy: str = option(
        "first_exhausted",
        "When a mix ends: first_exhausted, with the first set that has no row left; all_exhausted, when every row "
        "of every set was read (shorter sets are repeated until then). Names of `datasets.interleave_datasets`.",
        choices=("first_exhausted", "all_exhausted"),
    )
    dataset_name: str | None = option(
        None, "Training set on the Hugging Face Hub, in place of a file; it is loaded with `datasets`.", path="dataset"
    )
    dataset_config_name: str | None = option(None, "Configuration (subset) of that data set.")
    split: str = option("train", "Its split to train on; a slice is `train[:10%]`.")
    validation_split: str | None = option(None, "Its split for validation.")
    revision: str | None = option(None, "Its branch, tag or commit.")
    generator: str | None = option(
        None, "RL: generator of reasoning-gym to train on, in place of a file, for example `chain_sum`."
    )
    generator_options: dict[str, Any] = option(
        {},
        "Options of the generator by their names there; most set the difficulty: `data.generator_options.max_terms=3`.",
    )
    generator_seed: int = option(0, "Seed of the first task; every task has its own.", at_least=0, at_most=SEED)
    streaming: bool = option(
        False,
        "Read the training set while training, not before; needs `train.max_steps`. Rows are shuffled in a buffer "
        "of `data.shuffle_buffer_size`.",
    )
    shuffle_buffer_size: int = option(
        1000, "Rows in the shuffle buffer of a streamed training set.", at_least=1, at_most=STEPS
    )
    dataset_num_proc: int | None = option(
        None,
        "Processes that render and tokenize conversations and texts before training; the rows are the same with any "
        "number. 1: the run's own process alone. Without it, as many as there are cores, up to 16, for a large "
        "training set.",
        at_least=1,
        at_most=1024,
    )
    encode_by_word: bool = option(
        True,
        "Tokenize texts word by word, each word once, where the vocabulary proves that the tokens are the same. false: "
        "each text as a whole.",
    )
    validation_file: str | None = option(None, "Validation set: a file, a folder or a glob.", path="rows")
    test_files: dict[str, str | None] = option(
        {},
        "Test sets by name, for evaluators that compare answers: `data.test_files.mine=my_test.jsonl`; null "
        "removes one.",
        path="rows",
    )
    on_bad_row: str = option(
        "error",
        "error: the first row that can't be used stops the run; skip: such rows are left out, counted, and listed "
        "in report.md.",
        choices=("error", "skip"),
    )
    validation_split_percentage: float = option(
        0.0,
        "Percentage of the training set to hold out for validation, drawn with `seed`; duplicates stay on one side.",
        at_least=0,
        at_most=90,
    )
    max_train_samples: int | None = option(
        None, "Use only the first rows of the training set, up to this number.", at_least=1, at_most=ROWS
    )
    max_eval_samples: int | None = option(
        None, "Use only the first rows of the validation set, up to this number.", at_least=1, at_most=ROWS
    )
    messages_column: str = option(
        "messages",
        "messages: the field with the conversation; rows that lack it may have conversations, conversation, contents, "
        "dialog, dialogue, turns, chat or texts.",
    )
    tools_column: str = option("tools", "The field with the tools; a row may lack it. `functions` is read, too.")
    prompt_column: str | None = option(
        None, "columns: the field with the prompt: a text, or messages; a field within another is `ticket.question`."
    )
    completion_column: str | None = option(None, "columns: the field with the reference answer.")
    system_column: str | None = option(None, "columns: the field with the system prompt, if any.")
    conversation_column: str = option("conversation", "chat_log: the field that says which conversation a row is of.")
    sender_column: str = option("sender", "chat_log: the field with the sender.")
    message_column: str = option("text", "chat_log: the field with the text of the message.")
    time_column: str | None = option(
        None, "chat_log: the field with the time, a number or ISO 8601; without it the file is in order."
    )
    assistant_senders: list[str] = option(
        [], "chat_log: the senders that are the assistant; all others are the user. Empty: senders are names of roles."
    )
    media_folder: str | None = option(
        None,
        "Folder in which relative paths of images, sound and video in the rows are looked up. Without it, the folder "
        "of the file with the rows.",
        path="folder",
    )
    ignore_fields: list[str] = option(
        [],
        "Fields of rows and messages that are neither read nor listed as not used, by the names in that list: "
        "`[category,messages.id]`.",
    )
    answers: str = option(
        "all",
        "Which answers of a conversation are trained: all; or last, with the earlier ones as history.",
        choices=("all", "last"),
    )
    prompts_only: bool = option(
        False,
        "RL: rows need no reference answer, for rewards that depend on the completion alone; an answer that is "
        "there is kept.",
    )
    enable_thinking: bool = option(
        False, "RL and its evaluation: prompts ask the model to think before it answers (Gemma 4)."
    )
    field: str | None = option(
        None,
        "JSON: the field with the rows, where a file is one object: `items`, or `result.items` within another. Without "
        "it they are found where one field alone holds a list of objects.",
    )
    encoding: str = option(
        "utf-8", "Encoding of JSON, JSONL, CSV, TSV and text, by Python's name: `cp1252`, `utf-16`, `shift_jis`."
    )
    sample_by: str | None = option(
        None,
        "Running text in .txt files: what one row is, as in `datasets`: line, paragraph (up to the next blank line) or "
        "document (the whole file). Without it, paragraph; a file of several lines and no blank one is refused.",
        choices=("line", "paragraph", "document"),
    )
    text_column: str = option("text", "text: the field with the running text.")

    @property
    def skips_rows(self) -> bool:
        """Whether rows that can't be used are left out; generated tasks never are."""
        return self.on_bad_row == "skip" and not self.generator

    def named(self) -> dict[str, str]:
        """Every file, folder or glob of the three sets, by its key."""
        train = {
            "data.train_file": self.train_file,
            **{f"data.train_files.{k}": v for k, v in self.train_files.items()},
        }
        tests = {f"data.test_files.{k}": v for k, v in self.test_files.items()}
        found = {**train, "data.validation_file": self.validation_file, **tests}
        return {key: name for key, name in found.items() if name}
