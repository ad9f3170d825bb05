"""report.md and report.html: the same facts in the same order, whatever the texts hold and however a run went."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from markdown_it import MarkdownIt
from markdown_it.token import Token
from media_files import picture
from rich.console import Console
from safetensors.numpy import save_file

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import ModelConfig
from gemma_tune.errors import RunError, UserError
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.models.source import find_source
from gemma_tune.page.blocks import FigureText, Heading, SampleAnswer, SampleRow, Section, Text
from gemma_tune.page.charts import Panel
from gemma_tune.page.html import html
from gemma_tune.page.markdown import markdown
from gemma_tune.page.terminal import print_figures
from gemma_tune.report import PAGE_MARK, write_report
from gemma_tune.report.artifacts import artifact_size, bytes_text, total_size
from gemma_tune.report.sections import ReportInputs, sections
from gemma_tune.report.use import how_to_use, next_commands
from gemma_tune.run.existing import Found
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.terminal import _answers, say_end

EVIL = (
    "</pre></details><script>alert(1)</script><b>bold</b> &amp; `code` ```\n# no title\n| a | b |\n"
    "[x](http://x) ![y](http://y) *star* _line_ \u202eabc\x1b[31m $a$ ~~no~~"
)
SEEN = EVIL.replace("\u202e", "‹U+202E›").replace("\x1b", "‹U+001B›")


class Page(HTMLParser):
    """What a browser makes of a page: its tags, its texts, and the texts below each heading."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.pres: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        self.text = " ".join(self.text.split())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr", "img"):
            self._open.append(tag)
        if tag in ("h2", "pre"):
            (self.headings if tag == "h2" else self.pres).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data if data.startswith("_") or self.text.endswith("_") else f" {data}"
        for tag, texts in (("h2", self.headings), ("pre", self.pres)):
            if tag in self._open:
                texts[-1] += data


def answers(scores: list[float], text: str) -> list[dict[str, Any]]:
    return [
        {"id": f"q{n}", "score": s, "prompt": f"Ask {n} {text}", "wanted": f"want {n}", "answer": f"say {n} {s} {text}",
         "stopped": n != 1}
        for n, s in enumerate(scores)
    ]  # fmt: skip


def measured(scores: list[float], loss: float, text: str = "") -> Evaluation:
    rows = {"test_exact_match": answers(scores, text)}
    figures = {"held_out_loss": loss, "test_exact_match": sum(scores) / len(scores), "test_rows": len(scores)}
    return Evaluation(figures, rows, rows["test_exact_match"][:2])


BEFORE = [0.0] * 6 + [1.0] * 6
AFTER = [1.0] * 6 + [1.0] * 5 + [0.0]


def reported(tmp_path: Path, recipe: str = "lora_sft", before: Any = None, after: Any = None, **more: Any) -> RunFolder:
    """A folder as a run leaves it, with its report."""
    folder = tmp_path / "a run's folder"
    cfg = compose_config(recipe, ["model=tiny"])
    run = RunFolder(folder, cfg, Found.NOTHING, None)
    for name, tensors in (
        ("adapter", {"a": np.zeros((4, 25), np.float32)}),
        ("export/merged", {"w": np.zeros((10, 50), np.float16), "b": np.zeros(500, np.float16)}),
    ):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")
        run.result.artifacts[name.rpartition("/")[2]] = name
    stored = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "google/gemma-3-270m-it"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(stored), encoding="utf-8")
    lines = [{"step": n, "loss": 3.5 / n, "epoch": 0.1} for n in range(1, 31)]
    lines = [{"step": 0, "held_out_loss": 3.25}, *lines, {"step": 30, "held_out_loss": 1.75}]
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    before = measured(BEFORE, 3.25) if before is None else before
    after = measured(AFTER, 1.75) if after is None else after
    counts = {"rows_read": 1234, "rows": 1230, "tokens": 56789}
    run.inputs = {str(tmp_path / "rows_of_mine.jsonl"): "0123456789abcdef" * 4}
    run.result.headline = {"name": "test_exact_match", "before": 0.5, "after": 11 / 12}
    run.result.metrics = {
        "steps": 30, "train_loss_first": 3.5, "train_loss_last": 0.117, "data": {"training": counts},
        "weights": {"total": 1100, "trainable": 100, "adapted_layers": 7},
        "export": {"export_kl": 0.0123, "held_out_loss": 1.76},
    }  # fmt: skip
    run.result.seconds, run.result.peak_memory_mb = {"load": 1.5, "train": 1200.25}, 4321.0
    for key, value in more.items():
        setattr(run.result, key, value)
    write_report(
        cfg, run, "trained: 100 of 1,100 weights", before, after, ["a note on rows"], ["✓ stop: <eos> trained"]
    )
    return run


def tokens_of(file: Path) -> list[Token]:
    parsed = MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8"))
    return [t for token in parsed for t in (token, *(token.children or ()))]


def texts_of(tokens: list[Token]) -> list[str]:
    return [t.content for t in tokens if t.type in ("text", "code_inline", "fence")]


def test_both_say_the_same_in_the_same_order(tmp_path: Path) -> None:
    run = reported(tmp_path)
    page, tokens = Page(run.report.with_suffix(".html")), tokens_of(run.report)
    titles = [tokens[n + 1].content for n, t in enumerate(tokens) if t.type == "heading_open" and t.tag == "h2"]
    assert titles == page.headings and titles == [
        "Before and after", "Losses and metrics over the steps", "Answers", "Rows that changed", "Inputs",
        "Rows and tokens", "Notes on the rows", "What was trained", "Checked before training",
        "The exported model compared with the trained one", "Time and memory", "Artifacts", "How to use it",
        "How to repeat it",
    ]  # fmt: skip
    for text in texts_of(tokens):
        if text in ("prompt", "reference", "before", "after", "–", "-") or "over the optimizer steps" in text:
            continue  # the page says these beside each answer, or draws them
        for word in re.findall(r"[^\s()]*\d[^\s()]*", text.replace("⏎", " ")):
            assert word in page.text, text


def test_a_heading_without_a_note() -> None:
    written = [Section("Rows", [Heading("Of which", ""), Heading("Others", "2 of 3")])]
    for lines in (html("title", PAGE_MARK, written), markdown("title", written)):
        text = "\n".join(lines)
        assert "Of which" in text and "()" not in text and "(2 of 3)" in text


def test_the_figures(tmp_path: Path) -> None:
    """6 and 11 of 12: Wilson; Bonett and Price's 5/14 ± 1.96 √((9/14 - (5/14)²) / 14); McNemar's p = 2 · 8/2^7."""
    run = reported(tmp_path)
    text, page = run.report.read_text("utf-8"), Page(run.report.with_suffix(".html"))
    assert "**test_exact_match: 50.0% (25.4–74.6) → 91.7% (64.6–98.5)**" in text
    assert "+41.7 points (−1.9 to +73.3): not significant, on 12 rows" in text
    assert "+41.7 points (−1.9 to +73.3): not significant, on 12 rows" in page.text
    assert "| 6 / 1 / 5 |" in text and "6 / 1 / 5" in page.text
    assert "test_exact_match: 6 of 12 rows became right, 1 became wrong." in text
    assert "Became right, 5 of 6:" in text and "Became wrong:" in text
    assert "| 1,234 |" in text and "4,321 MiB" in text and "| total | 1,201.8 s |" in text
    assert "| export kl | – | 0.0123 |" in text and "| held out loss | 1.75 | 1.76 |" in text
    assert "0123456789abcdef" in text and "rows_of_mine.jsonl" in text
    assert "| adapter | `adapter` |" in text and "| 100 | 32.00 | 20.0% |" in text  # 400 of 2 · 1000 bytes
    assert "| 1,000 | 16.00 | 100.0% |" in text
    assert "✓ Ask" not in text and "✗ say 0 0.0" in text and "✓ say 0 1.0" in text and "(cut off)" in text
    assert "after ✓ right, cut off" in page.text and "before ✗ wrong" in page.text
    # The intervals are drawn, and the curves
    assert "before 50.0% (25.4–74.6); after 91.7% (64.6–98.5)" in page.source
    assert page.source.count('class="plot"') == 1 and (run.path / "loss.png").stat().st_size > 5000
    assert "training, running mean" in page.text


def test_how_many_rows_were_used_during_training(tmp_path: Path) -> None:
    """Each evaluator's own limit before and after training; those that always use all rows aren't named."""
    words = [
        "model=tiny", "train.eval_steps=5", "eval.max_samples_during_training=16", "eval.max_samples=1200",
        "eval.during_training=[held_out_loss,preference,answers,kl,long_context,lm_eval]", "eval.kl.reference=a/b",
        "eval.kl.max_samples=32", "eval.lm_eval.tasks=[mmlu]", "eval.lm_eval.limit=50",
    ]  # fmt: skip
    cfg = compose_config("lora_sft", words)
    run = RunFolder(tmp_path, cfg, Found.NOTHING, None)
    inputs = ReportInputs(cfg, run, "", Evaluation(), Evaluation(), [Panel("loss", [])])
    (said,) = (
        block.text
        for section in sections(inputs)
        for block in section.blocks
        if isinstance(block, Text) and str(block.text).startswith("During")
    )
    assert said == (
        "During training, answers, kl, long_context, lm_eval used at most 16 rows of each test set or task; before and "
        "after it: answers at most 1,200, kl at most 32, long_context all, lm_eval at most 50."
    )


def test_nothing_is_loaded_or_run(tmp_path: Path) -> None:
    run = reported(tmp_path)
    page = Page(run.report.with_suffix(".html"))
    assert PAGE_MARK in page.source and "default-src 'none'; style-src 'unsafe-inline'" in page.source
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "a", "image"})
    for _, attributes in page.tags:
        assert not {"src", "srcset", "href", "xlink:href", "onclick", "onload"} & set(attributes)
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "prefers-color-scheme: dark" in style and "url(" not in style and "@import" not in style
    used = set(re.findall(r"var\((--[a-z-]+)\)", style))
    assert used and all(f"{name}:" in style for name in used)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    classes = {name for _, a in page.tags for name in (a.get("class") or "").split()}
    plain = {
        "texts",
        "answers",
        "headline",
        "values",
        "charts",
        "curves",
        "plot",
        "names",
        "code",
        "row",
        "ask",
        "sign",
    }
    assert classes >= plain and all(f".{name}" in style for name in plain)


def test_texts_stay_texts(tmp_path: Path) -> None:
    """Whatever models, rows, files and evaluators say."""
    run = reported(
        tmp_path, before=measured(BEFORE, 3.0, EVIL), after=measured(AFTER, 1.5, EVIL),
        failures={f"after: {EVIL}": EVIL},
    )  # fmt: skip
    page, tokens = Page(run.report.with_suffix(".html")), tokens_of(run.report)
    assert "script" not in {tag for tag, _ in page.tags} and "\u202e" not in page.source and "\x1b" not in page.source
    assert [pre.strip("\n") for pre in page.pres].count(f"Ask 0 {SEEN}") == 2  # a sample, and a row that changed
    assert not {t.type for t in tokens} & {"html_block", "html_inline", "link_open"}
    assert [t.attrs["src"] for t in tokens if t.type == "image"] == ["loss.png"]
    assert len([t for t in tokens if t.type == "heading_open"]) == 1 + len(page.headings)
    shown = " ".join(SEEN.replace("\n", "⏎").split())
    cells = ["".join(c.content for c in t.children or ()) for t in tokens if t.type == "inline"]
    assert f"Ask 0 {shown}" in cells and f"✓ say 0 1.0 {shown}" in cells and f"after: {shown}: {shown}" in cells
    assert "✓ stop: <eos> trained" in cells


def test_pictures_stand_beside_their_answers(tmp_path: Path) -> None:
    """Of samples and of rows that changed; Markdown has their names. Rows of before may have been stored without."""
    file = picture(tmp_path / "meter.png", 300, 100)
    before, after = measured(BEFORE, 3.0), measured(AFTER, 1.5)
    for row in after.rows["test_exact_match"]:
        row["media"] = [{"kind": "image", "path": str(file)}]
    run = reported(tmp_path, before=before, after=after)
    page, text = Page(run.report.with_suffix(".html")), run.report.read_text("utf-8")
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2 + 5 + 1 and {a["alt"] for a in pictures} == {"image meter.png"}
    assert {(a["width"], a["height"]) for a in pictures} == {("200", "67")}
    assert "image meter.png 300 × 100 pixels" in page.text
    assert text.count("\\[image meter.png\\] Ask") == 8 and "base64" not in text


def test_failures_stand_at_the_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = reported(tmp_path, failures={"after: lm_eval": "OSError: no such task", "step 5: answers": "ValueError: x"})
    page, text = Page(run.report.with_suffix(".html")), run.report.read_text("utf-8")
    assert page.headings[0] == "What could not be measured" and ("ul", {"class": "bad"}) in page.tags
    assert "- after: lm\\_eval: OSError" not in text and "- after: lm_eval: OSError: no such task" in text
    assert "step 5: answers: ValueError: x" in page.text
    say_end(run, measured(BEFORE, 3.25), measured(AFTER, 1.75), [])
    assert "not measured: after: lm_eval: OSError: no such task" in capsys.readouterr().out


def test_a_measurement_alone(tmp_path: Path) -> None:
    """As `recipe=evaluate` leaves it: no training, no artifacts, one value a figure."""
    run = reported(tmp_path / "whole")
    metrics = {"after": {}, "data": {"held_out": {"rows": 3}}}
    headline = {"name": "test_exact_match", "after": 11 / 12}
    more = {"metrics": metrics, "artifacts": {}, "headline": headline, "peak_memory_mb": None}
    run = reported(tmp_path, "evaluate", before=Evaluation(), after=measured(AFTER, 1.75), **more)
    text = run.report.read_text("utf-8")
    assert "**test_exact_match: 91.7% (64.6–98.5)**" in text and "## Figures" in text
    assert "Before and after" not in text and "How to use" not in text and "optimizer steps |" not in text
    assert "| prompt | reference | answer |" in text and "train.jsonl" not in text and "difference" not in text


def test_nothing_was_measured(tmp_path: Path) -> None:
    """eval=none: the training loss is the headline."""
    headline = {"name": "train_loss", "before": 3.5, "after": 0.117}
    run = reported(tmp_path, before=Evaluation(), after=Evaluation(), headline=headline)
    page, text = Page(run.report.with_suffix(".html")), run.report.read_text("utf-8")
    assert "**train_loss: 3.5 → 0.117**" in text and "3.5" in page.text and "Figures" not in page.headings


def test_an_unwritable_folder_is_said(tmp_path: Path) -> None:
    run = reported(tmp_path)
    run.report.unlink()
    run.report.mkdir()
    with pytest.raises(RunError, match=r"report.md: the report can't be written"):
        write_report(run.cfg, run, "", Evaluation(), Evaluation())


def test_the_lines_to_copy(tmp_path: Path) -> None:
    """Paths with blanks and quotes survive Python and the shell."""
    run = reported(tmp_path)
    fences = [t for t in tokens_of(run.report) if t.type == "fence"]
    folders = [
        node.value.value
        for fence in fences
        if fence.info == "python"
        for node in ast.walk(ast.parse(fence.content))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    assert folders == [str(run.path / "export" / "merged"), str(run.path / "adapter")]
    words = [shlex.split(line) for fence in fences if fence.info == "bash" for line in fence.content.splitlines()]
    assert ["python", "-m", "gemma_tune", "recipe=chat", f"model.model_name_or_path={run.path}"] in words
    assert ["python", "-m", "gemma_tune", f"rerun={run.path / 'config.yaml'}", "output_dir=another_folder"] in words
    assert [t.strip("\n") for t in Page(run.report.with_suffix(".html")).pres if "import" in t] == [
        fence.content.strip("\n") for fence in fences if fence.info == "python"
    ]


def gguf_header(file: Path, tensor: np.ndarray | None = None) -> None:
    """A GGUF file of one tensor or none; the command for llama.cpp depends on its architecture."""
    writer = GGUFWriter(file, "gemma3")
    writer.add_embedding_length(64)
    writer.add_context_length(64)
    if tensor is not None:
        writer.add_tensor("output.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_int4_files_alone_are_named_themselves(tmp_path: Path) -> None:
    """A folder without a whole model is refused by chat and evaluate (models/source.py)."""
    run = RunFolder(tmp_path / "run", compose_config("export", ["model=tiny"]), Found.NOTHING, None)
    for name, file in (("gguf", "x.gguf"), ("w4a16", "config.json")):
        (run.path / "export" / name).mkdir(parents=True)
        (run.path / "export" / name / file).write_bytes(b"{}")
        run.result.artifacts[name] = f"export/{name}"
    gguf_header(run.path / "export" / "gguf" / "x.gguf")
    commands = str(how_to_use(run)[-1])
    for recipe in ("chat", "serve", "evaluate"):
        assert f"recipe={recipe} model.model_name_or_path={run.path}/export/gguf/x.gguf" in commands
    assert f"recipe=chat model.model_name_or_path={run.path}/export/w4a16" in commands
    assert f"{run.path}/export/gguf" not in commands.replace("gguf/x.gguf", "") and "chat" in commands
    assert not re.search(rf"={run.path}(?!/)", commands)


def test_a_gguf_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """The report is written nevertheless: the file may be cut off, or gone, and the commands of the others stay."""
    run = reported(tmp_path)
    for name, content in (("gguf_f16", b"GGUF"), ("gguf_q8_0", None), ("gguf_bf16", b"whole")):
        (run.path / "export" / name).mkdir()
        run.result.artifacts[name] = f"export/{name}"
        if content:
            (run.path / "export" / name / "m.gguf").write_bytes(content)
    gguf_header(run.path / "export" / "gguf_bf16" / "m.gguf")
    write_report(
        compose_config("lora_sft", ["model=tiny"]), run, "trained", measured(BEFORE, 3.25), measured(AFTER, 1.75)
    )
    text = run.report.read_text("utf-8").replace("\\", "")
    assert f"{run.path}/export/gguf_f16/m.gguf can't be read: it is no GGUF file of a model, or it is cut off" in text
    assert f"{run.path}/export/gguf_q8_0: its GGUF file is not there; export it again." in text
    commands = [command for command in dict(next_commands(run)).values() if "llama-server" in command]
    assert len(commands) == 1 and "gguf_bf16" in commands[0]
    del run.result.artifacts["merged"], run.result.artifacts["adapter"]
    ours = str(how_to_use(run)[-1])
    assert "gguf_bf16/m.gguf" in ours and "gguf_f16" not in ours
    file = run.path / "export" / "gguf_f16" / "m.gguf"
    gguf_header(file, np.ones((4, 64), np.float32))
    assert "llama-quantize" in str(how_to_use(run))
    file.write_bytes(file.read_bytes()[:-64])  # cut off behind the header, which is all that the commands need
    assert "No smaller files can be made of" in str(how_to_use(run)) and "gguf_f16/m.gguf" in str(how_to_use(run)[-1])


def test_codes_of_experts_are_for_vllm_alone(tmp_path: Path) -> None:
    """Nothing says that Transformers, or a recipe of ours, loads that folder: not the report, not an error."""
    run = RunFolder(tmp_path / "run", compose_config("export", ["model=tiny"]), Found.NOTHING, None)
    for name in ("w4a16", "w4a16_transformers", "mlx"):
        (run.path / "export" / name).mkdir(parents=True)
        (run.path / "export" / name / "config.json").write_text('{"text_config": {"enable_moe_block": true}}')
        run.result.artifacts[name] = f"export/{name}"
    said, commands = map(str, how_to_use(run)[:2])
    assert "The int4 folder, with vLLM. Transformers has no place" in said and "pipeline" not in commands
    taken = str(how_to_use(run)[-1])
    assert "export/w4a16_transformers" in taken and not re.search(r"export/(w4a16|mlx)\b(?!_)", taken)
    for file in ("result.json", "manifest.json"):
        (run.path / file).write_text("{}")
    with pytest.raises(UserError, match=r"recipe=chat, evaluate and compare take .*/w4a16_transformers") as refused:
        find_source(ModelConfig(str(run.path)))
    assert "export/w4a16 " not in f"{refused.value} " and "mlx" not in str(refused.value)


def test_sizes(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    size = artifact_size(tmp_path)
    assert (size.stored, size.weights) == (3 * 5 * 4 + 7 * 2, 22)
    assert size.total == 2 + (tmp_path / "model.safetensors").stat().st_size
    save_file({"packed": np.zeros((4, 8), np.int32), "scale": np.zeros(4, np.float16)}, tmp_path / "packed.safetensors")
    size = artifact_size(tmp_path / "packed.safetensors")
    assert (size.stored, size.weights) == (4 * 8 * 4 + 8, None)
    assert size.bits_per_weight is None
    whole = np.array([4, 64], np.int64)
    packed = {"a.weight_packed": np.zeros((4, 8), np.int32), "a.weight_scale": np.zeros((4, 2), np.float16)}
    save_file({**packed, "a.weight_shape": whole, "norm": np.zeros(32, np.float16)}, tmp_path / "int4.safetensors")
    size = artifact_size(tmp_path / "int4.safetensors")
    assert (size.weights, size.bits_per_weight) == (4 * 64 + 32, 8 * (128 + 16 + 16 + 64) / 288)
    assert total_size([size, size]).bits_per_weight == size.bits_per_weight
    assert total_size([size, replace(size, weights=None)]).bits_per_weight is total_size([]).bits_per_weight is None
    writer = GGUFWriter(tmp_path / "made.gguf", "gemma3")
    writer.add_array("tokenizer.ggml.tokens", ["a" * 1000] * 50)
    writer.add_tensor("a", np.zeros((2, 18), np.uint8), raw_dtype=GGMLQuantizationType.Q4_0)
    writer.add_tensor("norm", np.zeros(64, np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    size = artifact_size(tmp_path / "made.gguf")
    assert (size.stored, size.weights) == (2 * 18 + 64 * 4, 2 * 32 + 64) and size.total > 50_000
    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 10)
    assert (artifact_size(tmp_path / "model.gguf").stored, artifact_size(tmp_path / "model.gguf").weights) == (40, None)
    for count, said in ((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (10_300_000, "10.3 MB"), (2.5e12, "2.5 TB")):
        assert bytes_text(count) == said


def test_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = reported(tmp_path)
    before, after = measured(BEFORE, 3.25, "\x1b[31m"), measured(AFTER, 1.75, "\x1b[31m")
    monkeypatch.setenv("COLUMNS", "110")
    say_end(run, before, after, ["W&B: here"])
    said = capsys.readouterr().out
    assert re.search(
        r"test exact match +50\.0% \(25\.4–74\.6\) +91\.7% \(64\.6–98\.5\) +\+41\.7 \(−1\.9 to \+73\.3\)", said
    )
    assert "test_exact_match: 6 of 12 rows became right, 1 became wrong" in said and "W&B: here" in said
    assert "report.html" in said and "\x1b[31m" not in said and "‹U+001B›" in said
    monkeypatch.setenv("COLUMNS", "70")
    say_end(run, before, after, [])
    said = capsys.readouterr().out
    assert re.search(
        r"test exact +50\.0% +91\.7% +\+41\.7 *\n +match +\(25\.4–74\.6\) +\(64\.6–98\.5\) +\(−1\.9 to \+73", said
    )
    say_end(run, Evaluation(), Evaluation(), [])
    assert re.search(r"test exact match +0\.5|test exact (match)? +50", capsys.readouterr().out)


def test_answers_can_be_read_in_80_columns() -> None:
    """No part of a text is replaced by an ellipsis, however narrow or wide the terminal."""
    call = '→ set_alarm(time="08:15", day="Monday", repeat_until_somebody_really_gets_up_in_the_morning="yes")'
    row = SampleRow(
        "Alarm at 8:15 on Monday.",
        call,
        [SampleAnswer("before", "Hello", "wrong"), SampleAnswer("after", call, "right")],
    )
    for width in (40, 80, 119, 200):
        console = Console(width=width, file=io.StringIO())
        console.print(_answers([row, row], width))
        said = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, said.splitlines())) <= width and "…" not in said
        letters = re.sub(r"[^\w]", "", said)
        if width <= 80:
            assert letters.count(re.sub(r"[^\w]", "", call)) == 4
            assert re.search(r"before +✗ Hello", said) and re.search(r"after +✓ →\s+set_alarm", said)


def test_figures_lose_no_digit_in_80_columns() -> None:
    """A table of many columns folds its cells: an interval is never cut by an ellipsis."""
    head = ["", "test exact match", "difference", "verdict", "size (bits per weight)", "prompt (answer) tokens/s"]
    cells = [FigureText("100.0%", "(80.6–100.0)"), FigureText("0", "(−15.4 to +15.4)"), "not significant (p = 1)"]
    console = Console(width=80, file=io.StringIO())
    print_figures(console, "Exported files", head, [["source", *cells, FigureText("3.51 MB", "(5.49)"), "3,382"]])
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in said and max(map(len, said.splitlines())) <= 80
    assert sorted(re.findall(r"\d", said)) == sorted(
        re.findall(r"\d", "100.0 80.6 100.0 0 15.4 15.4 1 3.51 5.49 3,382")
    )


def test_how_to_go_on(tmp_path: Path) -> None:
    """From an installed package to a served model: one command behind the run, or two for a file that isn't written."""
    run = reported(tmp_path)
    named = dict(next_commands(run))
    assert list(named) == ["chat", "API", "vLLM", "Transformers"]
    assert all(shlex.split(command) for command in named.values())
    config = run.path / "export" / "merged" / "config.json"
    config.write_text(json.dumps({"model_type": "gemma3_text"}), encoding="utf-8")
    assert "export=gguf_f16" in dict(next_commands(run))["Ollama, llama.cpp"]
    gguf = run.path / "export" / "gguf_f16"
    gguf.mkdir()
    gguf_header(gguf / "m-f16.gguf")
    run.result.artifacts["gguf_f16"] = "export/gguf_f16"
    assert dict(next_commands(run))["llama.cpp"].startswith("llama-server --jinja -m ")
    assert "Ollama, llama.cpp" not in dict(next_commands(run))
    del run.result.artifacts["merged"]
    served = dict(next_commands(run))["vLLM"]
    assert "--lora-modules" in served and "--max-lora-rank 8" in served
    run.result.artifacts.clear()
    assert next_commands(run) == []
