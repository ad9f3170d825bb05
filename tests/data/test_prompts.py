"""Prompts of `chat.prompts_file` are read as rows are: each field is used, listed, or refused with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemma_tune.config import ChatConfig
from gemma_tune.data.prompts import prompt_remarks, read_chat_prompts
from gemma_tune.data.records import Record
from gemma_tune.errors import UserError
from tests.data.row_files import write

ASK, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
SYSTEM, AND = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "And?"}
MEDIA = (
    "holds what isn't read here: images, sound and video stand in the user's messages of conversations. Take it out."
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def prompt_of(folder: Path, row: dict[str, Any]) -> tuple[Record, str]:
    chat = ChatConfig(prompts_file=write(folder / "p.jsonl", row))
    (record,) = records = read_chat_prompts(chat)
    return record, "\n".join(prompt_remarks(chat, records))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Why?", "system": "Be brief."}, [SYSTEM, ASK]),
        ({"prompt": "And?", "history": [["Why?", "So."]]}, [ASK, SAID, AND]),
        ({"prompt": "Why?", "system_prompt": "Be brief.", "completion": "So."}, [SYSTEM, ASK]),
        ({"prompt": [SYSTEM, ASK]}, [SYSTEM, ASK]),
        ({"prompt": [ASK, SAID, AND]}, [ASK, {**SAID, "weight": 0}, AND]),
        ({"prompt": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, [ASK]),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, [ASK]),
        ({"contents": [{"role": "user", "parts": [{"text": "Why?"}]}], "systemInstruction": "Be brief."},
         [SYSTEM, ASK]),
        ({"dialog": [ASK]}, [ASK]),
        ({"prompt": "Why?", "messages": [], "completion": ["a", "b"]}, [ASK]),
        ({"instruction": "Why?"}, [ASK]),
        ({"instruction": "Why?", "output": ""}, [ASK]),
        ({"messages": None, "conversations": None, "prompt": "Why?", "system": None}, [ASK]),
        ({"messages": [ASK], "system": "Be brief."}, [SYSTEM, ASK]),
        ({"messages": [AND], "history": [ASK, SAID]}, [ASK, SAID, AND]),
        ({"messages": [ASK, {**SAID, "thinking": "Hm."}, AND]}, [ASK, {**SAID, "reasoning_content": "Hm."}, AND]),
        ({"instruction": "Why?", "output": "So.", "system": "Be brief."}, [SYSTEM, ASK]),
        ({"input": {"messages": [ASK]}, "preferred_output": [SAID], "non_preferred_output": [AND | {"role": "model"}]},
         [ASK]),
    ],
)  # fmt: skip
def test_what_stands_beside_a_prompt_is_used(tmp_path: Path, row: dict[str, Any], messages: list[Any]) -> None:
    record, remarks = prompt_of(tmp_path, row)
    assert record.messages == messages and not remarks


@pytest.mark.parametrize("name", ["tools", "functions"])
@pytest.mark.parametrize("form", [{"prompt": "Why?"}, {"messages": [ASK]}, {"conversations": [ASK]}])
def test_tools_beside_a_prompt(tmp_path: Path, name: str, form: dict[str, Any]) -> None:
    record, remarks = prompt_of(tmp_path, {**form, name: [TOOL if name == "tools" else TOOL["function"]]})
    assert record.tools == [TOOL] and not remarks


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"prompt": "Why?", "source": "x", "category": "y"}, "source, category"),
        ({"prompt": "Why?", "label": False, "weight": 0, "loss_mask": [0]}, "label, weight, loss_mask"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "chosen, rejected"),
        (
            {"messages": [ASK, {**SAID, "weight": 0, "label": False, "mask": 1}]},
            "messages.weight, messages.label, messages.mask",
        ),
        ({"messages": [{**ASK, "id": 3}], "prompt": "p"}, "messages.id, prompt"),
        ({"prompt": "Why?", "reasoning_content": "Hm."}, "reasoning_content"),
    ],
)
def test_what_is_not_used_is_listed(tmp_path: Path, row: dict[str, Any], unused: str) -> None:
    record, remarks = prompt_of(tmp_path, row)
    assert record.messages == [ASK]
    assert remarks == f"prompts: not used of {tmp_path}/p.jsonl: {unused}: 1 row"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi", "images": ["/a.jpg"]}, "the field 'images.0': /a.jpg: there is no such file. Take it out."),
        ({"prompt": "Hi", "audio": "/no/a.wav"}, "the field 'audio': /no/a.wav: there is no such file. Take it out."),
        ({"messages": [{**ASK, "image": "/no/a"}]}, "message 1: the field 'messages.image': /no/a: there is no such "
                                                    "file. Take it out."),
        ({"messages": [ASK], "pixel_values": ["a"]}, f"the field 'pixel_values' {MEDIA}"),
        ({"question": "Hi"}, "there is no field 'messages' or 'prompt'; found: question. Name the field of the "
                             "question `prompt`, or that of the conversation `messages`."),
        ({"prompt": "Hi", "history": "x"}, "the field 'history' isn't a list of pairs of texts, or of messages."),
        ({"messages": [SYSTEM, ASK], "system": "Other."}, "the field 'system' and the first message are two system "
                                                          "texts; keep one."),
        ({"prompt": [SYSTEM]}, "the conversation has nothing to answer: no message of the user's."),
        ({"prompt": ["Hi"]}, "the field 'prompt' is neither a text nor a list of messages."),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        prompt_of(tmp_path, row)
    assert str(caught.value) == f"{tmp_path}/p.jsonl:1: {said}"
