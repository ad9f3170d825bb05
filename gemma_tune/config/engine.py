"""`engine.…`: the programs that models are checked, measured and served in beside Transformers and llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import TOKENS, option


@dataclass
class EngineConfig:
    """An installation of vLLM; it has an environment of its own, since its pins differ from ours."""

    vllm: str | None = option(
        None,
        "The `vllm` command of an installation (`make setup-vllm` makes .venv-vllm/bin/vllm, for CPUs): what a "
        "run exports is checked in it, recipe=evaluate measures in it, and recipe=serve serves with it; null: only "
        "recipe=serve looks for one, in .venv-vllm and on the path.",
        path="file",
    )
    vllm_args: list[str] = option(
        [], "More arguments of `vllm serve`, for example [--gpu-memory-utilization,0.5,--tensor-parallel-size,2]."
    )
    max_length: int | None = option(
        None,
        "Tokens of a prompt and its answer that vLLM makes room for, at most, and llama.cpp for a GGUF file; null: "
        "4,096, or what the run asks for.",
        at_least=16,
        at_most=TOKENS,
    )
