"""`doctor.…`: what `recipe=doctor` asks of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_tune.config.option import option


@dataclass
class DoctorConfig:
    """Whether this machine can train, measure and export, and what to do where it can't."""

    hub: bool = option(True, "Ask the Hugging Face Hub once whether it answers and what the token may read.")
    timeout: float = option(
        30.0, "Seconds that each thing that is tried in a process of its own may take.", at_least=1, at_most=600
    )
