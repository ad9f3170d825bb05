"""What a new user types, and what is answered: one short message that says what was meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from asking import ask, refused, write

from gemma_tune.errors import UserError
from gemma_tune.run.paths import CONFIGS
from gemma_tune.validation import problems_of_words

SFT = "write recipe=qlora_sft (an adapter over 4-bit weights), recipe=lora_sft or recipe=full_sft"
LINES = [
    (["train", "recipe=qlora_sft"], "`train` isn't needed; leave it out: python -m gemma_tune recipe=qlora_sft"),
    (["recipe=sft"], SFT),
    (["sft"], SFT),
    (["recipe=tune"], SFT),
    (["qlora_sft"], "`qlora_sft`: write recipe=qlora_sft"),
    (["recipe", "qlora_sft"], "`recipe`: write recipe=qlora_sft"),
    (["finetune"], "python -m gemma_tune recipe=qlora_sft"),
    (["finetune", "dpo"], "python -m gemma_tune recipe=dpo"),
    (["recipe", "=", "dpo"], "write recipe=dpo without blanks around the `=`"),
    (["recipe=", "dpo"], "write recipe=dpo without blanks around the `=`"),
    (["recipe", "=dpo"], "write recipe=dpo without blanks around the `=`"),
    (["recipe="], "recipe= is empty: name one of chat,"),
    (["help"], "write python -m gemma_tune --help"),
    (["version"], "write python -m gemma_tune --version"),
    (["recipe=chat", "chat.prompt=Hello", "my", "friend"], "'chat.prompt=Hello my friend'"),
    (["recipe=lora_sft", "data.train_file=my", "file.jsonl"], "'data.train_file=my file.jsonl'"),
    (["recipe=lora_sft", "eval.evaluators=[kl,", "answers]"], "'eval.evaluators=[kl, answers]'"),
    (["recipe=lora_sft", "eval.evaluators=kl,answers"], "brackets: 'eval.evaluators=[kl,answers]'"),
    (["recipe=lora_sft", "data.train_file=a.jsonl,b.jsonl"], "-m data.train_file=a.jsonl,b.jsonl runs once with each"),
    (["recipe=lora_sft", "train.learning_rate=1e-4,2e-4"], "-m train.learning_rate=1e-4,2e-4 runs once with each"),
    (["recipe=lora_sft", "train.learning_rate=0,0001"], "write decimals with a point: train.learning_rate=0.0001"),
    (["recipe=lora_sft", "train.learning_rate==1e-4"], "write one `=`: train.learning_rate=1e-4"),
    (["recipe=lora_sft", "train.learning_rate:1e-4"], "write train.learning_rate=1e-4"),
    (["recipe=lora_sft", "train.learning_rate", "1e-4"], "write train.learning_rate=1e-4"),
    (["recipe=lora_sft", "learning_rate", "1e-4"], "write train.learning_rate=1e-4"),
    (["recipe=lora_sft", "adapter.target_modules=[q_proj,v_proj"], "a bracket isn't closed"),
    (["recipe=lora_sft", "my.jsonl"], "data.train_file=my.jsonl"),
    (["recipe=lora_sft", "google/gemma-3-1b-it"], "model.model_name_or_path=google/gemma-3-1b-it"),
    (["recipe=lora_sft", "gemma3_1b_it"], "`gemma3_1b_it`: write model=gemma3_1b_it"),
    (["recipe=lora_sft", "model=google/gemma-3-1b-it"], "model.model_name_or_path=google/gemma-3-1b-it"),
    (["recipe=lora_sft", "data=my.jsonl"], "data=auto data.train_file=my.jsonl"),
    (["recipe=lora_sft", "recipe=dpo"], "one recipe at a time"),
    (["recipe=lora_sft,dpo"], "-m recipe=lora_sft,dpo runs once with each"),
    (["configs/recipe/qlora_sft.yaml"], "recipe=qlora_sft"),
    (["recipe=lora_sft", ""], "an empty word; take it out"),
    (["recipe=lora_sft", "\\"], "a backslash ends a line"),
    (["recipe=lora_sft", "train={learning_rate:1e-4}"], "keys are set one by one: train.learning_rate=0.0001"),
    (["recipe=lora_sft", "dry_run"], "write dry_run=true"),
    (["eval", "recipe=evaluate"], "`eval` isn't needed"),
    (["recipe=lora_sft", "“model=tiny”"], "type plain quotes"),
    (["recipe=lora_sft", "–-help"], "dashes (-), and not the typographic ones"),
    (["recipe=lora_sft", "chat"], "one recipe at a time: recipe=lora_sft, or recipe=chat in its place"),
    (["recipe=lora_sft", "dpo"], "one recipe at a time"),
    (["recipe=chat", "chat"], "`chat` isn't needed"),
    (
        ["recipe=lora_sft", "model.model_name_or_path=google/gemma-3-1b-it", "train.jsonl"],
        "data.train_file=train.jsonl",
    ),
    (["recipe=lora_sft", "output_dir=runs/x", "lora"], "`lora`: write adapter=lora"),
    (["recipe=lora_sft", "output_dir=runs/x", "gemma3_1b_it"], "write model=gemma3_1b_it"),
    (["recipe=lora_sft", "output_dir=runs/x", "google/gemma-3-1b-it"], "model.model_name_or_path=google/gemma-3-1b-it"),
    (["recipe=lora_sft", "output_dir=my", "folder"], "'output_dir=my folder'"),
    (["recipe=lora_sft", "data.train_file=a.jsonl", "b.jsonl"], "data.train_file=b.jsonl"),
    (["recipe=chat", "chat.prompt=Read", "train.jsonl"], "'chat.prompt=Read train.jsonl'"),
    (["recipe=merge"], "trainings write export/merged themselves"),
    *(
        ([f"recipe={recipe}", f"export={name}"], meant)
        for recipe, names, meant in (
            ("export", ("q4_0", "Q4_0", "gguf_q4_0", "4bit"), "Instead: export=gguf is int4 as Q4_0, by recipe=export"),
            ("lora_sft", ("q8_0", "gguf_q8", "int8"), "Instead: write export=gguf_q8_0."),
            ("lora_sft", ("f16", "fp16", "float16"), "Instead: write export=gguf_f16."),
            ("lora_sft", ("bf16", "gguf_bf16"), "Instead: write 'export.formats=[gguf_bf16]'"),
            ("lora_sft", ("f32",), "Instead: write 'export.formats=[gguf_f32]'"),
            ("export", ("q4_k_m", "Q5_K_S", "iq4_xs"), "llama-quantize MODEL-f16.gguf MODEL-"),
            ("export", ("compressed-tensors", "awq", "GPTQ", "merged_4bit"), "Instead: export=w4a16 is int4 in the"),
            ("export", ("ollama", "llama.cpp"), "Instead: export=gguf_q8_0 or export=gguf_f16 is a GGUF file"),
            ("lora_sft", ("vllm", "safetensors", "merged_16bit"), "Instead: write export=merged."),
            ("lora_sft", ("lora",), "export=gguf_lora writes it for llama.cpp, too"),
        )
        for name in names
    ),
    (
        ["recipe=grpo", "reward.polite=my.py:f"],
        "no key `reward.polite`. A reward of your own is named by reward.functions.polite=path/to/file.py:function, "
        "and its weight by reward.weights.polite.",
    ),
    (["recipe=grpo", "reward.polite.weight=2"], "its weight by reward.weights.polite."),
    (["recipe=grpo", "reward.timout=2"], "Did you mean reward.timeout?"),
    (["recipe=grpo", "reward=my.py:f"], "A reward of your own is named by reward.functions.NAME=my.py:f."),
    (["recipe=evaluate", "eval=my.py:f"], "An evaluator of your own is named by 'eval.evaluators=[my.py:f]'."),
    (["recipe=evaluate", "http://127.0.0.1:8000/v1"], "named by its key: model.base_url=http://127.0.0.1:8000/v1"),
    (["recipe=evaluate", "localhost:8000"], "named by its key: model.base_url=localhost:8000"),
    (["quantize"], "recipe=export for the int4 files of a model, or recipe=qat"),
]


@pytest.mark.parametrize(
    ("words", "message"), LINES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_was_meant(words: list[str], message: str) -> None:
    said = problems_of_words(words, [])
    assert len(said) == 1 and said[0].startswith("command line: ") and message in said[0], said
    assert len(said[0]) < 600  # six lines of a terminal


def test_a_sweep_needs_no_words() -> None:
    assert problems_of_words(["recipe=lora_sft,dpo", "train.learning_rate=1e-4,2e-4"], [], sweeps=True) == []


FLAGS = [
    (["--recipe", "qlora_sft"], "--recipe: keys stand without dashes: recipe=qlora_sft"),
    (["--recipe=qlora_sft"], "keys stand without dashes: recipe=qlora_sft"),
    (["recipe=lora_sft", "--learning-rate", "1e-4"], "train.learning_rate=1e-4"),
    (["recipe=lora_sft", "-lr", "1e-4"], "train.learning_rate=1e-4"),
    (["recipe=lora_sft", "--dry-run"], "dry_run=true"),
    (["recipe=lora_sft", "--model", "gemma3_1b_it"], "model=gemma3_1b_it"),
]


@pytest.mark.parametrize(
    ("words", "message"), FLAGS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_flags_that_are_keys(words: list[str], message: str, folder: Path) -> None:
    assert message in refused(*words)


def test_version(folder: Path) -> None:
    """Without an import of what it names."""
    for flag in ("--version", "-V"):
        done = ask(flag)
        assert done.returncode == 0 and done.stderr == "" and "torch" in done.stdout
        assert done.stdout.startswith("gemma_tune ") and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("recipe", sorted(file.stem for file in (CONFIGS / "recipe").glob("*.yaml")))
def test_a_page_of_each_recipe(recipe: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gemma_tune.cli.main import main

    for words in ([f"recipe={recipe}", "--help"], ["--help", f"recipe={recipe}"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"recipe={recipe}\n") and f"python -m gemma_tune recipe={recipe}" in said
        assert "Keys (docs/configuration.md" in said and len(said.splitlines()) < 60
    assert main([f"recipe={recipe[:-1]}x", "-h"]) == 2


@pytest.mark.parametrize("recipe", ["copy", "doctor", "models"])
def test_a_page_names_only_what_is_read(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    from gemma_tune.cli.main import main

    assert main([f"recipe={recipe}", "--help"]) == 0
    said = capsys.readouterr().out
    assert "model.model_name_or_path" not in said and f"recipe={recipe} dry_run=true" not in said


def test_a_page_of_a_quoted_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quotes and blanks, as Hydra takes them; what Hydra reads as no text is no recipe."""
    from gemma_tune.cli.main import main

    write("my copies/mine.py", "def run(cfg, folder): ...\n")
    write("my copies/mine.yaml", "# @package _global_\n# For my cat.\nmethod: sft\n")
    for word in ("'qlora_sft'", '"qlora_sft"', " qlora_sft"):
        assert main([f"recipe={word}", "--help"]) == 0
        assert capsys.readouterr().out.startswith("recipe=qlora_sft\n")
    for word in ("'my copies/mine.py'", "my copies/mine.py"):
        assert main([f"recipe={word}", "--help"]) == 0
        assert "For my cat." in capsys.readouterr().out
    for word in ("null", "3", "[dpo]", "", "''", "dpo,", "'"):
        assert main([f"recipe={word}", "--help"]) in (0, 2), word
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["copy", "doctor", "models", "plan"])
def test_words_without_an_effect(recipe: str, folder: Path) -> None:
    """A recipe that only looks refuses what it doesn't look at, from words and from files, and lists all of it."""
    from gemma_tune.cli.compose import compose_config

    own = {"copy": ["copy.recipe=dpo"], "plan": ["model=gemma3_4b_it", "train.max_length=64", "seed=1"]}.get(recipe, [])
    compose_config(recipe, [*own, "dry_run=true", "tracker=none"])
    words = ["data.train_file=nope.csv", "adapter=lora", "eval.max_samples=3", "model.dtype=float32", "output_dir=x"]
    words += [] if recipe == "plan" else ["train.learning_rate=1e-3", "model=gemma3_1b_it", "seed=3", "overwrite=true"]
    with pytest.raises(UserError) as refused:
        compose_config(recipe, [*own, *words])
    said = refused.value.problems
    assert len(said) == len(words), said
    for word in words:
        assert any(f"{word.partition('=')[0]} has no effect with recipe={recipe}" in problem for problem in said)
    write("mine/recipe/mine.yaml", f"# @package _global_\ndefaults: [{recipe}, _self_]\nexport: {{formats: [gguf]}}\n")
    with pytest.raises(UserError, match=r"export\.formats has no effect with recipe=mine"):
        compose_config("mine", own, "mine")


def test_a_users_recipe_has_a_page(folder: Path) -> None:
    mine = folder / "mine" / "recipe" / "my_run.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(
        "# @package _global_\n# For my dog.\ndefaults: [qlora_sft, _self_]\ntrain: {max_steps: 3}\n", encoding="utf-8"
    )
    words = [sys.executable, "-m", "gemma_tune", "--config-dir", "mine", "recipe=my_run", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "For my dog." in done.stdout and "train.max_steps=3" in done.stdout, done.stderr
    assert "conversations or text" in done.stdout


def test_a_prompt_without_its_key() -> None:
    from gemma_tune.validation.bare_words import answer_bare_words

    for model in ("model=tiny", "model.model_name_or_path=runs/mine"):
        found = answer_bare_words(["recipe=chat", model, "Can I pay?"], ["chat"], ["tiny"])
        assert found.messages == ["`Can I pay?`: write chat.prompt='Can I pay?'"]
