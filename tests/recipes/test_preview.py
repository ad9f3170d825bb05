"""`recipe=preview` as users start it: the page, plain text, the terminal, and every mistake."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small_models
from asking import refused, write
from page_of import Page
from transformers import AutoTokenizer

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.config import PreviewConfig
from gemma_tune.data.loading import load_rows
from gemma_tune.data.tokenized import KEPT
from gemma_tune.errors import UserError
from gemma_tune.models import load_weights
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import Source
from gemma_tune.run.identity import folder_of
from gemma_tune.run.paths import ASSETS
from gemma_tune.validation.schema import FIELDS

TINY = ASSETS / "tiny"
YES = " ".join(["yes"] * 3000)
SO = " ".join(["so"] * 100)
ROWS = ["data=messages", "data.train_file=rows.jsonl"]


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **more}


def write_rows(name: str, *rows: dict[str, Any]) -> Path:
    return write(name, "".join(json.dumps(row) + "\n" for row in rows))


def preview(*words: str) -> gemma_tune.RunResult:
    result = gemma_tune.run("preview", list(words))
    assert result.status == "finished" and result.recipe == "preview" and result.folder is None
    return result


# What is shown


def test_the_page_shows_what_is_trained(folder: Path) -> None:
    """Id by id and label by label, the rows that the trainer is given, in their order; the rest is counted."""
    result = preview("data.max_train_samples=120")
    cfg = compose_config("lora_sft", ["data.max_train_samples=120"])
    tokenizer = load_tokenizer(Source(str(TINY), None, None, str(TINY)))
    train, held_out = load_rows(cfg.data, tokenizer, cfg.train.max_length, cfg.seed)
    page = Page()
    assert [r["ids"] for r in page.rows] == [row.input_ids for row in train.rendered[:100]]
    assert [r["trained"] for r in page.rows] == [[i for i in row.labels if i >= 0] for row in train.rendered[:100]]
    assert result.metrics["data"] == {"training": train.counts(), "held_out": held_out.counts()}
    assert result.artifacts == {"page": str(folder / "preview.html")}
    assert list(folder.iterdir()) == [folder / "preview.html"]
    assert "The first 100 of 120 rows" in page.text


def test_figures_counted_by_hand(folder: Path) -> None:
    """Tokens by plain Transformers; trained ones as those of the answers' texts and their stop tokens alone."""
    rows = [chat(f"Question {n}?", "Yes, " * n + "it is.", "Sure?", "No.") for n in range(1, 9)]
    write_rows("rows.jsonl", *rows)
    preview(*ROWS, "preview.rows=5")
    tokenizer = AutoTokenizer.from_pretrained(TINY)

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    lengths = [len(tokenizer.apply_chat_template(r["messages"], return_dict=True)["input_ids"]) for r in rows]
    trained = [sum(tokens(r["messages"][i]["content"] + "<end_of_turn>") for i in (1, 3)) for r in rows]
    page = Page()
    assert page.tile("rows used") == "8 of 8 read"
    assert page.tile("tokens") == f"{sum(lengths):,} {sum(lengths) / 8:,.0f} per row"
    assert page.tile("trained tokens") == f"{sum(trained):,} {sum(trained) / sum(lengths):.1%} of the tokens"
    assert f"median {sorted(lengths)[3]} " in page.text and f"longest {max(lengths)} " in page.text
    assert len(page.rows) == 5
    for place, row in enumerate(page.rows):
        assert (len(row["ids"]), len(row["trained"])) == (lengths[place], trained[place])
        share = trained[place] / lengths[place]
        said = f"rows.jsonl:{place + 1} {lengths[place]} tokens {trained[place]} trained ({share:.0%})"
        assert said in " ".join(row["summary"].split())
    words = "<bos><start_of_turn>user⏎\nQuestion 1?<end_of_turn>⏎\n<start_of_turn>model⏎\nYes, it is.<end_of_turn>⏎\n"
    assert page.rows[0]["text"].startswith(words)


def test_what_became_of_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut, dropped, skipped, equal and leaked rows are named with file and line, and cut ones say what is lost."""
    long, late = chat("Hi", SO), chat(SO, "Hi")
    rows = [chat("One?", "1."), long, late, chat(" One?", "1. "), chat("Held?", "Yes."), chat("Two?", "2.")]
    write_rows("rows.jsonl", *rows, {"messages": []}, late)
    write_rows("held_out.jsonl", chat("Other?", "No."), chat("Held?", "Yes."))
    more = ["data.validation_file=held_out.jsonl", "data.on_bad_row=skip", "train.max_length=40"]
    preview(*ROWS, *more, "preview.rows_shown=7")
    page, here = Page(), f"{folder}/rows.jsonl"
    for name, value in {
        "rows used": "5 of 7 read", "rows cut": "3", "rows dropped": "2", "bad rows skipped": "1", "duplicates": "2",
        "leaked": "1",
    }.items():  # fmt: skip
        assert page.tile(name).startswith(value), name
    assert page.listed("were dropped") == [f"{here}:3", f"{here}:8"]
    assert page.listed("equal to an earlier one") == [f"{here}:4", f"{here}:8"]
    assert page.listed("also in the validation or test set") == [f"{here}:5"]
    (skipped,) = page.listed("skipped as bad")
    assert skipped.startswith(f"{here}:7: ")
    summaries = [" ".join(row["summary"].split()) for row in page.rows]
    out = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    whole = [len(tokenizer.apply_chat_template(r["messages"], return_dict=True)["input_ids"]) for r in (long, late)]
    for place, badges in {
        1: [f"cut: 40 of {whole[0]} tokens"],
        2: [f"cut: 40 of {whole[1]} tokens", "dropped: no trained token left"],
        3: [f"equal to {here}:1"],
        4: [f"leaked: also {folder}/held_out.jsonl:2"],
        6: [f"cut: 40 of {whole[1]} tokens", "dropped: no trained token left", f"equal to {here}:3"],
    }.items():
        assert all(badge in summaries[place] for badge in badges), summaries[place]
        line = next(line for line in out.splitlines() if line.startswith(f"{place + 1}/7 "))
        assert line.split("  ")[3:] == [f"[{badge}]" for badge in badges]
    assert "[" not in out.splitlines()[0] and all(b not in summaries[0] for b in ("cut", "equal", "leaked"))
    assert [len(row["ids"]) for row in page.rows[1:3]] == [40, 40]
    assert page.rows[2]["trained"] == []
    lost = len(tokenizer(SO + "<end_of_turn>", add_special_tokens=False)["input_ids"])
    lost -= len(page.rows[1]["trained"])
    assert f"{whole[0] - 40} tokens are cut off, {lost} of them trained" in page.rows[1]["text"]
    assert f"longest {max(whole)} " in page.text and f"longest {max(whole)}." in out


def test_running_text_and_tools(folder: Path) -> None:
    """Every token of running text but the first is trained; calls and results stand as the form has them."""
    call = {"type": "function", "function": {"name": "set_light", "arguments": {"on": True}}}
    write_rows(
        "chats.jsonl",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "On!"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "fine"},
                {"role": "assistant", "content": "Done."},
            ],
            "tools": [{"type": "function", "function": {"name": "set_light", "parameters": {"type": "object"}}}],
        },
    )
    write_rows("texts.jsonl", {"text": "A text.\nOf two lines."})
    preview("data=auto", "data.train_files.a=chats.jsonl", "data.train_files.b=texts.jsonl")
    talk, text = Page().rows
    assert text["text"] == "<bos>A text.⏎\nOf two lines.<eos>" and text["trained"] == text["ids"][1:]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    trained = tokenizer.decode(talk["trained"])
    assert trained.startswith('{"name": "set_light"') and trained.endswith("Done.<end_of_turn>")
    assert "Be brief." in talk["text"] and "fine" in talk["text"] and "fine" not in trained


def test_what_rows_hold_stays_text(folder: Path) -> None:
    """Scripts, tags, quotes and control characters, in rows and in the names of files."""
    evil = "<script>alert('x')</script></pre></details><img src=x onerror=alert(1)>&amp;\"'\x1b]0;x\x07"
    write_rows("a&<b>.jsonl", chat(evil, evil))
    preview("data=messages", "data.train_file=a&<b>.jsonl")
    page = Page()
    seen = evil.replace("\x1b", "‹U+001B›").replace("\x07", "‹U+0007›")
    assert page.rows[0]["text"].count(seen) == 2
    assert "a&<b>.jsonl:1" in page.rows[0]["summary"]
    assert not {"script", "img", "b>", "link", "iframe"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "href", "onerror", "onclick"} & attributes.keys()
    assert "default-src 'none'" in page.source and "url(" not in page.source and not re.search("https?:", page.source)


def test_a_long_row_is_shown_at_its_ends(folder: Path) -> None:
    """A browser must draw all rows; figures are still those of the whole row."""
    write_rows("rows.jsonl", chat(" ".join(["no"] * 3000), YES))
    preview(*ROWS, "train.max_length=20000", "preview.rows_shown=0")
    (row,) = Page().rows
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    trained = len(tokenizer(YES, add_special_tokens=False)["input_ids"]) + 1
    assert f"{trained:,} trained" in row["summary"]
    assert len(row["ids"]) == 4000
    hidden = re.search(r"([\d,]+) tokens are left out here, ([\d,]+) of them trained", row["text"])
    assert hidden
    left, of_them = (int(n.replace(",", "")) for n in hidden.groups())
    assert f"{left + 4000:,} tokens" in row["summary"] and of_them + len(row["trained"]) == trained


def test_streamed_rows(folder: Path) -> None:
    """The first of them; what isn't looked for isn't said to be none."""
    write_rows("rows.jsonl", *(chat(f"{n}?", "so " * 60 if n == 3 else f"{n}.") for n in range(250)))
    words = ["data.streaming=true", "train.max_steps=3", "train.max_length=50", "preview.rows=1000"]
    result = preview(*ROWS, *words)
    page = Page()
    assert result.metrics["data"]["training"]["rows_read"] == len(page.rows) == 200
    assert page.tile("duplicates").startswith("not looked for") and page.tile("rows cut").startswith("1 ")
    assert "these figures are those of the first 200 rows" in page.text and "The first 200 rows" in page.text
    assert "cut: 50 of" in page.rows[3]["summary"]


def test_no_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of weights may hold any numbers; an adapter's folder will do, too."""
    shutil.copytree(TINY, "model")
    small_models.save_empty_weights(Path("model"))
    monkeypatch.setattr(load_weights, "load_base", None)
    write_rows("rows.jsonl", chat("One?", "1."))
    preview(*ROWS, "model.model_name_or_path=model")
    assert len(Page().rows) == 1


# Without a terminal


def test_plain_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Marks in place of colours, the counts, and where the page is; nobody is waited for."""
    write_rows("rows.jsonl", *(chat(f"{n}?", f"It is\n{n}.") for n in range(5)))
    preview(*ROWS, "preview.rows_shown=2")
    out = capsys.readouterr().out
    start = f"1/5  {folder}/rows.jsonl:1  "
    assert out.lstrip("\n").startswith(start)
    assert "<start_of_turn>user⏎\n0?<end_of_turn>⏎\n<start_of_turn>model⏎\n⟦It is⏎\n0.<end_of_turn>⟧⏎\n" in out
    assert out.count("⟦") == out.count("⟧") == 2 and "\x1b" not in out
    assert re.search(r"rows read +│ +5 │", out) and f"Page: {folder}/preview.html\n" in out
    preview(*ROWS, "preview.rows_shown=0", "preview.output_file=null")
    out = capsys.readouterr().out
    assert "⟦" not in out and "Page" not in out


def test_dry_run_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = gemma_tune.run("preview", ["dry_run=true", "data.max_train_samples=4"])
    assert result.status == "dry_run" and result.metrics["data"]["training"]["rows_read"] == 4
    out = capsys.readouterr().out
    assert "\n  output_file: preview.html\n" in out and "dry_run=true." in out and "⟦" not in out
    assert list(folder.iterdir()) == []


# The page's file


def test_only_pages_are_replaced(folder: Path) -> None:
    """An earlier page without asking; anything else with overwrite=true; nothing half."""
    write_rows("rows.jsonl", chat("One?", "1."))
    words = [*ROWS, "preview.output_file=page.html"]
    write("page.html", "<p>precious</p>\n")
    with pytest.raises(UserError, match=r"page\.html: this file is there already.*overwrite=true"):
        preview(*words)
    assert Path("page.html").read_text(encoding="utf-8") == "<p>precious</p>\n"
    preview(*words, "overwrite=true")
    first = Page("page.html").rows
    write_rows("rows.jsonl", chat("Two?", "2."))
    preview(*words)
    assert Page("page.html").rows != first
    assert sorted(p.name for p in folder.iterdir()) == ["page.html", "rows.jsonl"]


MISTAKES = {
    "a rate": (["train.learning_rate=1e-3"], "train.learning_rate has no effect with recipe=preview; leave it out."),
    "an option of the trainer": (["train.extra.neftune_noise_alpha=5"], "train.extra has no effect with recipe=prev"),
    "steps without a stream": (["train.max_steps=5"], "train.max_steps has no effect with recipe=preview"),
    "a prompt": (["chat.prompt=Hello"], "chat.prompt has no effect with recipe=preview"),
    "an adapter": (["adapter=lora"], "adapter has no effect with recipe=preview"),
    "a run folder": (["output_dir=x"], "output_dir has no effect with recipe=preview"),
    "no rows": (["preview.rows=0"], "preview.rows must be at least 1"),
    "a typo": (["preview.output_fil=x.html"], "Did you mean preview.output_file?"),
    "a file of another kind": (["preview.output_file=x.pdf"], "preview.output_file=x.pdf: the page is an HTML file"),
    "no folder": (["preview.output_file=nix/x.html"], "there is no folder nix; make it first"),
    "a folder": (["preview.output_file=x.html"], "preview.output_file=x.html: this is a folder"),
    "a file that is read": (
        [
            "data=text",
            "data.format=r.py:read",
            "data.train_file=y.html",
            "preview.output_file=y.html",
            "overwrite=true",
        ],
        "y.html is a file that this run reads",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(folder: Path, name: str) -> None:
    words, expected = MISTAKES[name]
    Path("x.html").mkdir()
    write("y.html", "<p>a</p>")
    write("r.py", "def read(path, data):\n    yield from ()\n")
    with pytest.raises(UserError) as caught:
        compose_config("preview", words)
    assert len(caught.value.problems) == 1 and expected in str(caught.value), str(caught.value)


@pytest.mark.slow
def test_mistakes_on_the_command_line(folder: Path) -> None:
    """All at once, and a bad row before torch is imported."""
    message = refused("recipe=preview", "train.optim=adamw_bnb_8bit", "preview.output_file=x.txt", "chat=sampled")
    assert message.startswith("gemma_tune: 3 problems:")
    write("rows.jsonl", '{"messages": [{"role": "user", "content": "Hi"}]}\n')
    assert "rows.jsonl:1: there is no assistant message" in refused("recipe=preview", *ROWS)


def test_keys_of_other_recipes() -> None:
    """They are refused there, and change no run's folder."""
    for recipe, words in (("qlora_sft", []), ("chat", [])):
        with pytest.raises(UserError, match=f"preview.rows has no effect with recipe={recipe}; use recipe=preview"):
            compose_config(recipe, [*words, "preview.rows=5"])
    cfg = compose_config("lora_sft")
    before = folder_of(cfg)
    cfg.preview = PreviewConfig(rows=7)
    assert folder_of(cfg) == before


def test_rows_kept_are_enough() -> None:
    """What the page and the terminal may show is kept of every run's rows."""
    assert all(FIELDS[f"preview.{key}"][0].metadata["at_most"] == KEPT for key in ("rows", "rows_shown"))


# The terminal


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.slow
def test_in_a_terminal(folder: Path) -> None:
    """The whole command behind a pseudo-terminal, key by key."""
    import pty

    write_rows("rows.jsonl", *(chat(f"Number {n}?", f"It is {n}.") for n in range(1, 31)))
    terminal, end = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "gemma_tune", "recipe=preview", *ROWS],
        stdin=end,
        stdout=end,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color", "COLUMNS": "200"},
    )
    os.close(end)

    def answer(key: bytes) -> str:
        """What is said until the next prompt, once the key was sent."""
        os.write(terminal, key)
        seen, until = b"", time.monotonic() + 120
        while not seen.endswith(b"help)> "):
            assert time.monotonic() < until and child.poll() is None, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 4096)
        return seen.decode()

    try:
        first = answer(b"")
        assert "Number 1?" in first and f"Page: {folder}/preview.html" in first
        trained = re.search(r"\x1b\[1;97;48;5;22mIt is 1\.", first)
        assert trained and re.search(r"\x1b\[2mNumber 1\?", first) and "⟦" not in first
        assert "\x1b[1;4;97;48;5;22m<end_of_turn>" in first  # special tokens are underlined
        for key, shown, row in (
            (b"\n", "Number 2?", 2), (b"b\n", "Number 1?", 1), (b"b\n", "rows 1 to 30", 1), (b"17\n", "Number 17?", 17),
            (b"\n", "Number 18?", 18), (b"?\n", "the row before", 18), (b"x\n", "there is no key x", 18),
            (b"31\n", "rows 1 to 30", 18), (b"30\n", "Number 30?", 30), (b"\n", "rows 1 to 30", 30),
        ):  # fmt: skip
            said = answer(key)
            assert shown in said and f"row {row} of 30" in said, (key, said)
        os.write(terminal, b"q\n")
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
        os.close(terminal)
    assert child.returncode == 0 and b"Traceback" not in err, err.decode()
    assert sorted(p.name for p in folder.iterdir()) == ["preview.html", "rows.jsonl"]
