"""`launch=slurm`: the sbatch file, what is refused, and a real Slurm of two nodes (make test-slurm)."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_tune import run
from gemma_tune.cli.compose import compose_config
from gemma_tune.cli.main import main
from gemma_tune.errors import UserError
from gemma_tune.launching.slurm import sbatch_file
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.identity import folder_of
from gemma_tune.run.place import foreign_files, set_aside

WORDS = ["recipe=lora_sft", "model=tiny", "tracker=none", "launch=slurm", "launch.num_nodes=2"]
FILE = """\
#!/bin/bash
# Written by gemma_tune. Submitted again (sbatch FILE, or the same command) the run goes on where it was.
#SBATCH --job-name=my-run
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --partition=gpu
#SBATCH --account=lab-1
#SBATCH --output="{here}/my run/slurm-%j.out"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --qos=high

set -e
cd {here}
unset WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE NNODES
export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
module load cuda
srun --kill-on-bad-exit=1 --wait=0 bash -c 'NODE_RANK="$SLURM_NODEID" exec "$@"' bash \\
  {python} -m gemma_tune recipe=lora_sft model=tiny tracker=none 'output_dir=my run' launch.by=local \
launch.num_processes=8 launch.num_nodes=2
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NNODES", "NODE_RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def refused(*words: str, recipe: str = "lora_sft") -> str:
    with pytest.raises(UserError) as raised:
        run(recipe, [*WORDS[1:], "dry_run=true", *words])
    assert not list(Path.cwd().iterdir())
    return str(raised.value)


def test_the_file_as_a_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written and shown by a dry run; each GPU that is asked for has a process."""
    of_slurm = ["gpus_per_node=8", "time=12:00:00", "partition=gpu", "account=lab-1", "setup=[module load cuda]"]
    words = [
        *WORDS,
        "output_dir=my run",
        *(f"launch.slurm.{word}" for word in of_slurm),
        "launch.slurm.options=[--qos=high]",
    ]
    assert main([*words, "dry_run=true"]) == 0
    text = (folder / "my run" / "job.sbatch").read_text("utf-8")
    assert text == FILE.format(here=folder, python=sys.executable)
    said = capsys.readouterr().out
    assert text in said and f"sbatch --parsable '{folder}/my run/job.sbatch'" in said
    assert [p.name for p in (folder / "my run").iterdir()] == ["job.sbatch"]
    subprocess.run(["bash", "-n", str(folder / "my run" / "job.sbatch")], check=True)


def test_no_gpus_are_asked_for(folder: Path) -> None:
    assert (
        run("lora_sft", [*WORDS[1:], "dry_run=true", "launch.slurm.gpus_per_node=0", "output_dir=r"]).status
        == "dry_run"
    )
    text = (folder / "r" / "job.sbatch").read_text("utf-8")
    assert "--gpus" not in text and "launch.num_processes=1 " in text and "--cpus-per-task=1\n" in text
    run("lora_sft", [*WORDS[1:], "dry_run=true", "launch.slurm.options=[-c 4]", "output_dir=r"])
    text = (folder / "r" / "job.sbatch").read_text("utf-8")
    assert "--cpus-per-task" not in text and "#SBATCH -c 4\n" in text and "--gpus-per-node=1\n" in text


@pytest.mark.parametrize("value", ['it\'s $5, `id` "ok"', "a\nb  c", "$(touch x)", "ä;rm -rf .", "\\n"])
def test_words_arrive_as_they_were_typed(value: str, folder: Path) -> None:
    """Through the file, bash and srun; here a shell function stands in for srun."""
    word = f"chat.prompt={value}"
    text = sbatch_file(compose_config("lora_sft", WORDS[1:]), [*WORDS, word], folder / "r")
    shown = shlex.join([sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"])
    text = text.replace(f"{sys.executable} -m gemma_tune", shown).replace("set -e", 'set -e\nsrun() { shift 2; "$@"; }')
    env = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_NODEID": "0"}
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=env)
    assert word in json.loads(done.stdout), done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch.slurm.partition=a b"], "launch.slurm.partition='a b': this is no name of Slurm"),
        (["launch.slurm.time=tomorrow"], "launch.slurm.time='tomorrow': write hours:minutes:seconds"),
        (["launch.slurm.options=[qos=high]"], "launch.slurm.options: 'qos=high' is no option"),
        (["launch.slurm.setup=['a\nb']"], "launch.slurm.setup: 'a\\nb' has a line break"),
        (["launch.slurm.options=['--a\nrm']"], "launch.slurm.options: '--a\\nrm' has a line break"),
        (["launch.num_processes=8", "launch.slurm.gpus_per_node=4"], "launch.num_processes=8 and launch.slurm.gpus"),
        (["launch.sky.use_spot=true"], "launch.sky has no effect with launch=slurm"),
        (["launch.slurm.setup=['export HF_TOKEN=abc']"], "launch.slurm.setup: it sets HF_TOKEN"),
        (['output_dir=a"b'], "sbatch reads no path with a quotation mark"),
    ],
)  # fmt: skip
def test_what_no_cluster_reads(words: list[str], said: str, folder: Path) -> None:
    assert said in refused(*words)


@pytest.mark.parametrize("time", ["90", "90:30", "12:00:00", "2-12", "2-12:30", "2-00:00:00", "UNLIMITED"])
def test_times_of_slurm(time: str) -> None:
    assert compose_config("lora_sft", [*WORDS[1:], f"launch.slurm.time={time}"]).launch.slurm.time == time


def test_no_key_gets_into_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job has the environment of whoever submits it; what is set in `setup` from there is fine."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    said = refused("launch.slurm.account=0123456789abcdef")
    assert "would hold the value of WANDB_API_KEY" in said and "0123456789abcdef" not in said
    assert "a token of the Hub" in refused(f"launch.slurm.account=hf_{'a' * 34}")
    run("lora_sft", [*WORDS[1:], "dry_run=true", "launch.slurm.setup=['export HF_TOKEN=$MY_TOKEN']", "output_dir=r"])


def test_without_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is there, and the message names it."""
    monkeypatch.setenv("PATH", str(folder))
    assert main([*WORDS, "output_dir=r"]) == 2
    assert (
        f"{folder}/r/job.sbatch was written, and not submitted: there is no program sbatch" in capsys.readouterr().err
    )
    assert (folder / "r" / "job.sbatch").is_file()


def test_what_sbatch_says(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake = folder / "sbatch"
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    fake.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n")
    fake.chmod(0o755)
    assert main([*WORDS, "output_dir=r"]) == 2
    assert "sbatch refused it: sbatch: error: invalid partition specified: x" in capsys.readouterr().err
    fake.write_text('#!/bin/sh\necho "$@" > called\necho "7;east"\n')
    assert main([*WORDS, "output_dir=r"]) == 0
    assert "Submitted as job 7: " in capsys.readouterr().out
    assert (folder / "called").read_text() == f"--parsable {folder}/r/job.sbatch\n"
    assert run("lora_sft", [*WORDS[1:], "output_dir=r"]).status == "submitted"


def test_the_run_folder_does_not_count_as_used(folder: Path) -> None:
    """The file and the job's output are there before the run, and stay when it is repeated."""
    words = [*WORDS[1:], "output_dir=r", "dry_run=true"]
    run("lora_sft", words)
    (folder / "r" / "slurm-7.out").write_text("waiting")
    cfg = compose_config("lora_sft", ["model=tiny", "tracker=none", "output_dir=r"])
    opened = RunFolder.open(cfg)
    assert foreign_files(opened.path) == [] and not opened.goes_on
    with opened.recording():
        pass
    assert RunFolder.open(cfg).finished
    cfg.overwrite = True
    assert not RunFolder.open(cfg).finished and set_aside(opened.path)
    left = {p.name for p in opened.path.iterdir()}
    assert (
        left == {"job.sbatch", "slurm-7.out", ".replaced"} and not (opened.path / ".replaced" / "job.sbatch").exists()
    )


def test_the_job_is_the_same_run(folder: Path) -> None:
    """The default folder is that of the submitted configuration, which has the batch of all processes."""
    words = ["model=tiny", "tracker=none", "launch=slurm", "launch.num_nodes=2", "launch.slurm.gpus_per_node=4"]
    submitted = folder_of(compose_config("lora_sft", words))
    job = [
        "model=tiny",
        "tracker=none",
        "launch.by=local",
        "launch.num_processes=4",
        "launch.num_nodes=2",
        "dry_run=true",
    ]
    assert folder_of(compose_config("lora_sft", job)) == submitted
    assert folder_of(compose_config("lora_sft", job[:2])) != submitted


def test_a_recipe_of_ones_own_may_choose_the_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys have no effect inside the job, and are not refused there."""
    own = folder / "mine" / "recipe" / "on_cluster.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(
        "# @package _global_\ndefaults: [lora_sft, _self_]\n"
        "launch: {by: slurm, num_nodes: 2, slurm: {partition: gpu}}\n"
    )
    words = ["recipe=on_cluster", "model=tiny", "tracker=none", "--config-dir", "mine", "output_dir=r"]
    assert main([*words, "dry_run=true"]) == 0
    text = (folder / "r" / "job.sbatch").read_text("utf-8")
    assert "--config-dir mine output_dir=r launch.by=local launch.num_processes=1 launch.num_nodes=2" in text
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    rest = ["model=tiny", "tracker=none", "launch.by=local", "dry_run=true"]
    assert compose_config("on_cluster", rest, "mine").launch.by == "local"


@pytest.mark.slow
def test_each_job_of_a_sweep_is_submitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its own words; the table has them as not run yet, and the same command finds what has run since."""
    (folder / "sbatch").write_text('#!/bin/sh\necho "$2" >> called\nwc -l < called\n')
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert main(["-m", *WORDS, "seed=1,2"]) == 0
    files = [Path(line) for line in (folder / "called").read_text().splitlines()]
    assert len(files) == len(set(files)) == 2
    for seed, file in enumerate(files, start=1):
        text = file.read_text("utf-8")
        assert f" seed={seed} output_dir={file.parent} launch.by=local " in text and "seed=1,2" not in text
    assert capsys.readouterr().out.count("not run yet") >= 2
