"""What a user types wrong is answered with status 2, one message and no torch; what is right composes.

Every case is a process of its own, as a user starts it, in an empty folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from asking import MY_RUN, ROW, ask, refused, write

from gemma_tune.cli.compose import compose_config
from gemma_tune.run.paths import CONFIGS
from gemma_tune.validation.suggest import OTHER_TOOLS

MISTAKES = {
    # keys
    "typo in a key": (["train.lerning_rate=3"], ["`train.lerning_rate`", "Did you mean train.learning_rate?"]),
    "stray new key": (["+train.lerning_rate=3"], ["`train.lerning_rate`", "Did you mean train.learning_rate?"]),
    "key in no group": (["learning_rate=3"], ["Did you mean train.learning_rate?"]),
    "key in another group": (["model.lora_alpha=3"], ["Did you mean adapter.lora_alpha?"]),
    "key left out": (["~train.learning_rate"], ["~train.learning_rate can't be left out"]),
    "_target_": (["model._target_=os.system"], ["`model._target_`", "no _target_ here"]),
    "_target_ added": (["+_target_=os.system"], ["`_target_`", "no _target_ here"]),
    "_target_ inside a value": (
        ["train.extra={lr_scheduler_kwargs: {_target_: os.system}}"],
        ["train.extra", "no _target_ here"],
    ),
    # groups and options
    "typo in a group": (["adaptor=lora"], ["`adaptor`", "Did you mean adapter?"]),
    "typo in a recipe": (["recipe=qlora_sftt"], ["no recipe `qlora_sftt`", "Did you mean qlora_sft?", "full_sft"]),
    "typo in an option": (["adapter=loora"], ["no adapter `loora`", "Did you mean lora?", "dora, loftq"]),
    "a home that nobody has": (["recipe=~nobody_of_this_name"], ["no recipe `~nobody_of_this_name`"]),
    "a group's package": (["adapter@model=lora"], ["a group has one place only"]),
    # values
    "text for a number": (["train.learning_rate=abc"], ["train.learning_rate must be a number (or null), not 'abc'"]),
    "fraction for a whole number": (["train.max_steps=3.5"], ["train.max_steps must be a whole number, not 3.5"]),
    "bool for a number": (["train.learning_rate=true"], ["train.learning_rate must be a number (or null), not True"]),
    "nothing for a number": (["train.weight_decay="], ["train.weight_decay must be a number"]),
    "null where none is allowed": (["seed=null"], ["seed must be a whole number"]),
    "text for a bool": (["train.packing=maybe"], ["train.packing must be true or false (or null), not 'maybe'"]),
    "zero": (["train.learning_rate=0"], ["train.learning_rate must be more than 0, not 0"]),
    "too small": (["adapter.r=0"], ["adapter.r must be at least 1, not 0"]),
    "too large": (["data.validation_split_percentage=95"], ["must be at most 90, not 95"]),
    "not a number": (["train.learning_rate=nan"], ["train.learning_rate must be a finite number, not nan"]),
    "infinite": (["train.weight_decay=inf"], ["train.weight_decay must be a finite number, not inf"]),
    "no such choice": (["model.attn_implementation=sdpaa"], ["must be one of sdpa, by_document", "Did you mean sdpa?"]),
    "float16": (["model.dtype=float16"], ["overflows on Gemma 3", "use bfloat16 or float32"]),
    "unknown interpolation": (["seed=${nix}"], ["'nix' not found", "seed"]),
    "several values without -m": (["train.learning_rate=1e-4,2e-4"], ["-m train.learning_rate=1e-4,2e-4"]),
    "one bad value of several": (["-m", "adapter.r=4,0"], ["adapter.r must be at least 1, not 0"]),
    "optimizer": (["train.optim=adamw_trch"], ["train.optim=adamw_trch", "Did you mean adamw_torch"]),
    # values that don't go together
    "4-bit weights alone": (["adapter=none"], ["4-bit weights can't be trained themselves", "adapter=lora"]),
    "held-out rows twice": (["data.validation_split_percentage=5"], ["both set", "choose one"]),
    "held-out rows of the sample": (
        ["data.train_file=mine.jsonl"],
        ["some are yours and some are the sample's; choose data=auto"],
    ),
    "columns without names": (
        ["data=columns", "data.train_file=assets://sample/train.jsonl"],
        ["data.prompt_column is not set", "data.completion_column is not set"],
    ),
    "no such model folder": (["model.model_name_or_path=./nix"], ["model.model_name_or_path=./nix", "no such"]),
    "a shard of no size": (["export.max_shard_size=5G"], ["export.max_shard_size=5G", "for example 5GB"]),
    "a folder without data": (["data=auto", "data.train_file=."], ["no file of this folder is one of .jsonl"]),
    "a glob without a file": (["data=auto", "data.train_file=rows/*.csv"], ["no file has a name like this"]),
    "two ways to name rows": (["data=auto", "data.train_file=a", "data.dataset_name=b/c"], ["set one of them"]),
    "a weight of no set": (
        ["data=auto", "data.train_files.mine=rows.jsonl", "data.weights.min=2"],
        ["data.weights.min: there is no data.train_files.min", "Did you mean mine?"],
    ),
    "a weight of nothing": (
        ["data=auto", "data.train_files.mine=rows.jsonl", "data.weights.mine=0"],
        ["data.weights.mine must be a number above 0"],
    ),
    "a stream without an end": (["data.streaming=true"], ["data.streaming=true", "set train.max_steps"]),
    "a share of a stream": (
        [
            "data=auto",
            "data.train_file=rows.jsonl",
            "data.streaming=true",
            "train.max_steps=9",
            "data.validation_split_percentage=5",
        ],
        ["set data.max_eval_samples"],
    ),
    "a revision of nothing": (["data.revision=main"], ["data.revision has no effect without data.dataset_name"]),
    "a path with odd characters": (
        ["data=messages", "data.train_file=a (b)=c.jsonl"],
        ["data.train_file=a (b)=c.jsonl: there is no such file"],
    ),
    "one folder for many jobs": (["-m", "seed=1,2", "output_dir=x"], ["every job needs a folder of its own"]),
    # options of the trainer
    "train.extra typo": (["train.extra.adam_bta2=0.9"], ["no trainer of TRL's", "Did you mean adam_beta2?"]),
    "train.extra of another tool": (["train.extra.max_seq_length=9"], ["Did you mean train.max_length?"]),
    "train.extra named here": (["train.extra.learning_rate=1"], ["set train.learning_rate"]),
    "train.extra decided": (["train.extra.fp16=true"], ["train.extra.fp16", "float16 overflows"]),
    "train.extra type": (["train.extra.adam_beta1=abc"], ["train.extra.adam_beta1 must be", "`float`", "'abc'"]),
    "train.extra as a mapping": (["train.extra={adam_bta2: 0.9}"], ["Did you mean adam_beta2?"]),
    "train.extra of another kind": (
        ["train.extra.lr_scheduler_kwargs=3"],
        ["lr_scheduler_kwargs={name: value}, not 3"],
    ),
    "recomputation that loses gradients": (
        ["train.gradient_checkpointing=true", "train.extra.gradient_checkpointing_kwargs={use_reentrant: true}"],
        ["loses gradients of keys and values that layers share", "leave it out"],
    ),
    "an option of recomputation": (
        ["train.gradient_checkpointing=true", "train.extra.gradient_checkpointing_kwargs={reentrant: false}"],
        ["gradient_checkpointing_kwargs: there is no reentrant", "Did you mean use_reentrant?"],
    ),
    "options of what is off": (
        ["train.extra.gradient_checkpointing_kwargs={debug: true}"],
        ["no effect without train.gradient_checkpointing=true"],
    ),
    "a list of numbers": (["train.extra.label_names=a"], ["train.extra.label_names must be", "`list[str] | None`"]),
    "one in place of a list": (["data.ignore_fields=a"], ["a list of texts, not 'a': write data.ignore_fields=[a]"]),
    "no mapping": (
        ["adapter.rank_pattern={q_proj: 4"],
        ["can't be read as a mapping", """write adapter.rank_pattern='{"NAME": VALUE}'"""],
    ),
    "names that Hydra can't read": (["adapter.rank_pattern={'^q': 4}"], ["write such names into a YAML file"]),
    "a token": (["train.extra.hub_token=hf_x"], ["log in with `hf auth login`"]),
    # words and flags
    "a word alone": (["lora"], ["`lora`: write adapter=lora"]),
    "can't be read": (["seed=1(2"], ["`seed=1(2`", "put quotes around it"]),
    "flag typo": (["--multirn"], ["no flag --multirn", "Did you mean --multirun?"]),
    "flag with a value": (["--multirun=true"], ["--multirun takes no value"]),
    "key with dashes": (["--train.max_steps=3"], ["keys stand without dashes: train.max_steps=3"]),
    "TRL's flags": (
        ["--num_generations=8", "--beta"],
        ["keys stand without dashes: train.num_generations=8", "keys stand without dashes: train.beta=VALUE"],
    ),
    "blanks around the sign": (["train.beta", "=", "0.1"], ["write train.beta=0.1 without blanks"]),
    "a recipe alone": (["grpo"], ["one recipe at a time", "recipe=grpo in its place"]),
    # options of TRL's that are no keys of ours
    "an option of TRL's": (["train.top_p=0.9"], ["no key `train.top_p`", "Did you mean train.extra.top_p?"]),
    "an option that is decided": (["train.ref_model=x"], ["The reference is the initial model."]),
    "the same by its name alone": (["generation_batch_size=8"], ["Set train.steps_per_generation."]),
    "an option of old": (["train.max_prompt_length=512"], ["Prompts are never cut"]),
    "TRL's list of rewards": (["train.extra.reward_funcs=[a]"], ["set reward.functions.NAME=path/to/file.py:function"]),
    "a field of pairs": (["data.chosen_column=a"], ["fields named prompt, chosen and rejected"]),
    "several options of a group": (["reward=[math,format]"], ["name one option", "mix by weights"]),
    "a mapping without names": (["reward.functions=a.py:f"], ["write reward.functions.NAME=a.py:f"]),
    "a wrong value in a mapping": (["reward.weights.mine=abc"], ["reward.weights.mine must be a number, not 'abc'"]),
    "a key in another group": (["model.learning_rate=1e-5"], ["Did you mean train.learning_rate?"]),
    "a loss of nobody": (["recipe=grpo", "train.loss_type=grop"], ["train.loss_type=grop", "Did you mean grpo?"]),
    "compiled rounding": (
        ["recipe=qat", "train.torch_compile=true"],
        ["train.torch_compile with recipe=qat: its layers"],
    ),
    "another way to compile": (["train.extra.torch_compile_mode=x"], ["train.extra.torch_compile_mode", "one mode"]),
    "losses of DPO": (["recipe=dpo", "train.loss_type=sigmoid+ips"], ["train.loss_type=ips", "Did you mean ipo?"]),
    "a loss of SFT": (["train.loss_type=sigmoid"], ["no loss of TRL's SFTTrainer; there are nll, dft"]),
    "an option that is two keys": (["adapter=qlora"], ["Instead: write adapter=lora model.load_in_4bit=true"]),
    "a method that isn't here": (["recipe=orpo"], ["Instead: recipe=dpo trains on the same pairs"]),
    "prompts alone": (["data.prompts_only=true"], ["rows without answers are for rewards"]),
    "--config-dir without a folder": (["--config-dir"], ["--config-dir", "expected one argument"]),
    "--cfg of nothing": (["--cfg", "jbo"], ["--cfg", "'jbo'", "job"]),
    "--config-name": (["--config-name", "mine"], ["--config-name isn't used here", "--config-dir"]),
    "hydra.searchpath": (["hydra.searchpath=[mine]"], ["use --config-dir FOLDER"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(folder: Path, name: str) -> None:
    words, expected = MISTAKES[name]
    recipe = [] if any(w.startswith("recipe=") for w in words) else ["recipe=qlora_sft"]
    message = refused(*recipe, *words)
    assert all(e in message for e in expected), message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.max_steps=3"], ["recipe=NAME is missing", "qlora_sft"]),
        (["-m", "train.max_steps=3,4"], ["recipe=NAME is missing"]),
        (["recipee=qlora_sft"], ["Did you mean recipe?"]),
        (["--recipe=qlora_sft"], ["keys stand without dashes: recipe=qlora_sft"]),
        (["qlora_sft"], ["`qlora_sft`: write recipe=qlora_sft"]),
        (["recipe="], ["recipe= is empty: name one of chat"]),
        (["recipe=null"], ["name one option, of chat"]),
    ],
)
def test_no_recipe(folder: Path, words: list[str], expected: list[str]) -> None:
    message = refused(*words)
    assert all(e in message for e in expected), message


@pytest.fixture(scope="module")
def other_tools(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines that answer all names of other tools, typed at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        return refused("recipe=qlora_sft", *(f"{name}=1" for name in OTHER_TOOLS)).splitlines()


@pytest.mark.parametrize("name", OTHER_TOOLS)
def test_name_of_another_tool(other_tools: list[str], name: str) -> None:
    """Each is answered, in one message of all, and with our name for the same thing."""
    assert other_tools[0].endswith(f"{len(OTHER_TOOLS)} problems:")
    assert f"  - command line: there is no key `{name}`. Did you mean {OTHER_TOOLS[name]}?" in other_tools


def test_several_problems_at_once(folder: Path) -> None:
    words = ["train.lerning_rate=3", "adapter.r=0", "model.dtype=fp16", "tracker=wandbb", "train.extra.foo=1", "lora"]
    message = refused("recipe=qlora_sft", "--config-dir", "nix", *words)
    assert message.startswith("gemma_tune: 7 problems:\n  - ")
    for part in ("lerning_rate", "adapter.r", "float16", "wandbb", "train.extra.foo", "`lora`", "--config-dir nix"):
        assert part in message


def test_file_names_are_suggested(folder: Path) -> None:
    write("rows/my.jsonl", ROW)
    write("mine/recipe/my_run.yaml", MY_RUN)
    assert "Did you mean rows/my.jsonl?" in refused("recipe=qlora_sft", "data.train_file=rows/mi.jsonl")
    assert "Did you mean mine?" in refused("--config-dir", "mien", "recipe=my_run")


@pytest.mark.parametrize("name", ["rot13", "base64"])
def test_an_encoding_of_no_text(folder: Path, name: str) -> None:
    assert "Did you mean" not in refused("recipe=preview", f"data.encoding={name}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"q_proj": 4, "layers.1.mlp": 2}', {"q_proj": 4, "layers.1.mlp": 2}),
        ("{'.*(q|v)_proj': 4, k_proj: 2}", {".*(q|v)_proj": 4, "k_proj": 2}),
        (r"{(q|v)_proj: 4, 'layers\.[01]\.mlp': 1}", {"(q|v)_proj": 4, r"layers\.[01]\.mlp": 1}),
        ("{q_proj: 4}", {"q_proj": 4}),
    ],
)
def test_a_mapping_as_json_or_yaml_writes_it(text: str, value: dict[str, int]) -> None:
    """Hydra alone knows no names in quotes."""
    assert compose_config("lora_sft", [f"adapter.rank_pattern={text}"]).adapter.rank_pattern == value
    options = compose_config("lora_sft", ['train.extra.lr_scheduler_kwargs={"num_cycles": 5e-1}']).train.extra
    assert options == {"lr_scheduler_kwargs": {"num_cycles": 0.5}}


def test_bad_rows_are_answered_before_torch(folder: Path) -> None:
    Path("rows.jsonl").write_text('{"question": "Hi", "answer": "Hello"}\n', encoding="utf-8")
    answer = refused("recipe=lora_sft", "data=messages", "data.train_file=rows.jsonl")
    assert "rows.jsonl:1: there is no field 'messages'" in answer and "use data=columns" in answer


def test_rerun_takes_no_flags(folder: Path) -> None:
    assert "leave out --config-dir and other flags" in refused("rerun=x/config.yaml", "--cfg", "job")


def test_folders_and_files_with_any_name(folder: Path) -> None:
    """Hydra would not read some of these, and take others for numbers."""
    mine = Path("my dir=ü")
    (mine / "recipe").mkdir(parents=True)
    (mine / "recipe" / "my_run.yaml").write_text(MY_RUN, encoding="utf-8")
    for name in ("ü", "1e3", "2024_01", "a (b)", "c=d"):
        done = ask(f"--config-dir={mine}", "recipe=my_run", f"output_dir={name}", "--cfg", "job")
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["output_dir"] == name


def test_beside_a_clone(folder: Path) -> None:
    """Where the current folder holds a folder named gemma_tune, python -m looks there first."""
    (Path("gemma_tune") / "data").mkdir(parents=True)
    done = subprocess.run([sys.executable, "-m", "gemma_tune"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "qlora_sft" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "-m", "gemma_tune", "recipe=x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there is no recipe `x`" in done.stderr


def test_all_jobs_of_a_multirun_are_answered(folder: Path) -> None:
    """The mistakes of every job, and not only the first one's."""
    done = ask("-m", "recipe=qlora_sft", "data=messages", "data.train_file=nix.jsonl,nux.jsonl")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nix.jsonl" in done.stderr and "nux.jsonl" in done.stderr
    assert done.stderr.startswith("gemma_tune: 2 problems:")


def test_multirun_leaves_nothing_after_a_mistake(folder: Path) -> None:
    refused("-m", "recipe=qlora_sft", "data=messages", "data.train_file=nix.jsonl,nux.jsonl")


def test_rerun(folder: Path) -> None:
    assert "there is no such file" in refused("rerun=nix.yaml")
    write("config.yaml", "method: sft\ntrain: {lerning_rate: 3}\n")
    message = refused("rerun=config.yaml")
    assert "config.yaml: there is no key `train.lerning_rate`" in message
    message = refused("rerun=config.yaml", "train.learning_rate=3")
    assert "train.learning_rate=3" in message and "output_dir, overwrite, dry_run" in message
    write("other.yaml", "seed: 3\n")
    assert "not the config.yaml of a run folder" in refused("rerun=other.yaml")
    (folder / "weights.bin").write_bytes(b"\xa1\xff" * 99)
    assert "not valid YAML" in refused("rerun=weights.bin")


def test_no_arguments_lists_recipes_and_examples(folder: Path) -> None:
    done = ask()
    assert done.returncode == 0 and done.stderr == ""
    for file in (CONFIGS / "recipe").glob("*.yaml"):
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"  {file.stem} ")]
        assert len(lines) == 1 and len(lines[0].split()) > 3, file.stem
    assert done.stdout.count("\n  python -m gemma_tune recipe=") == 3


def test_help_is_short(folder: Path) -> None:
    done = ask("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.splitlines()) < 50
    assert all(w in done.stdout for w in ("recipe=NAME", "dry_run=true", "rerun=FILE", "--config-dir", "--multirun"))


def test_my_recipe_composes(folder: Path) -> None:
    """The YAML of the design changes what it says and keeps the rest of its parent."""
    write("mine/recipe/my_run.yaml", MY_RUN)
    done = ask("--config-dir", "mine", "recipe=my_run", "train.extra.adam_beta2=0.95", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    for line in ("method: sft", "  load_in_4bit: true", "  use_dora: true", "  learning_rate: 0.0001"):
        assert f"\n{line}\n" in done.stdout, line
    assert "    adam_beta2: 0.95\n" in done.stdout


def test_a_reader_that_has_read_enough(folder: Path) -> None:
    command = f"{sys.executable} -m gemma_tune recipe=qlora_sft --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "gemma_tune: nobody reads the output any more.\n")


def test_measured_by_the_option_of_training(folder: Path) -> None:
    """eval=rewards names what is measured during training, too, which measuring alone doesn't do."""
    words = ["data=sample", "eval=rewards", "reward=none", "reward.length.weight=1", "reward.length.max_tokens=5"]
    assert compose_config("evaluate", words).eval.evaluators == ["rewards"]
