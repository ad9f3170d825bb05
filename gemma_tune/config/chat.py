"""`chat=…`: what `recipe=chat` asks the model, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class ChatConfig:
    """Names are those of Transformers' `GenerationConfig`, where it has one."""

    prompt: str | None = option(None, "One prompt to answer; null: talk in the terminal, or answer prompts_file.")
    prompts_file: str | None = option(
        None,
        "File of prompts to answer in batches: rows (JSONL, JSON, CSV, TSV, Parquet) with `messages` (a last answer "
        "is left off) and perhaps `tools`, or with `prompt`; or a .txt file with one prompt a line.",
        path="file",
    )
    output_file: str | None = option(
        None, "JSONL file for the answers to prompts_file; null: standard output.", path="output"
    )
    system: str | None = option(None, "System text for conversations that have none.")
    tools_file: str | None = option(
        None,
        "JSON file with a list of tools in the OpenAI form, for conversations without any.",
        path="file",
    )
    max_new_tokens: int = option(256, "Tokens of an answer at most.", at_least=1)
    temperature: float = option(0.0, "Temperature of sampling; 0: always the likeliest token.", at_least=0)
    top_k: int = option(64, "Sample from so many of the likeliest tokens; 0: from all.", at_least=0)
    top_p: float = option(0.95, "Sample from the likeliest tokens that hold this share.", above=0, at_most=1)
    batch_size: int = option(16, "Prompts of prompts_file answered at once.", at_least=1)
