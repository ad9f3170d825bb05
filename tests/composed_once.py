"""What a command line imports and reads at its first composition, for processes that are copies of this one."""

from __future__ import annotations

from gemma_tune.cli.compose import compose_config

compose_config("lora_sft")
