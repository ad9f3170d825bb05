"""A recipe of the user's own: found by any path, refused in a second where it can't run, and run as ours are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import refused, write
from short_runs import hold_to_golden, losses, short_run
from slow import slow_after
from test_configs import NEEDS

import gemma_tune
from gemma_tune.__main__ import main
from gemma_tune.cli.compose import compose_config, load_stored
from gemma_tune.config import Config
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.identity import folder_of
from gemma_tune.run.manifest import file_digest
from gemma_tune.run.paths import CONFIGS, RECIPES

VALUES = "# @package _global_\nmethod: sft\n"
STEPS = "def run(cfg, folder):\n    return folder.result\n\ndef read(cfg, setup):\n    return None\n"


def own(name: str, steps: str = STEPS, values: str | None = VALUES) -> Path:
    """Writes a recipe of the user's own, in the current folder or below it."""
    if values is not None:
        write(f"{name}.yaml", values)
    return write(f"{name}.py", steps)


def without_names(cfg: Config) -> dict[str, Any]:
    return asdict(cfg) | {"recipe": None, "recipe_file": None}


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no values": ({"values": None}, ["its values are missing: mine.yaml", "recipe=copy copy.recipe=qlora_sft"]),
    "no method": ({"values": "# @package _global_\nseed: 3\n"}, ["mine.yaml: method is not set", "`method: sft`"]),
    "unknown method": (
        {"values": "# @package _global_\nmethod: sftt\n"},
        ["mine.yaml: method=sftt", "Did you mean sft?"],
    ),
    "no package": ({"values": "method: sft\n"}, ["mine.yaml: the first line must be `# @package _global_`"]),
    "unknown key": ({"values": VALUES + "lora_rank: 3\n"}, ["mine.yaml: there is no key", "Did you mean adapter.r?"]),
    "no YAML": ({"values": VALUES + "train: {\n"}, ["mine.yaml:4: this is not valid YAML"]),
    "no run": ({"steps": "def ran(cfg, folder): ...\n"}, ["no function run(cfg, folder); it has ran. Keep"]),
    "no Python": ({"steps": "def run(cfg, folder:\n"}, ["mine.py:1: '(' was never closed"]),
    "null bytes": ({"steps": "run = 1\0\n"}, ["mine.py", "null bytes"]),
    "too few parameters": (
        {"steps": "\ndef run(cfg): ...\n"},
        ["mine.py:2: run: its parameters are (cfg), and it is called with (cfg, folder): folder is missing"],
    ),
    "too many parameters": (
        {"steps": "def run(cfg, folder, extra): ...\n"},
        ["mine.py:1: run: ", "nothing is given for extra; give it a default"],
    ),
    "read": (
        {"steps": STEPS.replace("cfg, setup", "cfg")},
        ["mine.py:4: read: its parameters are (cfg), and it is called with (cfg, setup): setup is missing"],
    ),
    "no folder": (
        {"values": "# @package _global_\nmethod: preview\n"},
        ["its parameters are (cfg, folder), and it is called with (cfg): nothing is given for folder"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_refused(name: str, folder: Path) -> None:
    given, said = MISTAKES[name]
    own("mine", **given)
    with pytest.raises(UserError) as caught:
        compose_config("mine.py")
    assert all(words in str(caught.value) for words in said), caught.value
    assert len(caught.value.problems) == 1


def test_refused_without_torch(folder: Path) -> None:
    """In a process of its own, where the file isn't run either."""
    own("mine", "import os\nos.mkdir('was_run')\ndef run(cfg): ...\n")
    assert "folder is missing" in refused("recipe=mine.py")
    assert "no function read(cfg, setup), which dry_run=true calls" in refused("recipe=mine.py", "dry_run=true")
    assert "Did you mean mine.py?" in refused("recipe=mne.py")
    for said in ("mine", "mine.yaml", "./mine"):
        with pytest.raises(UserError, match=r"Did you mean recipe=(\./)?mine\.py\?"):
            compose_config(said)
    for said in (".", "..", "/", "mine/"):
        with pytest.raises(UserError, match="there is no recipe"):
            compose_config(said)


def test_functions_that_only_a_run_can_tell(folder: Path) -> None:
    """What is decorated, imported or computed is no mistake in the text; it is looked at before a row is read."""
    write("beside.py", "def run(cfg, folder, more): ...\n")
    for steps in ("from beside import run", "run = print", "from beside import *", "globals()['run'] = 1"):
        own("mine", steps + "\n")
        compose_config("mine.py")
    own("mine", "from beside import run\n")
    with pytest.raises(UserError, match=r"recipe=.*mine\.py: run: its parameters are \(cfg, folder, more\)"):
        gemma_tune.run("mine.py", ["data.max_train_samples=4"])
    own("mine", "raise KeyError('x')\n")
    own("other", "from typing import no_type_check\n@no_type_check\ndef run(cfg): return 3\n",
        "# @package _global_\nmethod: copy\ncopy: {recipe: dpo, to: new}\n")  # fmt: skip
    with pytest.raises(RunError, match="run gave int, no RunResult"):
        gemma_tune.run("other.py")


RAISES = {
    "raise KeyError('boom')": "mine.py:4: KeyError: 'boom'.",
    "1 / 0": "mine.py:4: ZeroDivisionError: division by zero.",
    "cfg.nix": "mine.py:4: AttributeError: 'Config' object has no attribute 'nix'.",
    "raise SystemExit(3)": "mine.py:4: SystemExit: 3: it would end the whole command",
    "import failing; failing.fail()": "failing.py:2: ValueError: no luck.",
    "open('nix')": "mine.py:4: FileNotFoundError: ",
    "open('/etc/shadow', 'w').name.nix": "mine.py:4: ",
    "len(3)": "mine.py:4: TypeError: ",
    "gemma_tune.run('lora_sft', [], object())": "Raised in gemma_tune/",
    "raise UserError('of ours')": "gemma_tune: of ours\n",
}


@pytest.mark.parametrize("body", RAISES)
def test_a_recipe_that_raises(body: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One message with file and line, and status 1 (2 where it is said to be the user's mistake); no traceback."""
    if "failing" in body:
        write("failing.py", "def fail():\n    raise ValueError('no luck')\n")
    head = "import gemma_tune\nfrom gemma_tune.errors import UserError\ndef run(cfg):\n    "
    own("mine", head + body + "\n", "# @package _global_\nmethod: copy\ncopy: {recipe: dpo, to: new}\n")
    assert main(["recipe=mine.py"]) == (2 if "UserError" in body else 1)
    said = capsys.readouterr().err
    assert RAISES[body] in said and said.count("\n") == 1 and "Traceback" not in said, said
    assert said.count(str(folder / "mine.py")) <= 1, said


def test_a_recipe_that_raises_with_a_run_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From its steps, from `read` in a dry run, and from Python; what isn't its fault passes."""
    own(
        "mine", "def run(cfg, folder):\n    with folder.recording():\n        1 / 0\ndef read(cfg, setup):\n    1 / 0\n"
    )
    words = ["recipe=mine.py", "tracker=none", "data.max_train_samples=4", "data.max_eval_samples=4", "output_dir=made"]
    assert main(words) == 1
    assert "mine.py:3: ZeroDivisionError" in capsys.readouterr().err
    assert json.loads((folder / "made/result.json").read_text("utf-8"))["status"] == "failed"
    assert main([*words, "dry_run=true", "output_dir=other"]) == 1
    assert "mine.py:5: ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"mine\.py:3: ZeroDivisionError") as caught:
        gemma_tune.run("mine.py", [*words[1:], "overwrite=true"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    own("mine", "def run(cfg, folder):\n    raise MemoryError\n")
    with pytest.raises(MemoryError):
        gemma_tune.run("mine.py", [*words[1:], "overwrite=true"])


def test_shipped_files_are_no_recipes_of_ones_own(folder: Path) -> None:
    with pytest.raises(UserError, match=r"this file is one of ours.*recipe=copy"):
        compose_config(str(RECIPES / "sft.py"))


@pytest.mark.parametrize(
    "name", slow_after(2, ["a b/c=1, (é)/mein rezept #2", "${seed}/$x", "it's/{x: [y]}/'q'", "mine"])
)
def test_any_path(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, absolute, by the home folder, and from elsewhere: the same file, under a name that Hydra can read."""
    file = own(name).absolute()
    monkeypatch.setenv("HOME", str(folder))
    found = [compose_config(said) for said in (f"{name}.py", f"./{name}.py", str(file), f"~/{name}.py")]
    assert {cfg.recipe_file for cfg in found} == {str(file)}
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert compose_config(f"../{name}.py").recipe_file in (str(file), str(folder / "elsewhere" / ".." / f"{name}.py"))
    assert folder_of(found[0]).name.startswith(f"{found[0].recipe}-")
    assert not set(found[0].recipe) & set(" ='(){}[]$,#/")


def test_several_without_multirun(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lora_sft", "full_sft"):
        main(["recipe=copy", f"copy.recipe={name}"])
    assert main(["recipe=my_lora_sft.py,my_full_sft.py"]) == 2
    assert "-m recipe=my_lora_sft.py,my_full_sft.py runs each" in capsys.readouterr().err


@pytest.mark.slow
def test_several(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--multirun takes them beside ours, and their values override options of --config-dir."""
    write("kept/adapter/wide.yaml", "# Wide.\ndefaults: [lora, _self_]\nr: 64\n")
    main(["recipe=copy", "copy.recipe=lora_sft"])
    values = Path("my_lora_sft.yaml").read_text("utf-8").replace("/adapter: lora", "/adapter: wide")
    Path("my_lora_sft.yaml").write_text(values, "utf-8")
    few = ["data.max_train_samples=4", "data.max_eval_samples=4", "eval=none", "dry_run=true"]
    capsys.readouterr()
    assert main(["-m", "--config-dir", "kept", "recipe=my_lora_sft.py,lora_sft", *few]) == 0
    said = capsys.readouterr().out
    assert "Run folder: runs/my_lora_sft-" in said and "Run folder: runs/lora_sft-" in said
    assert "\n  r: 64\n" in said and "\n  r: 16\n" in said


_FAST = ("dpo", "tune_to_int4", "preview")
RECIPE_NAMES = sorted(file.stem for file in (CONFIGS / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("name", [n if n in _FAST else pytest.param(n, marks=pytest.mark.slow) for n in RECIPE_NAMES])
def test_every_recipe_can_be_copied(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps as they stand, the same values, and a command that names the copy."""
    assert main(["recipe=copy", f"copy.recipe={name}", "copy.to=my copies"]) == 0
    steps = folder / "my copies" / f"my_{name}.py"
    needs = NEEDS.get(f"recipe/{name}", [])
    mine, ours = compose_config(str(steps), needs), compose_config(name, needs)
    assert without_names(mine) == without_names(ours)
    assert (mine.recipe, mine.recipe_file) == (f"my_{name}", str(steps))
    assert steps.read_bytes() == (RECIPES / f"{ours.traits.file}.py").read_bytes()
    assert f"'recipe=my copies/my_{name}.py'" in steps.with_suffix(".yaml").read_text("utf-8")
    assert f"Next: python -m gemma_tune 'recipe=my copies/my_{name}.py'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "copy.recipe is not set"),
        (["copy.recipe=qlora"], "copy.recipe=qlora: not one of"),
        (["copy.recipe=my_run"], "one of --config-dir has values alone"),
        (["copy.recipe=dpo", "copy.to=mine.py"], "copy.to=mine.py: this is a file"),
        (["copy.recipe=dpo", "copy.name=mine"], "mine.py is there already, and is not replaced"),
        (["copy.recipe=dpo", "copy.name=a/b"], "copy.name=a/b: a name has letters"),
        (["copy.recipe=dpo", "copy.name=x.py"], "copy.name=x.py: a name has letters"),
        (["copy.recipe=dpo", "overwrite=true"], "overwrite has no effect"),
        (["copy.recipe=dpo", f"copy.to={RECIPES}"], "gemma_tune's own; name one of yours"),
    ],
)
def test_copies_that_are_refused(words: list[str], said: str, folder: Path) -> None:
    before = own("mine", values=None).read_bytes()
    with pytest.raises(UserError) as caught:
        gemma_tune.run("copy", words)
    assert said in str(caught.value)
    assert [file.name for file in folder.iterdir()] == ["mine.py"] and Path("mine.py").read_bytes() == before


def test_a_dry_copy_writes_nothing(folder: Path) -> None:
    assert gemma_tune.run("copy", ["copy.recipe=dpo", "copy.to=new", "dry_run=true"]).status == "dry_run"
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_a_copy_runs_as_the_original(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden losses of the recipe; its file in manifest and report; a rerun from config.yaml alone."""
    gemma_tune.run("copy", ["copy.recipe=qlora_sft", "copy.name=mine"])
    steps, made = folder / "mine.py", folder / "made"
    result = short_run(str(steps), made, steps=10)
    hold_to_golden("qlora_sft", made)
    assert (result.recipe, json.loads((made / "result.json").read_text("utf-8"))["recipe"]) == ("mine", "mine")
    stored = yaml.safe_load((made / "config.yaml").read_text("utf-8"))
    assert (stored["recipe"], stored["recipe_file"], stored["method"]) == ("mine", str(steps), "sft")
    assert json.loads((made / "manifest.json").read_text("utf-8"))["inputs"][str(steps)] == file_digest(steps)
    assert str(steps) in (made / "report.md").read_text("utf-8")

    # The values come from config.yaml, the steps from the file
    steps.with_suffix(".yaml").unlink()
    steps.write_text(steps.read_text("utf-8") + "\nprint('of my own')\n", "utf-8")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    again = load_stored(made, ["output_dir=again"])
    assert (again.recipe, again.recipe_file) == ("mine", str(steps))
    steps.unlink()
    with pytest.raises(UserError, match=rf"recipe={steps}: there is no such file"):
        load_stored(made, ["output_dir=again"])


@pytest.mark.slow
def test_a_run_goes_on_with_the_steps_that_it_began_with(folder: Path) -> None:
    gemma_tune.run("copy", ["copy.recipe=lora_sft", "copy.name=mine"])
    steps, made = folder / "mine.py", folder / "made"
    source = steps.read_text("utf-8")
    steps.write_text(
        source.replace("        training.save_adapter()", "        raise RuntimeError('stopped')"), "utf-8"
    )
    words = ("train.save_steps=1", "eval.evaluators=[]")
    with pytest.raises(RunError, match="stopped"):
        short_run(str(steps), made, *words, steps=2)
    steps.write_text(source, "utf-8")
    with pytest.raises(UserError, match=r"mine\.py: this file has changed since the run"):
        short_run(str(steps), made, *words, steps=2)
    assert short_run(str(steps), made, *words, "train.resume_data_changed=true", steps=2).status == "finished"
    assert len(losses(made)) == 2
    steps.rename(folder / "moved.py")
    steps.with_suffix(".yaml").rename(folder / "moved.yaml")
    with pytest.raises(UserError, match=r"holds a run with another configuration \(another recipe, recipe_file"):
        short_run("moved.py", made, *words, steps=2)
