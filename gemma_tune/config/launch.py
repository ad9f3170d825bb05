"""`launch=…`: on how many processes and machines a run computes, and who starts it there."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_tune.config.option import option

# More than any machine has, and than any cluster gives to one run
PROCESSES, NODES = 256, 4096


@dataclass
class SlurmConfig:
    """What the sbatch file of `launch=slurm` asks for; null leaves it to the cluster's own default."""

    partition: str | None = option(None, "Partition (`--partition`).", longest=100)
    account: str | None = option(None, "Account (`--account`).", longest=100)
    time: str | None = option(None, "Time of the job at most (`--time`), for example 2-00:00:00.", longest=30)
    gpus_per_node: int | None = option(
        None,
        "GPUs of each machine (`--gpus-per-node`); null: as many as launch.num_processes; 0: none is asked for.",
        at_least=0,
        at_most=PROCESSES,
    )
    setup: list[str] = option(
        [], "Lines of shell before the command, for example [module load cuda,source .venv/bin/activate]."
    )
    options: list[str] = option([], "Further options of sbatch, for example [--qos=high,--exclusive].")


@dataclass
class SkyConfig:
    """What the task file of `launch=sky` asks for."""

    accelerators: str | None = option(
        None, "GPUs of each machine as SkyPilot names them, for example H100:8.", longest=100
    )
    infra: str | None = option(None, "Where, for example aws, gcp/us-central1 or k8s; null: the cheapest.", longest=100)
    use_spot: bool = option(False, "Take spot instances, which may be taken away; the run goes on where it was.")
    setup: list[str] = option([], "Lines of shell that install what the run needs, once on each machine.")


@dataclass
class LaunchConfig:
    """Processes and machines. They change no result: the batch of an optimizer step is the product of
    `train.per_device_train_batch_size`, `train.gradient_accumulation_steps` and all processes."""

    by: str = option(
        "local",
        "Who starts the run. local: this command. slurm: it writes an sbatch file into the run folder and submits it; "
        "sky: it writes a SkyPilot task there and launches it; with dry_run=true both only write.",
        choices=("local", "slurm", "sky"),
    )
    num_processes: int | None = option(
        None,
        "Processes on each machine, one for each GPU; null: 1, or as many as torchrun or `accelerate launch` started.",
        at_least=1,
        at_most=PROCESSES,
    )
    num_nodes: int | None = option(
        None,
        "Machines. With launch=local the same command is given on each, with NODE_RANK (0, 1, …), MASTER_ADDR and "
        "perhaps MASTER_PORT in the environment; null: NNODES of the environment, else 1.",
        at_least=1,
        at_most=NODES,
    )
    timeout_minutes: float = option(
        30.0,
        "Minutes that processes wait for one another at most: where one hangs, the run ends with an error.",
        above=0,
        at_most=10_000,
    )
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    sky: SkyConfig = field(default_factory=SkyConfig)
