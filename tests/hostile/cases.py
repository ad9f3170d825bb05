"""Hostile files, each with the function of ours that reads it: `python cases.py FOLDER` measures all of them.

Prints one JSON object a case: its seconds, the MB above the process before it, and how it ended. One child measures all
of them, because imports take longer than the cases.
"""

from __future__ import annotations

import gzip
import json
import resource
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

MIB = 1 << 20
TINY = Path(__file__).parents[2] / "data" / "tiny"
Case = Callable[[Path], object]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES[name] = function
        return function

    return add


def _model(folder: Path, **files: Any) -> Path:
    """The embedded model with other files: a text, bytes, or a mapping that is put over a JSON file's."""
    place = folder / "model"
    place.mkdir()
    for file in TINY.iterdir():
        (place / file.name).symlink_to(file)
    for name, content in files.items():
        file = place / name.replace("__", ".")
        was = file.read_text(encoding="utf-8") if isinstance(content, dict) and file.exists() else "{}"
        file.unlink(missing_ok=True)
        if isinstance(content, dict):
            content = json.dumps(json.loads(was) | content)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def _look(folder: Path) -> object:
    """What every run does first with a model."""
    from gemma_tune.config import ModelConfig
    from gemma_tune.models.estimate.size import size_of
    from gemma_tune.models.load import load_config, load_tokenizer
    from gemma_tune.models.source import find_source

    source = find_source(ModelConfig(model_name_or_path=str(folder)))
    size_of(load_config(source))
    return load_tokenizer(source)


def _rows(file: Path) -> int:
    from gemma_tune.data.files import read_file
    from gemma_tune.data.records import BadRow

    count = 0
    for row in read_file(file):
        if isinstance(row, BadRow):
            raise row
        count += 1
    return count


# config.json of a model
_TEXT: dict[str, dict[str, Any]] = {
    "layers 1e9": {"num_hidden_layers": 10**9},
    "width 1e12": {"hidden_size": 10**12},
    "vocabulary 1e15": {"vocab_size": 10**15},
    "vocabulary -1": {"vocab_size": -1},
    "vocabulary float": {"vocab_size": 1e300},
    "layers a text": {"num_hidden_layers": "six"},
    "width null": {"hidden_size": None},
    "heads 0": {"num_attention_heads": 0},
    "head_dim 1e9": {"head_dim": 10**9},
    "mlp a list": {"intermediate_size": [1] * 100_000},
    "layer types 1e5": {"layer_types": ["full_attention"] * 100_000},
    "labels 1e9": {"num_labels": 10**9},
    "unknown model_type with auto_map": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}},
    "model_type a list": {"model_type": ["gemma3_text"]},
    "nested vision tower": {"vision_config": {"num_hidden_layers": 10**9}},
}
for _name, _change in _TEXT.items():
    CASES[f"config.json: {_name}"] = lambda folder, change=_change: _look(_model(folder, config__json=change))
_RAW = {
    "null": "null", "a number": "7", "a list": "[]", "empty": "", "cut off": '{"model_type": ',
    "no UTF-8": b"\xff\xfe{}",
    "deep": '{"model_type": ' + "[" * 100_000, "deep but closed": '{"a": ' + "[" * 500 + "]" * 500 + "}",
    "an int of 5,000 digits": '{"model_type": "gemma3_text", "hidden_size": 1' + "0" * 5000 + "}",
    "a million lists": '{"a": [' + "[]," * 1_500_000 + "0]}",
    "100 MB": '{"a": "' + "x" * (100 * MIB) + '"}',
}  # fmt: skip
for _name, _raw in _RAW.items():
    CASES[f"config.json: {_name}"] = lambda folder, raw=_raw: _look(_model(folder, config__json=raw))
    if _name not in ("100 MB",):
        CASES[f"adapter_config.json: {_name}"] = lambda folder, raw=_raw: _look(_adapter(folder, raw))


def _adapter(folder: Path, raw: str | bytes) -> Path:
    place = folder / "adapter"
    place.mkdir()
    (place / "adapter_config.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    (place / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return place


# tokenizers and templates
_TOKENIZER: dict[str, dict[str, Any]] = {
    "cut off": {"tokenizer__json": '{"version": '},
    "null": {"tokenizer__json": "null"},
    "deep": {"tokenizer__json": '{"a":' * 50_000},
    "100 MB": {"tokenizer__json": '{"a": "' + "x" * (100 * MIB) + '"}'},
    "forty doublings": {
        "tokenizer__json": {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
            }
        }
    },
    "remote code": {
        "tokenizer_config__json": {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    },
    "ids of 2^60": {"tokenizer_config__json": {"added_tokens_decoder": {str(2**60): {"content": "<x>"}}}},
    "config a list": {"tokenizer_config__json": "[]"},
    "config of 10 MB": {"tokenizer_config__json": json.dumps({"a": "x" * (10 * MIB)})},
}
for _name, _files in _TOKENIZER.items():
    CASES[f"tokenizer: {_name}"] = lambda folder, files=_files: _look(_model(folder, **files))
_TELLING = "{# <start_of_turn> <start_function_call> #}"
_LOOP = "{% for i in range(99999) %}"
_TEMPLATES = {
    "endless loop": _TELLING + _LOOP * 3 + "{% endfor %}" * 3,
    "300 MB": _TELLING + "{{ 'x' * 300000000 }}",
    "forty doublings": _TELLING + "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "a list of 1e12": _TELLING + "{{ range(10**12) | list }}",
    "10**10**10": _TELLING + "{{ 10**10**10 }}",
    "attributes": _TELLING + "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "deep": _TELLING + "{{ " + "(" * 50_000,
    "2 MB": _TELLING + "x" * (2 * MIB),
    "calls itself": _TELLING + "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
}
for _name, _template in _TEMPLATES.items():
    CASES[f"template: {_name}"] = lambda folder, text=_template: _look(_model(folder, chat_template__jinja=text))


# weights
def _weights(folder: Path, content: bytes) -> object:
    from gemma_tune.config import ModelConfig
    from gemma_tune.models.language_part import check_files
    from gemma_tune.models.load import load_config
    from gemma_tune.models.source import find_source

    model = ModelConfig(model_name_or_path=str(_model(folder, model__safetensors=content)), dtype="float32")
    source = find_source(model)
    return check_files(model, source, load_config(source))


def _header(tensors: str) -> bytes:
    return struct.pack("<Q", len(tensors)) + tensors.encode() + bytes(8)


_ONE = '"model.norm.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
_WEIGHTS = {
    "header of 2^60": struct.pack("<Q", 2**60) + b"{}",
    "header of 99 MB": struct.pack("<Q", 99 * MIB) + bytes(99 * MIB),
    "empty": b"",
    "no JSON": _header("{nothing"),
    "overlapping": _header("{" + _ONE + ',"a":{"dtype":"F32","shape":[2],"data_offsets":[4,8]}}'),
    "beyond the file": _header('{"a":{"dtype":"F32","shape":[4096],"data_offsets":[0,16384]}}'),
    "shape of 2^60": _header('{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,8]}}'),
    "twice the same": _header("{" + _ONE + "," + _ONE + "}"),
    "deep": _header('{"a":' + "[" * 100_000),
    "other tensors": _header("{" + _ONE + "}"),
}
for _name, _content in _WEIGHTS.items():
    CASES[f"safetensors: {_name}"] = lambda folder, content=_content: _weights(folder, content)


@case("weights: pytorch_model.bin alone")
def _(folder: Path) -> object:
    place = _model(folder, pytorch_model__bin=b"\x80\x04cos\nsystem\n")
    (place / "model.safetensors").unlink()
    return _look(place)


@case("weights: adapter_model.bin alone")
def _(folder: Path) -> object:
    place = _adapter(folder, json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(TINY), "r": 4}))
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    return _look(place)


def _adapter_config(folder: Path, **values: Any) -> object:
    from gemma_tune.models.adapters.adapter_config import stored_config

    base = {"peft_type": "LORA", "base_model_name_or_path": str(TINY), "r": 4, "target_modules": ["q_proj"]}
    return stored_config(_adapter(folder, json.dumps(base | values)))


for _name, _values in {
    "rank 1e12": {"r": 10**12}, "rank -1": {"r": -1}, "rank a text": {"r": "x"},
    "modules a number": {"target_modules": 7},
    "rows -1": {"trainable_token_indices": [-1]}, "rows 1e15": {"trainable_token_indices": [10**15]},
    "ranks a list": {"rank_pattern": [1]}, "an alpha of inf": {"lora_alpha": float("inf")},
    "a kind of 1 MB": {"peft_type": "x" * MIB}, "a million unknown names": {f"k{i}": 1 for i in range(100_000)},
}.items():  # fmt: skip
    CASES[f"adapter: {_name}"] = lambda folder, values=_values: _adapter_config(folder, **values)


@case("adapter: a regular expression that takes for ever")
def _(folder: Path) -> object:
    from safetensors.torch import save_file
    from torch import zeros

    from gemma_tune.config import ModelConfig
    from gemma_tune.models.adapters.stored_adapter import read_adapter
    from gemma_tune.models.estimate.size import empty_model
    from gemma_tune.models.load import load_config
    from gemma_tune.models.source import find_source

    pattern = "(([a-z_.0-9])+)+!"
    base = {"peft_type": "LORA", "base_model_name_or_path": str(TINY), "r": 4, "target_modules": pattern}
    place = _adapter(folder, json.dumps(base))
    plain = empty_model(load_config(find_source(ModelConfig(model_name_or_path=str(TINY)))).get_text_config())
    layer = plain.model.layers[0].self_attn.q_proj
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {
        f"{name}.lora_A.weight": zeros(4, layer.in_features),
        f"{name}.lora_B.weight": zeros(layer.out_features, 4),
    }
    save_file(weights, place / "adapter_model.safetensors")
    return read_adapter(place, plain)


@case("reward model: unknown model_type with auto_map")
def _(folder: Path) -> object:
    import torch

    from gemma_tune.config.reward import ModelReward
    from gemma_tune.rl.reward_model import prepare

    place = _model(folder, config__json=_TEXT["unknown model_type with auto_map"])
    return prepare(ModelReward(model_name_or_path=str(place)), torch.device("cpu"))


# GGUF
def _gguf(folder: Path, content: bytes) -> object:
    from gemma_tune.models.gguf_header import read_gguf_header

    (folder / "x.gguf").write_bytes(content)
    return read_gguf_header(folder / "x.gguf")


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


_GGUF = b"GGUF" + struct.pack("<IQ", 3, 1)
for _name, _content in {
    "2^40 keys": _GGUF + struct.pack("<Q", 2**40), "empty": b"", "cut off": _GGUF,
    "an array of 2^40": _GGUF + struct.pack("<Q", 1) + _text("a") + struct.pack("<IIQ", 9, 0, 2**40) + bytes(1000),
    "an array of arrays": _GGUF + struct.pack("<Q", 1) + _text("a") + struct.pack("<IIQ", 9, 9, 2**40),
    "a text of 2^63": _GGUF + struct.pack("<Q", 1) + struct.pack("<Q", 2**63) + bytes(100),
    "an unknown type": _GGUF + struct.pack("<Q", 1) + _text("a") + struct.pack("<I", 99),
    "no UTF-8": _GGUF + struct.pack("<Q", 1) + struct.pack("<Q", 2) + b"\xff\xff" + struct.pack("<I", 0) + b"\0",
    "another file": b"PK\x03\x04" * 100,
    "a width that is a text": _GGUF + struct.pack("<Q", 3) + _text("general.architecture") + struct.pack("<I", 8)
    + _text("gemma3") + _text("gemma3.context_length") + struct.pack("<II", 4, 512)
    + _text("gemma3.embedding_length") + struct.pack("<I", 8) + _text("640"),
}.items():  # fmt: skip
    CASES[f"GGUF: {_name}"] = lambda folder, content=_content: _gguf(folder, content)


# YAML: a user's file, and the config.yaml of a run
_ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
_MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))
_YAML = {
    "aliases of aliases": _ALIASES, "merges of merges": _MERGES, "an alias of itself": "&a [*a]",
    "an int of 5,000 digits": "seed: 1" + "0" * 5000, "a date that is none": "seed: 2001-99-99",
    "deep": "[" * 100_000, "1 MB": "a: b\n" * 200_000, "Python": "!!python/object/apply:os.system [echo]",
    "references": "train: {lr_scheduler_type: '${a0}'}\na0: '${a1}${a1}'\n"
    + "".join(f"a{i}: '${{a{i + 1}}}${{a{i + 1}}}'\n" for i in range(1, 60)) + "a60: x\n",
}  # fmt: skip


def _own_yaml(folder: Path, text: str) -> object:
    from gemma_tune.cli.compose import compose_config

    (folder / "recipe").mkdir()
    (folder / "recipe" / "mine.yaml").write_text("# @package _global_\n" + text, encoding="utf-8")
    return compose_config("mine", config_dir=folder)


def _rerun(folder: Path, text: str) -> object:
    from gemma_tune.cli.compose import load_stored

    (folder / "config.yaml").write_text("method: sft\n" + text, encoding="utf-8")
    return load_stored(folder, [])


for _name, _yaml in _YAML.items():
    CASES[f"--config-dir: {_name}"] = lambda folder, text=_yaml: _own_yaml(folder, text)
    CASES[f"rerun=: {_name}"] = lambda folder, text=_yaml: _rerun(folder, text)


# rows
def _packed(file: Path, parts: Iterator[bytes], opened: Callable[..., Any] = gzip.open) -> Path:
    with opened(file, "wb") as out:
        for part in parts:
            out.write(part)
    return file


def _zst(file: Path, mode: str) -> Any:
    import pyarrow as pa

    return pa.CompressedOutputStream(str(file), "zstd")


_A, _ROW = b"a" * MIB, b'{"prompt": "'


@case("rows: a line of 70 MB in gz")
def _(folder: Path) -> object:
    return _rows(_packed(folder / "x.jsonl.gz", (p for p in [_ROW] + [_A] * 70)))


@case("rows: a line of 1.5 GB in zst")
def _(folder: Path) -> object:
    return _rows(_packed(folder / "x.jsonl.zst", (p for p in [_ROW] + [_A] * 1500), _zst))


@case("rows: blanks in json.zst")
def _(folder: Path) -> object:
    return _rows(_packed(folder / "x.json.zst", (b" " * MIB for _ in range(1500)), _zst))


@case("rows: empty lines in jsonl.zst")
def _(folder: Path) -> object:
    return _rows(_packed(folder / "x.jsonl.zst", (b"\n" * MIB for _ in range(1500)), _zst))


@case("rows: zeros in parquet.zst")
def _(folder: Path) -> object:
    return _rows(_packed(folder / "x.parquet.zst", (bytes(MIB) for _ in range(1500)), _zst))


@case("rows: commas in csv.zst")
def _(folder: Path) -> object:
    return _rows(_packed(folder / "x.csv.zst", (b"," * MIB for _ in range(1500)), _zst))


@case("rows: an open quote in csv.zst")
def _(folder: Path) -> object:
    return _rows(_packed(folder / "x.csv.zst", (p for p in [b'a,b\n"'] + [b"x\n" * MIB] * 20), _zst))


for _name, _line in {
    "brackets": b"[" * (20 * MIB), "lists": b'{"a": [' + b"[]," * (5 * MIB) + b"0]}",
    "5,000 digits": b'{"a": 1' + b"0" * 5000 + b"}",
    "2,000,000 names": b"{" + b",".join(b'"k%d":0' % i for i in range(2_000_000)) + b"}",
}.items():  # fmt: skip
    CASES[f"rows: a line of {_name}"] = lambda folder, line=_line: (
        (folder / "x.jsonl").write_bytes(line + b"\n") and _rows(folder / "x.jsonl")
    )


@case("Parquet: a footer of 3 GB")
def _(folder: Path) -> object:
    with (folder / "x.parquet").open("wb") as file:
        file.write(b"PAR1")
        file.seek(3 << 30)
        file.write(struct.pack("<I", (3 << 30) - 100) + b"PAR1")
    return _rows(folder / "x.parquet")


@case("Parquet: a cell of 70 MB")
def _(folder: Path) -> object:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["x" * (70 * MIB)]}), folder / "x.parquet", compression="zstd")
    return lambda: _rows(folder / "x.parquet")


@case("Arrow: offsets out of the batch")
def _(folder: Path) -> object:
    import pyarrow as pa

    table = pa.table({"text": [f"row {i}" for i in range(100)]})
    with pa.OSFile(str(folder / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    content = bytearray((folder / "x.arrow").read_bytes())
    place = content.index(struct.pack("<iii", 0, 5, 10))  # where the texts begin
    content[place + 4 : place + 8] = struct.pack("<i", 2**31 - 1)
    (folder / "x.arrow").write_bytes(content)
    return _rows(folder / "x.arrow")


# run folders
def _run_folder(folder: Path, name: str, content: str) -> object:
    from gemma_tune.config import Config
    from gemma_tune.run.folder import Found, RunFolder
    from gemma_tune.run.inputs import stored_inputs

    (folder / name).write_text(content, encoding="utf-8")
    if name == "manifest.json":
        return stored_inputs(folder / name)
    return RunFolder(folder, Config(), Found.FINISHED, None).stored_result()


for _name in ("result.json", "manifest.json"):
    for _kind in ("null", "a list", "empty", "deep", "a million lists", "an int of 5,000 digits", "100 MB"):
        CASES[f"run folder: {_name}: {_kind}"] = lambda folder, name=_name, kind=_kind: _run_folder(
            folder, name, str(_RAW[kind])
        )


@case("run folder: metrics.jsonl of garbage")
def _(folder: Path) -> object:
    from gemma_tune.report.curves import read_panels

    (folder / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2}\n' + bytes(100) + b"\n")
    return read_panels(folder / "metrics.jsonl")


@case("run folder: eval/after.json of lists")
def _(folder: Path) -> object:
    from gemma_tune.compare.stored import stored_results

    (folder / "eval").mkdir()
    (folder / "eval" / "after.json").write_text(str(_RAW["a million lists"]), encoding="utf-8")
    return stored_results("x", str(folder))


def _memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def _from_now() -> tuple[float, float]:
    """The memory and the time now; the peak begins anew."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return _memory("VmRSS"), time.monotonic()


def main(scratch: Path) -> None:
    """Warms up with the embedded model itself, then measures each case."""
    from gemma_tune.data.records import BadRow
    from gemma_tune.errors import UserError

    _look(TINY)
    _weights(_fresh(scratch), (TINY / "model.safetensors").read_bytes())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, run in CASES.items():
        folder = _fresh(scratch)
        before, start = _from_now()
        try:
            made: Any = run(folder)
            if isinstance(made, FunctionType):  # what makes the file needs more than what reads it
                before, start = _from_now()
                made = made()
            ended, said = "accepted", str(made)[:100]
        except (UserError, BadRow) as error:
            ended, said = "refused", str(error)
        except BaseException as error:
            ended, said = type(error).__name__, str(error)[:500]
        seconds, peak = time.monotonic() - start, _memory("VmHWM") - before
        print(json.dumps({"case": name, "seconds": seconds, "mb": peak, "ended": ended, "said": said}), flush=True)


def _fresh(scratch: Path) -> Path:
    folder = scratch / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]))
