"""Ollama's Modelfile of every chat form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gemma_tune.chat import FORMS, served_template
from gemma_tune.export.ollama import modelfile
from gemma_tune.run.paths import ASSETS

TINY = ASSETS / "tiny"


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def test_modelfile(model: Any, tokenizer: Any) -> None:
    text = modelfile("tiny.gguf", tokenizer, model.generation_config, 2048)
    assert text.startswith('FROM ./tiny.gguf\nTEMPLATE """')
    assert 'PARAMETER stop "<end_of_turn>"' in text and "PARAMETER num_ctx 2048" in text
    assert "PARAMETER temperature 0\n" in text
    assert "PARAMETER num_ctx 32768\n" in modelfile("tiny.gguf", tokenizer, model.generation_config, 262_144)
    sampled = GenerationConfig(eos_token_id=1, do_sample=True, top_k=64, top_p=0.95)
    assert "PARAMETER top_k 64\nPARAMETER top_p 0.95\n" in modelfile("x", tokenizer, sampled, 8)


def test_modelfiles_of_other_forms(model: Any) -> None:
    own = AutoTokenizer.from_pretrained(TINY)
    own.chat_template = None
    assert "TEMPLATE {{ .Prompt }}\n" in modelfile("x", own, model.generation_config, 8)
    for name, form in FORMS.items():
        own.chat_template = served_template(name)
        text = modelfile("x", own, model.generation_config, 8)
        if form.file in ("gemma", "gemma3"):
            assert 'TEMPLATE """' in text and "RENDERER" not in text
        else:
            assert 'TEMPLATE """' not in text and "\nTEMPLATE {{ .Prompt }}\nRENDERER " in text
        assert ("newest template" in text) == (form.file == "gemma4" and form.revision < 5)
    for name, lines in (
        ("functiongemma", "RENDERER functiongemma\nPARSER functiongemma\n"),
        ("gemma4", "RENDERER gemma4-small\nPARSER gemma4\n"),
        ("gemma4_large_v4", "RENDERER gemma4-large\nPARSER gemma4\n"),
    ):
        own.chat_template = served_template(name)
        assert lines in modelfile("x", own, model.generation_config, 8)


@pytest.mark.parametrize(("name", "closed"), [("gemma4", ""), ("gemma4_large", "<|channel>thought\n<channel|>")])
def test_ollamas_renderer_of_gemma4(name: str, closed: str) -> None:
    """Our template writes what Ollama's code says, https://github.com/ollama/ollama, model/renderers/gemma4.go."""
    own = AutoTokenizer.from_pretrained(TINY)
    own.chat_template = served_template(name)
    city = {"type": "string", "description": "Where"}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "now", "description": "Time", "parameters": parameters}}]
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "now", "arguments": {"city": "Rome", "days": [1, None]}},
    }
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Time? "},
        {"role": "assistant", "content": "", "reasoning_content": "Look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    q = '<|"|>'
    declared = (
        f"<|tool>declaration:now{{description:{q}Time{q},parameters:{{properties:{{city:{{description:{q}Where{q},"
        f"type:{q}STRING{q}}}}},required:[{q}city{q}],type:{q}OBJECT{q}}}}}<tool|>"
    )
    asked = f"Be brief.{declared}<turn|>\n<|turn>user\nTime?<turn|>\n<|turn>model\n"
    called = f"<|tool_call>call:now{{city:{q}Rome{q},days:[1,null]}}<tool_call|>"
    answered = f"<|tool_response>response:now{{value:{q}noon{q}}}<tool_response|>"

    def prompt(messages: list[dict[str, Any]], think: bool, tools: Any) -> Any:
        return own.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=think
        )

    assert prompt(talk[1:2], False, None) == f"<bos><|turn>user\nTime?<turn|>\n<|turn>model\n{closed}"
    assert prompt(talk[:2], False, tools) == f"<bos><|turn>system\n{asked}{closed}"
    assert prompt(talk[:2], True, tools) == f"<bos><|turn>system\n<|think|>\n{asked}"
    history = f"{asked}<|channel>thought\nLook.\n<channel|>{called}{answered}"
    assert prompt(talk, False, tools) == f"<bos><|turn>system\n{history}"
    assert prompt(talk, True, tools) == f"<bos><|turn>system\n<|think|>\n{history}<|channel>thought\n"
