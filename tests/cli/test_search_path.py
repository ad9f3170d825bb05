"""Folders and files in the current folder that are named like packages: checkouts side by side, or a user's own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from asking import refused, write
from slow import slow_after

from gemma_tune.chat import ForeignTemplate
from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError
from gemma_tune.neighbours import with_neighbours
from gemma_tune.run.paths import CONFIGS
from gemma_tune.user_code import load_function

PACKAGES = (
    "vllm", "mlx", "deepspeed", "kernels", "flash_attn", "apex", "liger_kernel", "unsloth", "tensorflow", "jax",
    "datasets", "accelerate", "transformers", "trl", "peft", "torch", "hydra", "yaml", "wandb", "xllamacpp",
)  # fmt: skip
FILES = ("random", "token", "tokenize", "copy", "json", "inspect", "string", "logging", "datasets", "__future__")
REFUSES = 'raise ImportError("the current folder was searched")\n'


@pytest.fixture(params=["empty folders", "packages", "files"])
def crowded(request: pytest.FixtureRequest, folder: Path) -> Path:
    """A current folder full of such names."""
    if request.param == "files":
        for name in FILES:
            Path(f"{name}.py").write_text(REFUSES, encoding="utf-8")
        return folder
    for name in PACKAGES:
        Path(name).mkdir()
        if request.param == "packages":
            Path(name, "__init__.py").write_text(REFUSES, encoding="utf-8")
    return folder


def python(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    ours = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}  # set where a test has imported __main__
    env = {**ours, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=env)


def test_the_current_folder_is_not_searched(crowded: Path) -> None:
    done = python("-m", "gemma_tune", "recipe=nix")
    assert done.returncode == 2 and "there is no recipe `nix`" in done.stderr, done.stderr


def test_nor_by_our_own_processes(crowded: Path) -> None:
    assert ForeignTemplate("{{ messages[0]['content'] }}").render({"messages": [{"content": "Hi"}]}) == "Hi"


def test_nor_by_processes_of_libraries(crowded: Path) -> None:
    """They are started with `-c` or `-m`, which both would search it."""
    child = "subprocess.call([sys.executable, '-c', 'import random, yaml'])"
    code = f"import subprocess, sys, gemma_tune.__main__; sys.exit({child})"
    assert python("-P", "-c", code).returncode == 0


@pytest.mark.slow
def test_a_run_in_a_crowded_folder(crowded: Path) -> None:
    """TRL and Transformers look for many optional packages, by name alone."""
    words = ["model=tiny", "tracker=none", "train.max_steps=1", "data.max_train_samples=64", "data.max_eval_samples=2"]
    words += ["eval.evaluators=[held_out_loss]", "export.formats=[merged]", "output_dir=run"]
    done = python("-m", "gemma_tune", "recipe=grpo", *words)
    assert done.returncode == 0, done.stderr
    assert Path("run/report.md").is_file()


@pytest.mark.parametrize(
    "words", slow_after(2, [["-m", "gemma_tune"], ["gemma_tune"], ["-um", "gemma_tune"], ["-mgemma_tune"]])
)
def test_a_checkout_that_is_not_installed(folder: Path, words: list[str]) -> None:
    """Its own recipes and configurations are taken, and not those of the checkout that is installed."""
    for name in ("gemma_tune", "recipes", "configs"):
        shutil.copytree(CONFIGS.parent / name, name)
    Path("configs/recipe/mine.yaml").write_text("# Only in this checkout\n", encoding="utf-8")
    Path("recipes/__init__.py").write_text("print('of this checkout')\n", encoding="utf-8")
    if words != ["gemma_tune"]:  # which runs the installed package, if there is one
        done = python(*words)
        assert done.returncode == 0 and "Only in this checkout" in done.stdout, done.stderr
    else:
        assert python(*words).returncode == 0
    done = python("-c", "import gemma_tune.recipes")
    assert done.stdout == "of this checkout\n", done.stderr


def test_a_program_keeps_its_own_path(folder: Path) -> None:
    Path("mine.py").write_text("import gemma_tune, beside\n", encoding="utf-8")
    Path("beside.py").write_text("print('found')\n", encoding="utf-8")
    for words in (["mine.py"], ["-m", "mine"], ["-c", "import mine"]):
        assert python(*words).stdout == "found\n", words


NEIGHBOURS = {
    "mine/reward.py": "from helper import half\ndef score(x):\n import late.deep as deep\n return half(x) + deep.two()",
    "mine/helper.py": "from numbers_of_mine import HALF\ndef half(x): return x * HALF\n",
    "mine/numbers_of_mine.py": "HALF = 0.5\n",
    "mine/late/__init__.py": "",
    "mine/late/deep.py": "from .other import TWO\nfrom third_of_mine import ZERO\ndef two(): return TWO + ZERO\n",
    "mine/late/other.py": "TWO = 2\n",
    "mine/third_of_mine.py": "ZERO = 0\n",
    "mine/vllm/__init__.py": REFUSES,
    "mine/random.py": REFUSES,
}


def test_files_beside_a_users_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it imports, also later and in turn, and nothing else that lies there."""
    for name, text in NEIGHBOURS.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    assert load_function("mine/reward.py:score", "reward.functions.mine")(4) == 4
    assert importlib.util.find_spec("vllm") is None
    assert str(folder / "mine") not in sys.path


REWARD = "from shared_{n} import half\nimport random\ndef score(completions, records):\n    return half(completions)\n"


def two_folders(number: int) -> list[str]:
    """Rewards in two folders, each with a `shared_N.py` and a `random.py` of its own."""
    for name in ("one", "two"):
        write(f"{name}/reward.py", REWARD.format(n=number))
        write(f"{name}/shared_{number}.py", f"def half(x):\n    return {name!r}\n")
        write(f"{name}/random.py", REFUSES)
    return ["one/reward.py:score", "two/reward.py:score"]


def test_one_name_beside_two_files(folder: Path) -> None:
    """Python keeps one module of a name: nobody gets another's helper, nor its digest."""
    one, two = two_folders(1)
    assert load_function(one, "reward.functions.one")("", []) == "one"
    assert load_function(one, "reward.functions.one")("", []) == "one"
    with pytest.raises(UserError, match=f"imports shared_1 from {folder / 'two'}.* from {folder / 'one'}.*rename one"):
        load_function(two, "reward.functions.two")
    assert [path.name for path in with_neighbours(folder / "one/reward.py")] == ["reward.py", "shared_1.py"]


def test_one_name_beside_two_files_of_a_run(folder: Path) -> None:
    """Known before anything is loaded; modules of other names, and one that is no neighbour, are no reason."""
    one, two = two_folders(2)
    words = [f"reward.functions.a={one}", f"reward.functions.b={two}", "model=tiny"]
    with pytest.raises(UserError, match=r"imports shared_2 from .*two.*imports shared_2 from .*one"):
        compose_config("grpo", words)
    write("two/reward.py", "import random\ndef score(completions, records): return 0\n")
    assert compose_config("grpo", words).reward.functions.keys() == {"a", "b"}


def test_one_name_beside_the_files_of_two_jobs(folder: Path) -> None:
    one, two = two_folders(3)
    said = refused("-m", "recipe=grpo", "model=tiny", f"reward.functions.a={one},{two}")
    assert "imports shared_3" in said
