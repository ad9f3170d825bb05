"""lm-eval's tasks against its own command: every number, and every answer, equal to the last digit."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.base import Engine
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import UserError
from gemma_tune.evals import evaluation
from gemma_tune.evals.base import Inputs, Outcome, mean
from gemma_tune.evals.lm_eval import prepare
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.load_weights import load_base
from gemma_tune.models.source import find_source

pytestmark = pytest.mark.slow  # `make test-slow`: together they take minutes

TASKS = ("own_group", "own_say", "own_text")
SETTINGS = {"plain": [], "chat": ["eval.lm_eval.apply_chat_template=true", "eval.lm_eval.num_fewshot=2"]}
BATCH = 3
LENGTH = 256
WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "house", "river", "stone", "tree", "book"]

# Results and the answers of one task.
Theirs = tuple[dict[str, Any], list[dict[str, Any]]]


def write_tasks(folder: Path) -> None:
    """A task of each kind, with its rows, and a group of two."""
    draw = random.Random(0)

    def some(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    choices = [{"q": some(2, 14), "of": [some(1, 4) for _ in range(4)], "label": draw.randrange(4)} for _ in range(14)]
    sums = [(draw.randrange(50), draw.randrange(50)) for _ in range(13)]
    rows = {
        "choose": [*choices, choices[0]],  # one stands there twice
        "say": [{"q": f"{a} + {b} =", "a": str(a + b)} for a, b in sums],
        "text": [{"text": some(5, 60)} for _ in range(5)] + [{"text": some(260, 260)}],  # more than LENGTH tokens
    }
    bodies = {
        "choose": """
            output_type: multiple_choice
            doc_to_text: "Q: {{q}}\\nA:"
            doc_to_target: label
            doc_to_choice: of
            metric_list: [{metric: acc}, {metric: acc_norm}, {metric: brier_score}]
        """,
        "say": """
            output_type: generate_until
            doc_to_text: "{{q}}"
            doc_to_target: a
            generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, do_sample: false}
            metric_list: [{metric: exact_match}]
            filter_list:
            - {name: whole, filter: [{function: take_first}]}
            - {name: number, filter: [{function: regex, regex_pattern: "(\\\\d+)"}, {function: take_first}]}
        """,
        "text": """
            output_type: loglikelihood_rolling
            doc_to_text: ""
            doc_to_target: "{{text}}"
            metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
        """,
        "last": """
            output_type: loglikelihood
            doc_to_text: "{{q}}"
            doc_to_target: "{{' ' + of[0]}}"
            metric_list: [{metric: acc}]
        """,
    }
    for name, body in bodies.items():
        file = folder / f"{'choose' if name == 'last' else name}.jsonl"
        if name in rows:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
        head = f"""
            task: own_{name}
            dataset_path: json
            dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {folder / "cache"}}}
            test_split: test
            fewshot_split: test
        """
        text = "".join(line.strip() + "\n" for line in (head + body).splitlines() if line.strip())
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    group = "group: own_group\ntask: [own_choose, own_last]\naggregate_metric_list: [{metric: acc}]\n"
    (folder / "group.yaml").write_text(group, encoding="utf-8")


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, for texts of LENGTH tokens at most: longer ones are cut into pieces."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(stored | {"max_position_embeddings": LENGTH}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


def config(small: Path, names: str, *overrides: str) -> Config:
    return compose_config(
        "lora_sft",
        [
            f"model.model_name_or_path={small}", "model.device=cpu", "model.dtype=float32",
            "eval.evaluators=[lm_eval]", f"eval.lm_eval.tasks=[{names}]", f"eval.lm_eval.batch_size={BATCH}",
            *overrides,
        ],
    )  # fmt: skip


def prepared(cfg: Config, tokenizer: Any = None) -> Any:
    return prepare(Inputs(cfg, tokenizer, TokenizedRows([], []), {}))


@pytest.fixture(scope="module")
def engine(small: Path) -> TransformersEngine:
    cfg = config(small, "own")
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    return TransformersEngine(load_base(cfg.model, source, tokenizer), tokenizer)


@pytest.fixture(scope="module")
def ours(small: Path, tasks: Path, engine: TransformersEngine) -> dict[str, Outcome]:
    """What the evaluator gives, by the name of the settings."""
    folder = f"eval.lm_eval.include_path={tasks}"
    return {n: prepared(config(small, ",".join(TASKS), folder, *words))(engine) for n, words in SETTINGS.items()}


def only(folder: Path, pattern: str) -> str:
    (file,) = folder.rglob(pattern)
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def theirs(small: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Theirs]:
    """What lm-eval gives for the model's folder, by the name of the settings.

    Its command is asked for the chat, and for the other one, as it reads 14,000 files first, the function behind it.
    """
    out = tmp_path_factory.mktemp("out")
    words = [
        "--model", "hf", "--model_args", f"pretrained={small},dtype=float32", "--device", "cpu",
        "--tasks", ",".join(TASKS), "--include_path", str(tasks), "--batch_size", str(BATCH),
        "--apply_chat_template", "--num_fewshot", "2", "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "lm_eval", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [json.loads(line) for line in only(out, "samples_own_say_*.jsonl").splitlines()]
    plain = simple_evaluate(
        "hf",
        {"pretrained": str(small), "dtype": "float32"},
        list(TASKS),
        device="cpu",
        batch_size=BATCH,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    return {
        "chat": (json.loads(only(out, "results_*.json"))["results"], said),
        "plain": (plain["results"], plain["samples"]["own_say"]),
    }


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_number_is_that_of_the_command(
    settings: str, ours: dict[str, Outcome], theirs: dict[str, Theirs]
) -> None:
    """The embedded model's folder holds the template that we put into every tokenizer, and its stop tokens."""
    results, said = theirs[settings]
    wanted = {
        (task, *key.split(",")): value
        for task, values in results.items()
        for key, value in values.items()
        if "," in key and value != "N/A"
    }
    found = ours[settings].figures
    names = {
        ("own_choose", "acc", "none"): "own_choose_acc",
        ("own_choose", "acc_stderr", "none"): "own_choose_acc_stderr",
        ("own_choose", "acc_norm", "none"): "own_choose_acc_norm",
        ("own_choose", "acc_norm_stderr", "none"): "own_choose_acc_norm_stderr",
        ("own_choose", "brier_score", "none"): "own_choose_brier_score",
        ("own_last", "acc", "none"): "own_last_acc",
        ("own_last", "acc_stderr", "none"): "own_last_acc_stderr",
        ("own_group", "acc", "none"): "own_group_acc",
        ("own_group", "acc_stderr", "none"): "own_group_acc_stderr",
        ("own_say", "exact_match", "whole"): "own_say_exact_match_whole",
        ("own_say", "exact_match_stderr", "whole"): "own_say_exact_match_whole_stderr",
        ("own_say", "exact_match", "number"): "own_say_exact_match_number",
        ("own_say", "exact_match_stderr", "number"): "own_say_exact_match_number_stderr",
        ("own_text", "word_perplexity", "none"): "own_text_word_perplexity",
        ("own_text", "byte_perplexity", "none"): "own_text_byte_perplexity",
        ("own_text", "bits_per_byte", "none"): "own_text_bits_per_byte",
    }
    assert {names[key]: value for key, value in wanted.items()} == found
    assert 0 < found["own_choose_acc"] < 1 and found["own_say_exact_match_number"] > 0

    for kind in ("whole", "number"):
        rows = ours[settings].rows[f"own_say_exact_match_{kind}"]
        assert [row["answer"] for row in rows] == [s["resps"][0][0] for s in said if s["filter"] == kind]


def test_the_settings_matter(ours: dict[str, Outcome]) -> None:
    """Else the comparison of the second would say nothing that the first doesn't."""
    plain, chat = ours["plain"], ours["chat"]
    assert plain.figures["own_choose_acc_norm"] != chat.figures["own_choose_acc_norm"]
    (first, *_), (asked, *_) = plain.rows["own_say_exact_match_whole"], chat.rows["own_say_exact_match_whole"]
    assert not first["prompt"].startswith("<bos>") and asked["prompt"].startswith("<bos><start_of_turn>user\n")
    assert asked["prompt"].count("<start_of_turn>user\n") == 3


def test_rows(ours: dict[str, Outcome]) -> None:
    """A figure that is a mean has its rows; a group has those of its tasks, and they aren't given twice."""
    figures, rows = ours["plain"].figures, ours["plain"].rows
    assert set(rows) == {
        "own_group_acc", "own_choose_acc_norm", "own_say_exact_match_whole", "own_say_exact_match_number",
    }  # fmt: skip
    for name, found in rows.items():
        assert mean(found) == pytest.approx(figures[name], rel=1e-12)
        ids = [row["id"] for row in found]
        assert len(set(ids)) == len(ids)
        assert not {*ids} & {row["id"] for row in ours["chat"].rows[name]}  # other prompts are other rows
        assert all({"prompt", "wanted"} <= set(row) for row in found)
    assert {row["id"].rpartition("-")[0] for row in rows["own_group_acc"][:14]} == {"own_choose"}
    assert rows["own_choose_acc_norm"][14]["id"] == rows["own_choose_acc_norm"][0]["id"] + "-1"
    assert all(row["wanted"].split()[0] in WORDS for row in rows["own_choose_acc_norm"])
    for row in rows["own_say_exact_match_whole"]:
        assert row["score"] == float(row["answer"] == row["wanted"])


def test_choices_are_shown(small: Path, tasks: Path, engine: TransformersEngine) -> None:
    """Of a task by itself, each row says what the model would choose."""
    found = prepared(config(small, "own_choose", f"eval.lm_eval.include_path={tasks}"))(engine)
    for row in found.rows["own_choose_acc"]:
        assert row["score"] == float(row["answer"] == row["wanted"])
    assert "answer" not in found.rows["own_choose_acc_norm"][0]  # chosen by another measure


def test_ids_hang_on_what_is_asked(
    small: Path, tasks: Path, engine: TransformersEngine, ours: dict[str, Outcome]
) -> None:
    """Not on how many rows there are, nor on whether a number of examples is the task's own or set to the same."""
    folder = f"eval.lm_eval.include_path={tasks}"
    words = [folder, "eval.lm_eval.num_fewshot=0", "eval.lm_eval.limit=4"]
    found = prepared(config(small, "own_choose", *words))(engine).rows["own_choose_acc_norm"]
    assert [row["id"] for row in found] == [row["id"] for row in ours["plain"].rows["own_choose_acc_norm"][:4]]


def test_what_is_better_the_lower_it_is(ours: dict[str, Outcome]) -> None:
    """As lm-eval says it of its metrics."""
    assert ours["plain"].lower_is_better == {
        "own_choose_brier_score", "own_text_word_perplexity", "own_text_byte_perplexity", "own_text_bits_per_byte",
    }  # fmt: skip


def test_limit_of_a_run_that_trains(small: Path, tasks: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    """It is held before and after training, too; a recipe that trains nothing takes all rows."""
    words = ["eval.max_samples=2", f"eval.lm_eval.include_path={tasks}"]
    cfg = config(small, "own_say", *words)
    assert len(prepared(cfg)(engine).rows["own_say_exact_match_whole"]) == 2
    cfg.method = "evaluate"
    assert len(prepared(cfg)(engine).rows["own_say_exact_match_whole"]) == 13


def test_limit(small: Path, tasks: Path, engine: TransformersEngine) -> None:
    """The smaller of what the configuration says and what the evaluator is called with."""
    run = prepared(config(small, "own_say", f"eval.lm_eval.include_path={tasks}", "eval.lm_eval.limit=3"))
    for limit, wanted in ((None, 3), (2, 2), (5, 3)):
        assert len(run(engine, limit).rows["own_say_exact_match_whole"]) == wanted


def state(model: Any, tokenizer: Any) -> list[Any]:
    """What mustn't change."""
    return [
        model.config.to_dict(),
        model.generation_config.to_dict(),
        [(n, p.data_ptr(), p.device, p.requires_grad, p._version) for n, p in model.named_parameters()],
        [(n, type(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()],
        (tokenizer.padding_side, tokenizer.pad_token, tokenizer.chat_template, repr(tokenizer)),
        random.getstate(),
        str(np.random.get_state()),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


def test_an_adapter_in_training_is_left_as_it_was(small: Path, tasks: Path) -> None:
    """Nothing moves, no mode and no random state; a new adapter changes no number, and one with weights does."""
    cfg = config(small, ",".join(TASKS), f"eval.lm_eval.include_path={tasks}", "eval.lm_eval.limit=2")
    source = find_source(cfg.model)
    tokenizer = load_tokenizer(source)
    base = load_base(cfg.model, source, tokenizer)
    run = prepared(cfg)
    bare = run(TransformersEngine(base, tokenizer))
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    model.train()
    model.get_submodule("base_model.model.model.layers.2").eval()  # what was off stays off
    before = state(model, tokenizer)
    found = run(TransformersEngine(model, tokenizer))
    assert state(model, tokenizer) == before
    assert found == bare
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.05)
    changed = run(TransformersEngine(model, tokenizer))
    assert changed.figures["own_text_bits_per_byte"] != bare.figures["own_text_bits_per_byte"]


class Other:
    """The same model as an engine that isn't Transformers': what the protocol has, and nothing else."""

    def __init__(self, engine: Engine) -> None:
        self.tokenizer, self.max_length, self.stops = engine.tokenizer, engine.max_length, engine.stops
        self.losses, self.log_probs, self.answers = engine.losses, engine.log_probs, engine.answers


def test_any_engine(small: Path, tasks: Path, engine: TransformersEngine, ours: dict[str, Outcome]) -> None:
    """Through the engine's own words the numbers are lm-eval's, but for the rounding of other batches."""
    cfg = config(small, ",".join(TASKS), f"eval.lm_eval.include_path={tasks}", *SETTINGS["chat"])
    found, wanted = prepared(cfg)(Other(engine)), ours["chat"]
    assert found.figures == pytest.approx(wanted.figures, rel=1e-6)
    assert set(found.rows) == set(wanted.rows)
    assert found.rows["own_say_exact_match_whole"] == wanted.rows["own_say_exact_match_whole"]


def test_an_engine_that_is_greedy_refuses_to_sample(
    small: Path, tasks: Path, tmp_path: Path, engine: TransformersEngine
) -> None:
    text = (tasks / "say.yaml").read_text(encoding="utf-8").replace("do_sample: false", "do_sample: true")
    (tmp_path / "say.yaml").write_text(text, encoding="utf-8")
    run = prepared(config(small, "own_say", f"eval.lm_eval.include_path={tmp_path}"))
    found = evaluation.evaluate({"lm_eval": run}, Other(engine))
    assert found.failures == {"lm_eval": "NotImplementedError: the task samples its answers, and Other doesn't"}


def test_the_tasks_of_the_hub_are_known_and_without_it_one_line_says_so(
    small: Path, engine: TransformersEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """`prepare` fetches nothing; HF_HUB_OFFLINE is set in every test."""
    run = prepared(config(small, "mmlu,hellaswag,truthfulqa,winogrande,gsm8k,ifeval"))
    found = evaluation.evaluate({"lm_eval": run}, engine)
    assert found.figures == {}
    assert found.failures["lm_eval"].startswith("ConnectionError: Couldn't reach 'cais/mmlu' on the Hub")
    assert "\n" not in found.failures["lm_eval"]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "the evaluator lm_eval failed" in line]
    assert len(warnings) == 1


def test_what_is_wrong_with_tasks_is_said_at_once(small: Path, tasks: Path, tmp_path: Path) -> None:
    for name in ("say", "group"):
        (tmp_path / f"{name}.yaml").write_text((tasks / f"{name}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    broken = tmp_path / "below" / "broken.yaml"
    broken.parent.mkdir()
    broken.write_text("task: broken\nmetric_list: [\n", encoding="utf-8")
    names = "helaswag,own_sai,broken,my/task.yaml,own_say"
    with pytest.raises(UserError) as error:
        prepared(config(small, names, f"eval.lm_eval.include_path={tmp_path}"))
    _, file, *others = str(error.value).splitlines()
    assert f"{broken} can't be read as a task" in file and "line 3" in file
    assert "group helaswag;" in others[0] and "Did you mean hellaswag?" in others[0]
    assert "group own_sai;" in others[1] and "Did you mean own_say?" in others[1]
    assert "there is no task or group broken" in others[2]
    assert "my/task.yaml is a file; set eval.lm_eval.include_path" in others[3]
    assert len(others) == 4


def test_a_function_that_isnt_there_is_said_before_a_run(small: Path, tasks: Path, tmp_path: Path) -> None:
    file = tmp_path / "say.yaml"
    text = (tasks / "say.yaml").read_text(encoding="utf-8")
    file.write_text(text + "process_docs: !function lists.shortest\n", encoding="utf-8")
    cfg = config(small, "own_say", f"eval.lm_eval.include_path={tmp_path}")
    with pytest.raises(UserError, match=r"say\.yaml can't be read as a task \(Cannot import module 'lists'"):
        prepared(cfg)
    (tmp_path / "lists.py").write_text("def shortest(docs):\n    return docs\n", encoding="utf-8")
    prepared(cfg)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric: exact_match", "metric: exact_mach", "lm-eval has no metric exact_mach. Did you mean exact_match?"),
        ("metric: exact_match", "metrics: exact_match", "an entry of metric_list names no metric"),
        (
            "metric: exact_match",
            "metric: exact_match, aggregation: meen, higher_is_better: true",
            "lm-eval has no aggregation meen. Did you mean mean?",
        ),
        ("say.jsonl", "said.jsonl", r"dataset_kwargs: there is no file .*said\.jsonl"),
    ],
)
def test_what_a_task_names_and_isnt_there(
    small: Path, tasks: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (tasks / "say.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "say.yaml").write_text(text.replace(old, new), encoding="utf-8")
    (tmp_path / "group.yaml").write_text("group: mine\ntask: [own_say]\n", encoding="utf-8")
    for name in ("own_say", "mine"):
        with pytest.raises(UserError, match=message) as error:
            prepared(config(small, name, f"eval.lm_eval.include_path={tmp_path}"))
        assert str(tmp_path / "say.yaml") in str(error.value)
    (tmp_path / "say.yaml").write_text(text, encoding="utf-8")
    prepared(config(small, "mine", f"eval.lm_eval.include_path={tmp_path}"))


def test_metrics_of_elsewhere_are_left_alone(small: Path, tasks: Path, tmp_path: Path) -> None:
    """Those of Hugging Face's evaluate, and those that a function of the task's own gives."""
    text = (tasks / "say.yaml").read_text(encoding="utf-8")
    (tmp_path / "own.py").write_text("def score(doc, results):\n    return {'mine': 1.0}\n", encoding="utf-8")
    for metric in ("{metric: wer, hf_evaluate: true}", "{metric: mine, aggregation: mean, higher_is_better: true}"):
        own = "process_results: !function own.score\n" if "mine" in metric else ""
        changed = text.replace("{metric: exact_match}", metric)
        assert changed != text
        (tmp_path / "say.yaml").write_text(changed + own, encoding="utf-8")
        prepared(config(small, "own_say", f"eval.lm_eval.include_path={tmp_path}"))


def test_files_that_are_read(small: Path, tasks: Path) -> None:
    cfg = config(small, "own_say", f"eval.lm_eval.include_path={tasks}")
    found = {path.name for path in evaluation.files_of(cfg)}
    assert found == {
        "choose.yaml", "say.yaml", "text.yaml", "last.yaml", "group.yaml", "choose.jsonl", "say.jsonl", "text.jsonl",
    }  # fmt: skip


def test_without_the_package(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"needs the package lm-eval.*pip install 'gemma_tune\[eval\]'"):
        prepared(config(small, "hellaswag"))


def test_the_folder_is_what_the_command_reads(small: Path, engine: TransformersEngine) -> None:
    """What our tokenizer has changed isn't what lm-eval looks at, or is the same."""
    plain = AutoTokenizer.from_pretrained(small)
    assert plain.chat_template == engine.tokenizer.chat_template
    assert (plain.pad_token_id, plain.bos_token_id) == (engine.tokenizer.pad_token_id, engine.tokenizer.bos_token_id)
