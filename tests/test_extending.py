"""Parts of the user's own: docs/extending.md as it stands, and mistakes that are answered before a model is loaded."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import refused, write
from code_blocks import DOCS, write_files
from short_runs import losses, metrics, short_run
from slow import slow_after

import gemma_tune
from gemma_tune.__main__ import main
from gemma_tune.cli.compose import compose_config
from gemma_tune.data.records import Record
from gemma_tune.errors import UserError
from gemma_tune.neighbours import import_problem
from gemma_tune.run.manifest import file_digest
from gemma_tune.train.sft import GemmaSFTTrainer, OwnLossTrainer
from gemma_tune.user_code import in_user_code, load_function

PAGE = (DOCS / "extending.md").read_text(encoding="utf-8")


def result_of(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path("runs") / run / "result.json").read_text("utf-8"))
    return found


@pytest.mark.slow
def test_the_page_as_it_stands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file and every command in an empty folder; from a wheel and in a shell: tests/test_wheel.py."""
    commands = write_files("extending.md", folder)
    assert len(commands) == 8
    for command in commands:
        python, flag, module, *words = shlex.split(command)
        assert (python, flag, module) == ("python", "-m", "gemma_tune")
        assert main(words) == 0, (command, capsys.readouterr().err)
    check_what_the_page_left(folder)
    assert "Is the shop open on Sundays?" in capsys.readouterr().out


def check_what_the_page_left(folder: Path) -> None:
    left = {path.name for path in folder.iterdir()}
    assert {"my_lora_sft.py", "my_lora_sft.yaml", "runs", "preview.html"} <= left
    assert {path.name for path in (folder / "runs").iterdir()} == {"careful", "focal", "brief", "short"}
    assert result_of("careful")["recipe"] == "careful_sft"
    assert result_of("brief")["metrics"]["after"].keys() >= {"test_brief"}
    short = json.loads(Path("runs/short/eval/after.json").read_text("utf-8"))
    assert {"test_short", "new_phrasings_short"} <= short["figures"].keys() and not short["failures"]
    assert [len(short["rows"][f"{name}_short"]) for name in ("test", "new_phrasings")] == [8, 8]
    for run, file in {"careful": "careful_sft.py", "focal": "focal.py", "brief": "brief.py"}.items():
        inputs = json.loads(Path(f"runs/{run}/manifest.json").read_text("utf-8"))["inputs"]
        assert inputs[str((folder / file).absolute())] == file_digest(folder / file)
    assert str(folder / "focal.py") in Path("runs/focal/report.md").read_text("utf-8")


def test_every_field_of_a_record_is_on_the_page() -> None:
    table = PAGE.split("| field of `Record`")[1]
    assert [f.name for f in fields(Record) if f"`{f.name}`" not in table] == []


PLAIN = """
import torch.nn.functional as F

def loss(outputs, labels, num_items_in_batch=None):
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum") / num_items_in_batch
"""
SHAPES = {
    "batches": [],
    "accumulated": ["train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=3"],
    "packed": ["train.packing=true", "train.max_length=512", "train.gradient_accumulation_steps=2"],
}


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("packed", "batches", "accumulated")]


@pytest.mark.parametrize("shape", _SLOW)
def test_the_plain_loss_written_by_hand(shape: str, folder: Path) -> None:
    """Cross-entropy as a loss of one's own gives the losses and gradients of the recipe without one."""
    file = write("plain.py", PLAIN)
    words = (*SHAPES[shape], "eval.evaluators=[]", "eval.num_samples=0", "export.formats=[]")
    ours, mine = folder / "ours", folder / "mine"
    short_run("lora_sft", ours, *words)
    short_run("lora_sft", mine, *words, "train.loss=plain.py:loss")
    assert losses(mine) == pytest.approx(losses(ours), rel=1e-5)
    norms = [[line["grad_norm"] for line in metrics(made) if "grad_norm" in line] for made in (mine, ours)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and len(norms[0]) == 3
    assert json.loads((mine / "manifest.json").read_text("utf-8"))["inputs"][str(file.absolute())]


@pytest.mark.parametrize(
    ("returned", "said"),
    slow_after(
        2,
        [("3.0", "it gave float"),
         ("outputs.logits.detach().sum()", "it gave a tensor of one number from which no gradient leads back"),
         ("outputs.logits", "it gave a tensor of shape"), ("None", "it gave NoneType")],
    ),
)  # fmt: skip
def test_a_loss_that_is_none(returned: str, said: str, folder: Path) -> None:
    write("mine.py", f"def loss(outputs, labels, num_items_in_batch): return {returned}\n")
    with pytest.raises(UserError, match=rf"train.loss=.*mine\.py:loss: {said}.*; return a tensor with one number"):
        short_run("lora_sft", folder / "made", "train.loss=mine.py:loss", "eval.evaluators=[]", "eval.num_samples=0")


@pytest.mark.slow
def test_a_run_goes_on_with_the_loss_that_it_began_with(folder: Path) -> None:
    """Also where it stands in a file beside the one that is named."""
    file, made = write("plain.py", PLAIN), folder / "made"
    write("mine.py", "from plain import loss\n")
    words = ("train.loss=mine.py:loss", "train.save_steps=1", "eval.evaluators=[]", "eval.num_samples=0")
    short_run("lora_sft", made, *words, steps=2)
    (made / "result.json").write_text('{"status": "running"}', encoding="utf-8")
    file.write_text(PLAIN + "# another one\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"plain\.py: this file has changed since the run"):
        short_run("lora_sft", made, *words, steps=2)
    with pytest.raises(UserError, match=r"another configuration \(another train\.loss\)"):
        short_run("lora_sft", made, *words[1:], steps=2)


NO_LOSS = {
    "dpo": "its loss compares answers",
    "kto": "its loss compares answers",
    "reward_model": "its loss compares answers",
    "grpo": "its loss is made of rewards",
    "rloo": "its loss is made of rewards",
    "qat": "it trains towards the probabilities",
    "tune_to_int4": "it trains towards the probabilities",
    "evaluate": "train.loss has no effect with recipe=evaluate, which trains nothing",
    "preview": "train.loss has no effect with recipe=preview",
}


@pytest.mark.parametrize("recipe", NO_LOSS)
def test_recipes_without_a_loss_of_ones_own(recipe: str, folder: Path) -> None:
    write("plain.py", PLAIN)
    with pytest.raises(UserError) as caught:
        compose_config(recipe, ["train.loss=plain.py:loss"])
    assert NO_LOSS[recipe] in str(caught.value) and f"recipe={recipe}" in str(caught.value)


ROWS = '{"prompt": "1?", "completion": "2."}\n'
MISTAKES: dict[str, tuple[str, list[str], list[str]]] = {
    "reader": (
        "\ndef f(path): ...",
        ["recipe=lora_sft", "data.format=mine.py:f"],
        ["mine.py:2: f: its parameters are (path), and it is called with (path, data): data is missing"],
    ),
    "evaluator": (
        "def f(engine, inputs, extra): ...",
        ["recipe=evaluate", "eval.evaluators=[mine.py:f]"],
        ["mine.py:1: f: ", "called with (engine, inputs): nothing is given for extra; give it a default"],
    ),
    "reward": (
        "def f(answers): ...",
        ["recipe=grpo", "reward.functions.mine=mine.py:f"],
        ["mine.py:1: f: its parameters are (answers): it takes no completions; write (completions, records)"],
    ),
    "reward, a field of no row": (
        "def f(completions, recrods): ...",
        ["recipe=grpo", "reward.functions.mine=mine.py:f"],
        ["mine.py:1: its parameters are (completions, recrods): recrods is neither", "question, answer"],
    ),
    "loss": (
        "def f(outputs, labels): ...",
        ["recipe=lora_sft", "train.loss=mine.py:f"],
        ["mine.py:1: f: ", "called with (outputs, labels, num_items_in_batch=…): num_items_in_batch is missing"],
    ),
    "no such function": (
        "def g(engine, inputs): ...",
        ["recipe=evaluate", "eval.evaluators=[mine.py:f]"],
        ["mine.py has no function 'f'; it has g"],
    ),
    "no such file": ("", ["recipe=lora_sft", "train.loss=nix.py:f"], ["train.loss", "nix.py: there is no such file"]),
    "no function": ("def f(a, b): ...", ["recipe=lora_sft", "train.loss=mine.py"], ["train.loss=mine.py: write path"]),
    "no Python": ("def f(:", ["recipe=grpo", "reward.functions.mine=mine.py:f"], ["mine.py:1: invalid syntax"]),
    "a reward without a function": (
        "def f(completions, records): ...",
        ["recipe=grpo", "reward.functions.mine=mine.py"],
        ["gemma_tune: reward.functions.mine=mine.py: write path/to/file.py:function.\n"],
    ),
    "a reward with a colon alone": (
        "def f(completions, records): ...",
        ["recipe=grpo", "reward.functions.mine=mine.py:"],
        ["gemma_tune: reward.functions.mine=mine.py:: write path/to/file.py:function.\n"],
    ),
    "the key of a recipe's file": (
        "def run(cfg, folder): ...",
        ["recipe=lora_sft", "recipe_file=mine.py"],
        ["recipe_file is set by the recipe: write recipe=path"],
    ),
    "a relative import": (
        "from .helper import f",
        ["recipe=lora_sft", "train.loss=mine.py:f"],
        ["mine.py:1: a relative import, and the file is in no package; write from helper import f: files beside"],
    ),
    "a relative import of a file": (
        "from . import helper\ndef f(outputs, labels, num_items_in_batch): ...",
        ["recipe=lora_sft", "train.loss=mine.py:f"],
        ["mine.py:1: a relative import", "write import helper: "],
    ),
    "a comma in the name of a file": (
        "def f(completions, records): ...",
        ["recipe=grpo", "reward.functions.x=a,b.py:f"],
        ["quotes make it one text: reward.functions.x='\"a,b.py:f\"'"],
    ),
    "a number": (
        "def g(engine, inputs): ...\nf = 5",
        ["recipe=evaluate", "eval.evaluators=[mine.py:f]"],
        ["mine.py:2: f: this is the value 5, and no function; name one: mine.py has g"],
    ),
    "an async evaluator": (
        "async def f(engine, inputs): ...",
        ["recipe=evaluate", "eval.evaluators=[mine.py:f]"],
        ["mine.py:1: f: an async function gives nothing before it is awaited"],
    ),
    "an async loss": (
        "async def f(outputs, labels, num_items_in_batch): ...",
        ["recipe=lora_sft", "train.loss=mine.py:f"],
        ["mine.py:1: f: an async function"],
    ),
    "records and a field": (
        "def f(completions, records, question): ...",
        ["recipe=grpo", "reward.functions.mine=mine.py:f"],
        ["beside completions and records, nothing is given for question; write", "record.row['question']"],
    ),
    "many functions": (
        "".join(f"def g{n}(a): ...\n" for n in range(25)),
        ["recipe=evaluate", "eval.evaluators=[mine.py:f]"],
        ["g18, g19 and 5 more"],
    ),
    "a lambda": (
        "f = lambda engine: 1",
        ["recipe=evaluate", "eval.evaluators=[mine.py:f]"],
        ["mine.py:1: f: its parameters are (engine), ", "inputs is missing"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", slow_after(8, MISTAKES))
def test_mistakes_without_torch(name: str, folder: Path) -> None:
    """The file is not run."""
    source, words, said = MISTAKES[name]
    write("mine.py", f"{source}\nopen('was_run', 'w')\n")
    message = refused(*words)
    assert all(expected in message for expected in said), message


# Files of the user's own, and what is said of the import of one of them
IMPORTS: dict[str, tuple[dict[str, str], str]] = {
    "a package that isn't installed": (
        {"mine.py": "import json\nimport levenstein"},
        "mine.py:2: there is no module levenstein; install the package, or put levenstein.py beside the file.\n",
    ),
    "a module of a package that isn't installed": (
        {"mine.py": "from levenstein.fast import ratio"}, "mine.py:1: there is no module levenstein; install"
    ),
    "a name near to that of a file": (
        {"mine.py": "import helpr", "helper.py": ""}, "put helpr.py beside the file. Did you mean helper?"
    ),
    "a file beside imports it": (
        {"mine.py": "import helper", "helper.py": "\nfrom nix import x"}, "helper.py:2: there is no module nix; "
    ),
    "a name that isn't there": (
        {"mine.py": "from helper import Scor", "helper.py": "import re\nclass Score: ...\n_x = 1"},
        "mine.py:1: {folder}/helper.py has no 'Scor'; it has re, Score. Did you mean Score?",
    ),
    "a name that isn't in a package": (
        {"mine.py": "from mypack import metrics, metrix", "mypack/__init__.py": "", "mypack/metrics.py": ""},
        "mine.py:1: {folder}/mypack/__init__.py has no 'metrix'; it has none.",
    ),
    "a module that isn't in a folder": (
        {"mine.py": "import mypack.metrix", "mypack/metrics.py": ""},
        "mine.py:1: there is no module metrix in {folder}/mypack. Did you mean metrics?",
    ),
    "a file beside is no Python": ({"mine.py": "import helper", "helper.py": "def f(:"}, "helper.py:1: invalid syntax"),
}  # fmt: skip
WAYS = {
    "reward": ["recipe=grpo", "reward.functions.mine=mine.py:f"],
    "evaluator": ["recipe=evaluate", "eval.evaluators=[mine.py:f]"],
    "loss": ["recipe=lora_sft", "train.loss=mine.py:f"],
    "reader": ["recipe=lora_sft", "data=auto", "data.format=mine.py:f", "data.train_file=mine.py"],
    "recipe": ["recipe=mine.py"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_after(2, IMPORTS))
def test_imports_that_are_not_there_without_torch(name: str, folder: Path) -> None:
    """Each by a kind of own code; the files are not run."""
    files, said = IMPORTS[name]
    for file, source in files.items():
        write(file, source + "\n")
    write("mine.py", files["mine.py"] + "\nopen('was_run', 'w')\ndef f(*given, **named): ...\nrun = read = f\n")
    write("mine.yaml", "# @package _global_\nmethod: sft\n")
    kind = list(WAYS)[list(IMPORTS).index(name) % len(WAYS)]
    message = refused(*WAYS[kind])
    assert said.format(folder=folder) in message, message
    for words in WAYS.values():
        with pytest.raises(UserError) as caught:
            compose_config(words[0].removeprefix("recipe="), words[1:])
        assert len(caught.value.problems) == 1 and said.format(folder=folder).strip() in str(caught.value)


MAY_BE_THERE = [
    "try:\n    import nix\nexcept ImportError:\n    nix = None", "if False:\n    import nix",
    "def f():\n    import nix", "import sys\nsys.path.append('x')\nimport nix", "from sys import path\nimport nix",
    "import os.path, xml.etree, torch.nn, _thread, builtins", "import mypack.metrics\nfrom mypack import metrics",
    "from helper import Score, again, __doc__, late, a", "from helper import *", "from __future__ import annotations",
    "import gemma_tune.config\nfrom gemma_tune.errors import UserError", "import namespace.deep.inner",
]  # fmt: skip


@pytest.mark.parametrize("source", MAY_BE_THERE)
def test_imports_that_may_be_there(source: str, folder: Path) -> None:
    write("mine.py", source)
    write("helper.py", "class Score: ...\nfrom re import sub as again\nif again:\n    late = a, b = 1, 2\n")
    write("mypack/__init__.py", "")
    write("mypack/metrics.py", "")
    write("namespace/deep/inner.py", "")
    assert import_problem(Path("mine.py")) is None


def test_a_path_stands_once(folder: Path) -> None:
    """What named the file, by its whole path, isn't repeated by where in it the fault is."""
    file = write("mine.py", "import nix\n").absolute()
    write("mine.yaml", "# @package _global_\nmethod: sft\n")
    for words in WAYS.values():
        named = [word.replace("mine.py", str(file)) for word in words]
        with pytest.raises(UserError) as caught:
            compose_config(named[0].removeprefix("recipe="), named[1:])
        assert caught.value.problems[0].count(str(file)) == 1 and "mine.py:1: " in str(caught.value)
    for source, said in {"x = 1 / 0": "mine.py:1: ZeroDivisionError", "f = 5": "mine.py: f is of type int"}.items():
        file.write_text(source, encoding="utf-8")
        with pytest.raises(UserError) as caught:
            load_function(f"{file}:f", "train.loss")
        assert str(caught.value).count(str(file)) == 1 and said in str(caught.value)


MAY_WORK = [
    "import functools\n@functools.cache\ndef f(x): ...", "class f:\n    def __new__(cls, *given): ...",
    "from other import f", "from other import *", "f = len", "globals()['f'] = print", "def __getattr__(name): ...",
    "for f in (print,): ...", "with open(__file__) as f: ...", "import sys\nif sys.argv:\n    from other import f",
    "def f(path): ...\ndef f(path, data): ...", "try:\n    import f\nexcept ImportError:\n    f = print",
    "def f(*given): ...", "def f(a, b=1, *, c=2, **more): ...", "f: object = print", "if (f := print): ...",
    "setattr(__import__('sys').modules[__name__], 'f', print)",
]  # fmt: skip


@pytest.mark.parametrize("source", MAY_WORK)
def test_what_may_work_is_not_refused(source: str, folder: Path) -> None:
    write("mine.py", source + "\n")
    write("other.py", "f = print\n")
    write("rows.jsonl", ROWS)
    compose_config("lora_sft", ["data=auto", "data.train_file=rows.jsonl", "data.format=mine.py:f"])


def test_what_is_known_only_then_is_refused_before_a_model_is_loaded(folder: Path) -> None:
    write("other.py", "def f(outputs): ...\n")
    write("mine.py", "from other import f\n")
    for recipe, key in (("lora_sft", "train.loss=mine.py:f"), ("evaluate", "eval.evaluators=[mine.py:f]")):
        with pytest.raises(UserError, match=r"mine\.py:f: its parameters are \(outputs\), and it is called with"):
            gemma_tune.run(recipe, [key, "data.max_train_samples=4", "data.max_eval_samples=4"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("undefined", "NameError: name 'undefined' is not defined"),
        ("torch.zeros(2) @ torch.zeros(3)", "RuntimeError: .*"),
        ("sys.exit(0)", "SystemExit: 0: it would end the whole command"),
    ],
)
def test_a_loss_that_raises(body: str, said: str, folder: Path) -> None:
    file = write("mine.py", f"import sys\nimport torch\n\ndef loss():\n    {body}\n")
    loss = load_function("mine.py:loss", "train.loss")
    wanted = rf"^train.loss=mine\.py:loss: {file.absolute()}:5: {said}"
    with pytest.raises(UserError, match=wanted), in_user_code("train.loss=mine.py:loss", file.absolute()):
        loss()
    with pytest.raises(torch.OutOfMemoryError), in_user_code("train.loss=mine.py:loss", file.absolute()):
        raise torch.OutOfMemoryError  # which is none of the loss's mistakes


def test_a_loss_of_ones_own_that_is_nan_is_named() -> None:
    trainer = object.__new__(OwnLossTrainer)
    trainer._named = "mine.py:loss"
    assert "train.loss=mine.py:loss: look there" in trainer.not_finite_way
    assert "train.loss" not in object.__new__(GemmaSFTTrainer).not_finite_way


def test_an_evaluator_gets_texts_and_ids(folder: Path) -> None:
    """Of at most `eval.max_samples` rows; one that returns numbers alone, as before, still does."""
    write("mine.py", """
def texts(engine, inputs):
    answers = inputs.answers(engine, inputs.tests["test"], max_new_tokens=4)
    for answer in answers:
        whole = engine.tokenizer.decode(answer.prompt_ids)
        assert answer.prompt in whole and answer.record in inputs.tests["test"] and len(answer.ids) <= 4
        assert answer.text == engine.tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
        assert answer.scored(True) == {**answer.row(), "score": 1.0}
    return {"texts": len(answers), "limit": -1 if inputs.limit is None else inputs.limit}
""")  # fmt: skip
    words = ["eval.evaluators=[mine.py:texts]", "eval.max_samples=3", "tracker=none", "output_dir=made"]
    result = gemma_tune.run("evaluate", [*words, "data=sample", "eval.num_samples=0"])
    assert not result.failures and result.metrics["after"] == {"texts": 3, "limit": -1}
