"""Starts fake workers as `launch=local` does: `start_fakes.py FOLDER PROCESSES WHAT…`."""

from __future__ import annotations

import sys
from pathlib import Path

from gemma_tune.cli.exit_status import exit_status
from gemma_tune.config.launch import LaunchConfig
from gemma_tune.launching.local import Workers, threads_of_each
from gemma_tune.launching.place import place_of
from gemma_tune.validation.processes import resolve_processes


def main() -> int:
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    command = [sys.executable, str(Path(__file__).with_name("fake_worker.py")), str(folder), *sys.argv[3:]]

    def work() -> None:
        launch = LaunchConfig(num_processes=processes)
        resolve_processes(launch)
        workers = Workers(place_of(launch), command, folder)
        with threads_of_each(processes):
            workers.run()
        workers.raise_failure(folder)
        print("all done")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
