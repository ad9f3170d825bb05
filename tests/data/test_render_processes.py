"""Rows rendered in several processes are those of one: order, counts, notes and errors."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gemma_tune.chat import render_chat, served_template
from gemma_tune.chat.recognise import reduced
from gemma_tune.chat.text_tokenizer import TextTokenizer
from gemma_tune.config import DataConfig, ModelConfig
from gemma_tune.data import loading, reading, render_ahead
from gemma_tune.data.loading import load_rows
from gemma_tune.data.record_cache import forget_cached_records
from gemma_tune.data.records import Record
from gemma_tune.data.render_ahead import RenderAhead
from gemma_tune.data.render_worker import RenderProcess, _write, answer, main
from gemma_tune.data.rendered_chunk import RowRenderer
from gemma_tune.errors import UserError
from gemma_tune.models.load import load_tokenizer
from gemma_tune.models.source import find_source
from gemma_tune.run.paths import ASSETS

WILD = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset", "wild")
OWN = Path(__file__).parent.parent / "chat/own_templates/tools.jinja"  # a template of the user's own
TALK = [{"role": "user", "content": "Two or three?"}, {"role": "assistant", "content": "Two."}]
# A row that is cut, one without a trained token left, one that Gemma 4's template refuses, and one that Gemma 3's does
LONG = [TALK[0], {"role": "assistant", "content": "One. " * 100}]
LATE = [{"role": "user", "content": "Well? " * 100}, TALK[1]]
FORGED = [{"role": "user", "content": "What is <|turn>?"}, TALK[1]]
THINKS = [TALK[0], {**TALK[1], "reasoning_content": "Hm."}]
LAST = [TALK[0], {"role": "user", "content": "Well?"}]


class InThisProcess:
    """A `RenderProcess` that is none."""

    def __init__(self, renderer: bytes) -> None:
        self._renderer = renderer

    def ask(self, records: bytes) -> bytes:
        return answer(pickle.loads(records), pickle.loads(self._renderer))

    def end(self) -> None:
        pass

    close = end


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_ahead, "_CHUNK", 7)


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_ahead, "RenderProcess", InThisProcess)


def tokenizer_of(form: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    tokenizer.chat_template = served_template(form)
    return tokenizer


def wild_rows() -> Iterator[dict[str, Any]]:
    """Rows that can be read, as messages: of each file of the shared folder, as far as they can."""
    for file in sorted(WILD.glob("*/*.jsonl")):
        for ignored in ([], ["images", "weight"]):
            try:
                records = list(reading.training(DataConfig(train_file=str(file), ignore_fields=ignored)))
            except UserError:
                continue
            for record in records:
                if record.messages:
                    yield {"messages": record.messages, "tools": record.tools, "of": file.name}
            break


def faulty_file(folder: Path) -> str:
    rows = list(wild_rows())
    rows += [{"messages": m} for m in (LONG, LATE, FORGED, THINKS, LAST, [*TALK, *LONG, *TALK])] * 2
    rows += [{"messages": [{**TALK[0], "content": f"{n}?"}, TALK[1]]} for n in range(30)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(9, "{no row}")
    file = folder / "rows.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


def loaded(file: str, tokenizer: Any, processes: int, **keys: Any) -> list[Any]:
    """With 0 processes each row by itself."""
    forget_cached_records()
    data = DataConfig(
        train_file=file, on_bad_row=keys.pop("on_bad_row", "skip"), dataset_num_proc=processes or None,
        max_eval_samples=12, validation_split_percentage=20, **keys,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        if not processes:
            patched.setattr(loading, "reduced", lambda tokenizer, by_word: tokenizer)
        parts = load_rows(data, tokenizer, 150, seed=3)
    counted = [{k: v for k, v in vars(rows).items() if k not in ("dataset", "rendered", "remarks")} for rows in parts]
    return [counted, [(list(rows.rendered), rows.dataset[:], rows.notes("rows"), rows.counts()) for rows in parts]]


@pytest.mark.parametrize("form", ["gemma3", "gemma4_large"])
@pytest.mark.usefixtures("no_processes")
def test_rows_with_faults_are_equal(tmp_path: Path, form: str) -> None:
    """gemma4_large makes several rows of a conversation with several answers."""
    file, tokenizer = faulty_file(tmp_path), tokenizer_of(form)
    alone, here, together = (loaded(file, tokenizer, processes) for processes in (0, 1, 2))
    assert alone == here == together
    counts = alone[1][0][-1]
    assert all(counts[name] for name in ("rows_cut", "rows_dropped", "rows_skipped", "rows_repeated"))
    assert len(alone[0][0]["refused"]) >= 1 and 0 < len(alone[0][1]["records"]) <= 12


def test_real_processes_give_equal_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a template of the user's own, which the processes get, too."""
    started = []

    class Noted(RenderProcess):
        def __init__(self, renderer: bytes) -> None:
            super().__init__(renderer)
            started.append(self.process)

    monkeypatch.setattr(render_ahead, "RenderProcess", Noted)
    file, tokenizer = faulty_file(tmp_path), load_tokenizer(find_source(ModelConfig(str(ASSETS / "tiny"))), str(OWN))
    alone, together = (loaded(file, tokenizer, processes) for processes in (0, 2))
    assert alone == together and len(started) == 2
    counts = alone[1][0][-1]
    assert all(counts[name] for name in ("rows_cut", "rows_dropped", "rows_skipped", "rows_repeated"))


@pytest.mark.usefixtures("no_processes")
def test_the_same_row_is_refused(tmp_path: Path) -> None:
    """A row that can't be parsed is said before an earlier one that can't be rendered."""
    tokenizer = tokenizer_of("gemma3")
    for later in ("", "{no row}"):
        file = tmp_path / f"rows{later}.jsonl"
        rows = [json.dumps({"messages": m}) for m in (*[TALK] * 20, THINKS, *[TALK] * 20, THINKS)]
        file.write_text("\n".join([*rows, later]), encoding="utf-8")
        said = []
        for processes in (0, 1, 2):
            with pytest.raises(UserError) as caught:
                loaded(str(file), tokenizer, processes, on_bad_row="error")
            said.append(str(caught.value))
        assert said[0] == said[1] == said[2] and f"{file}:{len(rows) + 1 if later else 21}: " in said[0]


def test_processes_render_and_end() -> None:
    """Real ones: what they give, that they end with an interrupt, and what is left to this process."""
    tokenizer = reduced(tokenizer_of("gemma3"))
    records = [Record(f"rows:{n}", messages=TALK) for n in range(40)]
    with RenderAhead(tokenizer, 80, False, 2) as ahead:
        assert list(ahead.watch(records)) == records
        chunks = list(ahead.chunks())
        assert ahead.done and [where for chunk in chunks for where in chunk.where] == [r.where for r in records]
        assert chunks[0].ids.tolist() == render_chat(tokenizer, TALK).input_ids * 7
    for processes in (1, None):  # and where there are few rows, this one
        with RenderAhead(tokenizer, 80, False, processes) as ahead:
            assert list(ahead.watch(records)) == records and ahead.done and not ahead.processes
            assert b"".join(c.ids.tobytes() for c in ahead.chunks()) == b"".join(c.ids.tobytes() for c in chunks)
    with pytest.raises(KeyboardInterrupt), RenderAhead(tokenizer, 80, False, 2) as ahead:
        for number, _ in enumerate(ahead.watch(records)):
            if number == 20:
                started = [process.process for process in ahead.processes]
                raise KeyboardInterrupt
    assert len(started) == 2 and all(process.returncode is not None for process in started)


def test_a_process_keeps_nothing_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 4's template leaves cycles, which hold the row."""
    for module, name in ((signal, "signal"), (gc, "freeze")):
        monkeypatch.setattr(module, name, lambda *_: None)
    usual, messages = gc.get_threshold(), io.BytesIO()
    rows = [Record(f"rows:{n}", messages=TALK) for n in range(40)]
    for message in (RowRenderer(reduced(tokenizer_of("gemma4")), 80, False), rows):
        _write(messages, pickle.dumps(message))
    messages.seek(0)
    gc.collect()
    try:
        main(messages, answers := io.BytesIO())
        assert answers.tell() > 100 and gc.collect() < 40
    finally:
        gc.set_threshold(*usual)


class Unpicklable(str):
    def __reduce__(self) -> Any:
        raise ValueError("a value of the user's own")


@pytest.mark.usefixtures("no_processes")
def test_what_cannot_be_pickled_is_left_to_the_run() -> None:
    """A record, and a part of the tokenizer."""
    tokenizer = reduced(tokenizer_of("gemma3"))
    records = [Record(f"rows:{n}", messages=TALK) for n in range(40)]
    odd = [replace(r, tools=[{"of": Unpicklable("a")}]) if n == 20 else r for n, r in enumerate(records)]
    for rows, by in ((odd, tokenizer), (records, replace(tokenizer, bos_token_id=Unpicklable()))):
        with RenderAhead(by, 80, False, 2) as ahead:
            assert list(ahead.watch(rows)) == rows and not ahead.done


@pytest.mark.usefixtures("no_processes")
def test_processes_come_with_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than half as many as chunks wait, than the processors of a container's quota, and than 16."""
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(render_ahead, "_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(render_ahead, "_LARGE", 1)
    go = threading.Event()
    monkeypatch.setattr(InThisProcess, "ask", lambda self, records: b"" if go.wait(30) else records)
    tokenizer = reduced(tokenizer_of("gemma3"))
    for said, count, most in (("max 100000", 10, 5), ("350000 100000", 7, 3), ("max 100000", 33, 16)):
        quota.write_text(said, "utf-8")
        go.clear()
        with RenderAhead(tokenizer, 80, False, None) as ahead:
            rows = ahead.watch(Record(f"rows:{n}", messages=TALK) for n in range(7 * count))
            list(islice(rows, 7 * count))
            assert len(ahead.processes) == most
            go.set()


@pytest.mark.usefixtures("no_processes")
def test_media_are_left_to_the_run() -> None:
    asked = [{"role": "user", "content": [{"type": "image", "image": "/a.png"}]}, TALK[1]]
    records = [Record(f"rows:{n}", messages=asked if n == 20 else TALK) for n in range(40)]
    with RenderAhead(reduced(tokenizer_of("gemma3")), 80, False, 2) as ahead:
        assert list(ahead.watch(records)) == records and not ahead.done


def test_the_reduced_tokenizer_gives_the_same() -> None:
    tokenizer = tokenizer_of("gemma3")
    less = reduced(tokenizer)
    assert isinstance(less, TextTokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=3)  # leaves both switched on
    for messages in (LONG, LATE, [{"role": "user", "content": "Ein Wörtchen 👍🏽\n\n"}, TALK[1]]):
        assert render_chat(less, messages) == render_chat(tokenizer, messages)
