"""One process of a run that `launch.num_processes` has started: `python -m gemma_tune.cli.worker FOLDER`.

The folder holds the configuration, already checked. Why the process ends goes into that folder, and whoever has started
it says so, once for all processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from omegaconf import OmegaConf

from gemma_tune import validation
from gemma_tune.cli.compose import checked
from gemma_tune.cli.exit_status import exit_status, print_message
from gemma_tune.cli.runner import run_recipe
from gemma_tune.collector import look_seldom
from gemma_tune.launching.handover import read_config, write_message
from gemma_tune.processes import rank
from gemma_tune.run.stopping import Stops, listening

_CHECKPOINT_SECONDS = 120.0  # that a worker without a parent has to end with a checkpoint


def main(folder: Path) -> int:
    """Runs the recipe of a configuration. Returns the exit status, as the command line's."""
    _end_with_parent(os.getppid())
    look_seldom()

    def work() -> None:
        with listening(Stops()):
            run_recipe(checked(OmegaConf.create(validation.literal(read_config(folder))), "", "configuration"))

    def say(message: str, status: int) -> None:
        try:
            write_message(folder, rank(), message)
        except OSError:  # whoever has started it is gone, or its disk is full
            print_message(message, status)

    return exit_status(work, say)


def _end_with_parent(parent: int) -> None:
    """From here on this process ends after the one that has started it has died, with a checkpoint where it can."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_CHECKPOINT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
