"""How each artifact of a run is used: commands and code to copy."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_tune.chat import form_of
from gemma_tune.chat.response import vllm_tool_parser
from gemma_tune.chat.translation import greeting
from gemma_tune.engines.vllm_server import serve_words, unservable
from gemma_tune.errors import UserError
from gemma_tune.media.stored import only_in_calls
from gemma_tune.models.chat_template import translates_in
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.folders import ADAPTER_VLLM, EXPORTED, TOWERS_FILE, not_loaded, read_adapter_config
from gemma_tune.models.gguf_header import image_tokens, read_gguf_header
from gemma_tune.models.source import Source
from gemma_tune.models.towers.image_attention import STORED
from gemma_tune.page.blocks import Block, Code, Text
from gemma_tune.report.k_quants import k_quants
from gemma_tune.run.existing import image_attention_of, images_kwargs_of
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ON_GRID, PLAN, gguf_models, mmproj_beside
from gemma_tune.untrusted import read_object

# Files of a model in no quantization format.
_WIDE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "8 bit"}

_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": {content}}}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""

_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = {folder!r}
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto")  # the base, with the adapter on it
tokenizer = AutoTokenizer.from_pretrained(folder)"""
_WITHOUT_TOWERS = """\
# Text only: PEFT doesn't load the towers that were trained beside it ({towers}). For images load the merged model.
"""

_ATTENTION = """
# The base attends to images otherwise than this adapter was trained (model.image_attention={attention})
model.config.get_text_config().use_bidirectional_attention = {stored!r}"""

_PROMPTS = "data=auto data.prompts_only=true data.train_file=PROMPTS data.test_files.test=HELD_OUT_PROMPTS"
_REWARD_MODEL = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = {folder!r}
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = [{{"role": "user", "content": "Hello!"}}, {{"role": "assistant", "content": "Hello there."}}]
# The score is read at the answer's stop token, so the template's text after it is removed
text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip()
print(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item())"""


def use_commands(name: str, place: Path) -> list[tuple[str, str]]:
    """Engine and command for an exported format, to be copied; nothing for what isn't served, or is `unreadable`.

    Args:
        name: The format: `gguf`, `w4a16`, `merged`, …
        place: Its folder.
    """
    if name in ("adapter", ADAPTER_VLLM):
        return _vllm_adapter(place)
    if unreadable(name, place):
        return []
    if name == "gguf_lora":
        adapter = shlex.quote(str(gguf_models(place)[0]))
        return [("llama.cpp", f"llama-server --jinja -m BASE-f16.gguf --lora {adapter}")]
    if name.startswith("gguf"):
        file = gguf_models(place)[0]
        model, modelfile = shlex.quote(file.stem), shlex.quote(str(place / "Modelfile"))
        ollama = ("Ollama", f"ollama create {model} -f {modelfile} && ollama run {model}")
        # Else it asks each Gemma 4 to think, whatever it was tuned with
        quiet = "--reasoning-budget 0 " if read_gguf_header(file).architecture == "gemma4" else ""
        llama_cpp = ("llama.cpp", f"llama-server --jinja {quiet}-m {shlex.quote(str(file))}{_towers(file)}")
        return [ollama, llama_cpp] if (place / "Modelfile").is_file() else [llama_cpp]
    if name == "mlx":
        words = ["mlx_lm.chat", "--model", str(place)]
        return [("mlx-lm", shlex.join(words))]
    if name in ("w4a16", "w4a16_transformers", "merged", "phone"):
        chat = json.dumps([{"role": "user", "content": greeting(translates_in(place))}])
        run = f'print(pipeline("text-generation", {json.dumps(str(place))})({chat}))'
        transformers = f"python -c {shlex.quote(f'from transformers import pipeline; {run}')}"
        images = tuple(only_in_calls(_images_kwargs(place)).items())
        source = Source(str(place), None, None, str(place), images_kwargs=images)
        served = shlex.join(serve_words(source, "", _tool_parser(place)))
        for_vllm = name not in ("w4a16_transformers", "phone")  # the first is like w4a16, but for the experts
        for_transformers = not not_loaded(place)
        return [("vLLM", served)] * for_vllm + [("Transformers", transformers)] * for_transformers
    return []


def unreadable(name: str, place: Path) -> str | None:
    """Why a format has no command although it was exported: its GGUF file is gone, or can't be read; else None.

    Args:
        name: The format.
        place: Its folder.
    """
    if not name.startswith("gguf"):
        return None
    file = next(iter(gguf_models(place)), None)
    if file is None:
        return f"{place}: its GGUF file is not there; export it again."
    if name == "gguf_lora":
        return None
    try:
        read_gguf_header(file)
    except UserError:
        return f"{file} can't be read: it is no GGUF file of a model, or it is cut off; export it again."
    return None


def _towers(file: Path) -> str:
    """What llama-server is told of the towers beside a GGUF file, and of the images that they were trained with."""
    mmproj = mmproj_beside(file)
    if mmproj is None:
        return ""
    tokens = image_tokens(mmproj)
    size = f" --image-min-tokens {tokens[0]} --image-max-tokens {tokens[1]}" if tokens else ""
    return f" --mmproj {shlex.quote(str(mmproj))}{size}"


def _vllm_adapter(place: Path) -> list[tuple[str, str]]:
    """vLLM's command for an adapter that it can serve."""
    try:
        stored = read_adapter_config(place)
        base, commit = str(stored.get("base_model_name_or_path")), stored.get("revision")
        if unservable(Source(base, None, place, base)):
            return []
    except UserError:  # the report has more to say than that
        return []
    source = Source(base, commit, place, str(place), images_kwargs=tuple(_images_kwargs(place).items()))
    source = replace(source, image_attention=image_attention_of(str(place)))
    return [("vLLM", shlex.join(serve_words(source, "tuned", _tool_parser(place))))]


def _images_kwargs(place: Path) -> dict[str, Any]:
    """`model.images_kwargs` of the run that a folder is of."""
    try:
        return images_kwargs_of(str(place))
    except UserError:
        return {}


def _tool_parser(folder: Path) -> str | None:
    """vLLM's name of the form in which the model of a folder writes calls of tools; None where it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return vllm_tool_parser(form_of(tokenizer)) if tokenizer.chat_template else None
    except (OSError, ValueError, UserError):  # no tokenizer beside it, or a template of the user's
        return None


def python_code(name: str, folder: str, place: Path) -> str | None:
    """Code that loads an artifact with Transformers or PEFT; None for what is served in another way.

    Args:
        name: The artifact.
        folder: Its folder, as it stands in the code.
        place: The same, where it is.
    """
    code = {"merged": _MERGED, "adapter": _ADAPTER, "reward_model": _REWARD_MODEL}.get(name)
    if code is None:
        return None
    code = code.format(folder=folder, content=json.dumps(greeting(translates_in(place))))
    if (place / TOWERS_FILE).is_file():
        code = _WITHOUT_TOWERS.format(towers=TOWERS_FILE) + code
    if name == "adapter" and (attention := image_attention_of(str(place))):
        code += _ATTENTION.format(attention=attention, stored=STORED[attention])
    return code


def how_to_use(folder: RunFolder) -> list[Block]:
    """Commands and code to copy for each artifact that can be loaded."""
    artifacts, blocks = folder.result.artifacts, list[Block]()
    if "reward_model" in artifacts:
        place = folder.path / artifacts["reward_model"]
        named = shlex.quote(f"reward.model.model_name_or_path={folder.path}")
        return [
            Text("The reward model, with Transformers; this run loaded it this way:"),
            Code(_REWARD_MODEL.format(folder=str(place)), "python"),
            Text("As a reward:"),
            Code(f"python -m gemma_tune recipe=grpo reward=model {named} {_PROMPTS}", "bash"),
        ]
    if "merged" in artifacts:
        merged = folder.path / artifacts["merged"]
        blocks += [
            Text("The merged model, with Transformers; this run loaded it this way:"),
            Code(str(python_code("merged", str(merged), merged)), "python"),
        ]
    if "adapter" in artifacts:
        adapter = folder.path / artifacts["adapter"]
        blocks += [
            Text("The adapter, on its base model, with PEFT:"),
            Code(str(python_code("adapter", str(adapter), adapter)), "python"),
        ]
        if served := use_commands("adapter", folder.path / artifacts["adapter"]):
            name = "The adapter, in vLLM, under the name `tuned` (the base answers under its own name):"
            blocks += [Text(name), Code(served[0][1], "bash")]
    said = {
        "gguf": "The GGUF file, in Ollama (by the Modelfile beside it), or in llama.cpp, where this run checked it:",
        "w4a16": "The int4 folder, with vLLM, or with Transformers, where this run loaded it:",
        "phone": "The folder in Gemma's format for phones, with Transformers, where this run loaded it:",
        "mlx": "The int4 folder for Apple's computers, with mlx-lm (pip install mlx-lm):",
        "w4a16_transformers": "The int4 folder with plain experts, with Transformers, where this run loaded it:",
    }
    if "w4a16" in artifacts and (why := not_loaded(folder.path / artifacts["w4a16"])):
        said["w4a16"] = f"The int4 folder, with vLLM. {why}"
    if "planned_bits_per_weight" not in folder.result.metrics:  # else they are controls of int4 files
        said |= {
            f"gguf_{kind}": f"The GGUF file in {of}, in Ollama, or in llama.cpp, where this run checked it:"
            for kind, of in _WIDE.items()
        }
    said["gguf_lora"] = (
        "The adapter, in llama.cpp, on a GGUF file of its base (recipe=export model.model_name_or_path=BASE quant=none "
        "export=gguf_f16 writes that):"
    )
    if "adapter" not in artifacts:  # else its command for vLLM is this one
        said[ADAPTER_VLLM] = "The adapter, in vLLM, under the name `tuned` (the base answers under its own name):"
    for name in (name for name in said if name in artifacts):
        if why := unreadable(name, folder.path / artifacts[name]):
            blocks.append(Text(why))
            continue
        commands = [command for _, command in use_commands(name, folder.path / artifacts[name])]
        blocks += [Text(said[name]), Code("\n".join(commands), "bash")]
        if name == "gguf_f16":
            blocks += k_quants(gguf_models(folder.path / artifacts[name])[0])
    if blocks and (lines := _with_gemma_tune(folder)):
        blocks += [
            Text("Chat with it, serve it, or evaluate it on the same rows or others:"),
            Code("\n".join(lines), "bash"),
        ]
    return blocks


def next_commands(folder: RunFolder) -> list[tuple[str, str]]:
    """What each is for and the command, to go on with what a training has left; nothing for a run without weights."""
    ours = {line.split("recipe=")[1].split()[0]: line for line in _with_gemma_tune(folder)}
    found = [(what, ours[recipe]) for what, recipe in (("chat", "chat"), ("API", "serve")) if recipe in ours]
    artifacts = folder.result.artifacts
    names = ["merged"] if "merged" in artifacts else ["adapter"] if "adapter" in artifacts else [ADAPTER_VLLM]
    names += [name for name in artifacts if name.startswith(("gguf", "w4a16", "mlx", "phone"))]
    served = [use for name in names if name in artifacts for use in use_commands(name, folder.path / artifacts[name])]
    found += served
    if "merged" in artifacts and not any(engine == "llama.cpp" for engine, _ in served) and _has_gguf(folder):
        model = shlex.quote(f"model.model_name_or_path={folder.path}")
        found.append(("Ollama, llama.cpp", f"python -m gemma_tune recipe=export export=gguf_f16 {model}"))
    return found


def _has_gguf(folder: RunFolder) -> bool:
    """Whether a GGUF file can be written of the merged weights of a run."""
    config = folder.path / "export" / "merged" / "config.json"
    try:
        kind = read_object(config).get("model_type")
    except (OSError, ValueError):
        return False
    return kind in FAMILIES


def _with_gemma_tune(folder: RunFolder) -> list[str]:
    """Our own commands that take what the run has left: its folder, or of int4 files alone each file."""
    artifacts = folder.result.artifacts
    on_grid = any((folder.path / part / PLAN).is_file() for part in ("", ON_GRID))  # the adapter alone isn't the model
    whole = "merged" in artifacts or ("adapter" in artifacts and not on_grid)
    taken = [folder.path] if whole else []
    for name, place in artifacts.items() if not whole else ():
        if unreadable(name, folder.path / place):
            continue
        if name.startswith("gguf") and name != "gguf_lora":
            taken += gguf_models(folder.path / place)
        elif name in EXPORTED and not not_loaded(folder.path / place):
            taken.append(folder.path / place)
    return [
        f"python -m gemma_tune recipe={recipe} {shlex.quote(f'model.model_name_or_path={place}')}"
        for place in taken
        for recipe in ("chat", "serve", "evaluate")
    ]
