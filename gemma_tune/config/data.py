"""`data=…`: which rows are trained on and held out, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class DataConfig:
    """File and share names are those of Transformers' training scripts."""

    format: str = option("messages", "messages, columns or text, or a reader of yours: `path/to/file.py:function`.")
    train_file: str = option("", "JSONL file of the rows to train on.")
    validation_file: str | None = option(None, "JSONL file of the rows held out.")
    test_files: dict[str, str | None] = option(
        {},
        "JSONL files of test rows by name, for evaluation by answers: `data.test_files.mine=my_test.jsonl`; null "
        "leaves one out.",
    )
    validation_split_percentage: float = option(
        0.0, "Share of the training rows to hold out, in percent, drawn with `seed`.", at_least=0, at_most=90
    )
    max_train_samples: int | None = option(None, "Use only the first so many rows.", at_least=1)
    max_eval_samples: int | None = option(None, "Evaluate on only the first so many held-out rows.", at_least=1)
    max_test_samples: int | None = option(None, "Answer only the first so many rows of each test file.", at_least=1)
    messages_column: str = option("messages", "messages: the field with the conversation.")
    tools_column: str = option("tools", "messages: the field with the tools; rows may lack it.")
    prompt_column: str | None = option(None, "columns: the field with the user's side.")
    completion_column: str | None = option(None, "columns: the field with the answer.")
    system_column: str | None = option(None, "columns: the field with the system text, if any.")
    text_column: str = option("text", "text: the field with the running text.")
