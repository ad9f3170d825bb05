"""The artifacts of a run: their sizes, and how to use them."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import safe_open

from gemma_tune.export.read_back import gguf_size
from gemma_tune.export.verify import ArtifactDiffers
from gemma_tune.page.blocks import Block, Code, Mono, Table, Text
from gemma_tune.report.k_quants import k_quants
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ON_GRID, PLAN

# Types in which each number is one weight; other types may pack several into one.
_ONE_EACH = ("F64", "F32", "F16", "BF16")

# Files of a model in no quantization format.
_WIDE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "8 bit"}

_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Hello!"}}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""

_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = {folder!r}
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto")  # the base, with the adapter on it
tokenizer = AutoTokenizer.from_pretrained(folder)"""

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


@dataclass(frozen=True)
class Size:
    """How large an artifact is.

    Attributes:
        total: Bytes of all its files.
        stored: Bytes of the tensors in them: weights and their scales, without metadata and tokenizer.
        weights: The number of weights that these hold; None where the format doesn't tell it.
    """

    total: int
    stored: int
    weights: int | None

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of the tensors, scales included, over the number of weights in them; None where that isn't known."""
        return 8 * self.stored / self.weights if self.weights else None


def total_size(parts: Sequence[Size]) -> Size:
    """Several artifacts as one."""
    known = [part.weights for part in parts if part.weights is not None]
    whole = bool(parts) and len(known) == len(parts)
    return Size(sum(p.total for p in parts), sum(p.stored for p in parts), sum(known) if whole else None)


def artifact_size(artifact: Path) -> Size:
    """Counts bytes and weights of a file, or of a folder with everything in it."""
    files = [p for p in artifact.rglob("*") if p.is_file()] if artifact.is_dir() else [artifact]
    held = [_tensors(file) for file in files if file.suffix == ".safetensors"]
    held += [_gguf(file) for file in files if file.suffix == ".gguf"]
    return replace(total_size(held), total=sum(f.stat().st_size for f in files))


def _gguf(file: Path) -> Size:
    total = file.stat().st_size
    try:
        return Size(total, *gguf_size(file))
    except ArtifactDiffers:  # a damaged file is said where it is checked
        return Size(total, total, None)


def _tensors(file: Path) -> Size:
    """A safetensors file; of compressed-tensors' packed integers, the shape beside them says how many weights."""
    bits, weights, packed = 0, 0, False
    with safe_open(file, framework="numpy") as tensors:
        names = set(tensors.keys())
        for name in names:
            tensor = tensors.get_slice(name)
            kind, count = str(tensor.get_dtype()), math.prod(tensor.get_shape())
            size = re.search(r"\d+", kind)  # BF16, I32, F8_E4M3; none in BOOL
            bits += count * int(size[0] if size else 8)
            layer, _, part = name.rpartition(".")
            if f"{layer}.weight_packed" in names and part.startswith("weight_"):
                weights += math.prod(tensors.get_tensor(name).tolist()) if part == "weight_shape" else 0
            else:
                weights += count
                packed |= kind not in _ONE_EACH
    return Size(file.stat().st_size, bits // 8, None if packed else weights)


def bytes_text(count: float) -> str:
    """Bytes in decimal units: 1 MB is a million."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def sizes(folder: RunFolder, counts: Mapping[str, int] | None) -> list[Block]:
    """A row an artifact: where it is, its bytes, the bits of a weight, and how large it is against bfloat16.

    Args:
        folder: The run folder, with its result.
        counts: What was counted of the model (`WeightCounts`), where it was.
    """
    rows = []
    model = (counts["total"] - (counts["trainable"] if counts["adapted_layers"] else 0)) if counts else 0
    for name, path in folder.result.artifacts.items():
        size = artifact_size(folder.path / path)
        # An adapter is compared with its base model, a whole model with itself
        whole = max(model, size.weights or 0)
        rows.append(
            [
                name,
                Mono(path),
                bytes_text(size.total),
                f"{size.weights:,}" if size.weights else "–",
                f"{size.bits_per_weight:.2f}" if size.bits_per_weight else "–",
                f"{size.stored / (2 * whole):.1%}" if size.stored and whole else "–",
            ]
        )
    if not rows:
        return []
    head = ["what", "where", "size", "weights", "bits per weight", "of the model in bfloat16"]
    return [Table(head, rows)]


def use_commands(name: str, place: Path) -> list[tuple[str, str]]:
    """Engine and command for an exported format, to be copied; nothing for what isn't served.

    Args:
        name: The format: `gguf`, `w4a16`, `merged`, …
        place: Its folder.
    """
    if name == "gguf_lora":
        adapter = shlex.quote(str(next(place.glob("*.gguf"))))
        return [("llama.cpp", f"llama-server -m BASE-f16.gguf --lora {adapter}")]
    if name.startswith("gguf"):
        file = next(place.glob("*.gguf"))
        model, modelfile = shlex.quote(file.stem), shlex.quote(str(place / "Modelfile"))
        ollama = ("Ollama", f"ollama create {model} -f {modelfile} && ollama run {model}")
        llama_cpp = ("llama.cpp", f"llama-cli -m {shlex.quote(str(file))}")
        return [ollama, llama_cpp] if (place / "Modelfile").is_file() else [llama_cpp]
    if name in ("w4a16", "merged"):
        chat = '[{"role": "user", "content": "Hello!"}]'
        run = f'print(pipeline("text-generation", {json.dumps(str(place))})({chat}))'
        return [
            ("vLLM", f"vllm serve {shlex.quote(str(place))}"),
            ("Transformers", f"python -c {shlex.quote(f'from transformers import pipeline; {run}')}"),
        ]
    return []


def python_code(name: str, folder: str) -> str | None:
    """Code that loads an artifact from a folder with Transformers or PEFT; None for what is served in another way."""
    code = {"merged": _MERGED, "adapter": _ADAPTER, "reward_model": _REWARD_MODEL}.get(name)
    return code.format(folder=folder) if code else None


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
        blocks += [
            Text("The merged model, with Transformers; this run loaded it this way:"),
            Code(_MERGED.format(folder=str(folder.path / artifacts["merged"])), "python"),
        ]
    if "adapter" in artifacts:
        blocks += [
            Text("The adapter, on its base model, with PEFT:"),
            Code(_ADAPTER.format(folder=str(folder.path / artifacts["adapter"])), "python"),
        ]
    said = {
        "gguf": "The GGUF file, in Ollama (by the Modelfile beside it), or in llama.cpp, where this run checked it:",
        "w4a16": "The int4 folder, with vLLM, or with Transformers, where this run loaded it:",
    }
    if "planned_bits_per_weight" not in folder.result.metrics:  # else they are controls of int4 files
        said |= {
            f"gguf_{kind}": f"The GGUF file in {of}, in Ollama, or in llama.cpp, where this run checked it:"
            for kind, of in _WIDE.items()
        }
    said["gguf_lora"] = (
        "The adapter, in llama.cpp, on a GGUF file of its base (recipe=export model.model_name_or_path=BASE quant=none "
        "export=gguf_f16 writes that):"
    )
    for name in (name for name in said if name in artifacts):
        commands = [command for _, command in use_commands(name, folder.path / artifacts[name])]
        blocks += [Text(said[name]), Code("\n".join(commands), "bash")]
        if name == "gguf_f16":
            blocks += k_quants(next((folder.path / artifacts[name]).glob("*.gguf")))
    if blocks and (lines := _with_gemma_tune(folder)):
        blocks += [Text("Chat with it, or evaluate it on the same rows or others:"), Code("\n".join(lines), "bash")]
    return blocks


def _with_gemma_tune(folder: RunFolder) -> list[str]:
    """Our own commands that take what the run has left: its folder, or of int4 files alone each file."""
    artifacts = folder.result.artifacts
    on_grid = any((folder.path / part / PLAN).is_file() for part in ("", ON_GRID))  # the adapter alone isn't the model
    whole = "merged" in artifacts or ("adapter" in artifacts and not on_grid)
    taken: dict[str, tuple[str, ...]] = {str(folder.path): ("chat", "evaluate")} if whole else {}
    for name, place in artifacts.items() if not whole else ():
        if name.startswith("gguf") and name != "gguf_lora":
            taken |= {str(file): ("evaluate",) for file in sorted((folder.path / place).glob("*.gguf"))}
        elif name == "w4a16":
            taken[str(folder.path / place)] = ("chat", "evaluate")
    return [
        f"python -m gemma_tune recipe={recipe} {shlex.quote(f'model.model_name_or_path={place}')}"
        for place, recipes in taken.items()
        for recipe in recipes
    ]
