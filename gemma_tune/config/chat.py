"""`chat=…`: prompts of `recipe=chat`, and how the answers are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import BATCH, TOKENS, option


@dataclass
class ChatConfig:
    """Names are those of Transformers' `GenerationConfig`, where it has one."""

    prompt: str | None = option(None, "One prompt to answer; null: chat in the terminal, or answer prompts_file.")
    prompts_file: str | None = option(
        None,
        "File of prompts to answer in batches: rows (JSONL, JSON, CSV, TSV, Parquet) with a conversation (a final "
        "answer is dropped) or a `prompt`, read as for training, with `system`, `tools` and `history`; or a .txt file "
        "with one prompt a line.",
        path="file",
    )
    output_file: str | None = option(
        None, "JSONL file for the answers to prompts_file; null: standard output.", path="output"
    )
    system: str | None = option(None, "System prompt for conversations that have none.")
    tools_file: str | None = option(
        None, "JSON file with a list of tools in the OpenAI format, for conversations that have none.", path="file"
    )
    max_new_tokens: int = option(256, "Maximum number of tokens of an answer.", at_least=1, at_most=TOKENS)
    temperature: float = option(0.0, "Sampling temperature; 0: greedy decoding.", at_least=0, at_most=1000)
    top_k: int = option(64, "Sample from the k most likely tokens; 0: from all tokens.", at_least=0, at_most=TOKENS)
    top_p: float = option(
        0.95, "Sample from the most likely tokens whose probabilities add up to this.", above=0, at_most=1
    )
    batch_size: int = option(16, "Prompts of prompts_file answered in one batch.", at_least=1, at_most=BATCH)
