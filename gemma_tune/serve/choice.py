"""Which weights `recipe=serve` serves, and by which engine."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from gemma_tune.chat import translates, without_marks
from gemma_tune.config import Config
from gemma_tune.config.model import is_gguf, is_template_file
from gemma_tune.engines.vllm_server import IN_16_BIT, as_vllm_reads, find_vllm, unservable
from gemma_tune.errors import UserError
from gemma_tune.export.media_template import template_for_llama_cpp
from gemma_tune.models.chat_template import template_of, translates_in
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.gguf_header import gguf_chat_template, lacks_chat_template, read_gguf_header
from gemma_tune.models.source import Source, find_source
from gemma_tune.run.existing import run_of
from gemma_tune.run.paths import MMPROJ, ON_GRID, TUNED, gguf_models, is_bundled, mmproj_beside, resolve
from gemma_tune.validation.serving import is_loopback

_NAMED = 3  # of many files
# What `transformers serve` needs beside Transformers
_SERVING = ("fastapi", "uvicorn", "openai", "pydantic")
_ENGINES = {"llama_cpp": "llama.cpp", "vllm": "vLLM", "transformers": "Transformers"}


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        engine: `serve.engine`, chosen.
        name: The model's id for clients.
        source: Where the weights are; of a GGUF file None.
        gguf: The GGUF file, or None.
        mmproj: The file of its towers for images and sound, or None.
        template: The chat template in place of that of the GGUF file; None: the file's own.
        vllm: The `vllm` command, where that is the engine.
        note: What may not be expected of this choice; "" where there is nothing.
    """

    engine: str
    name: str
    source: Source | None = None
    gguf: Path | None = None
    mmproj: Path | None = None
    template: str | None = None
    vllm: Path | None = None
    note: str = ""

    @property
    def engine_title(self) -> str:
        """The engine's name for people."""
        return _ENGINES[self.engine]

    @property
    def translates(self) -> bool:
        """Whether a message has to name its languages, as TranslateGemma's."""
        if self.gguf is not None:
            return translates(self.template or gguf_chat_template(self.gguf) or "")
        return self.source is not None and translates_in(self.source.tokenizer_folder)

    @property
    def weights(self) -> str:
        """The weights for people: a file, a base, or a base with its adapter."""
        if self.source is None:
            return str(self.gguf) + (f" with the towers {self.mmproj.name}" if self.mmproj else "")
        return self.source.base + (f" with the adapter {self.source.adapter}" if self.source.adapter else "")


def chosen(cfg: Config) -> Served:
    """Finds what is served, and checks that its engine is there and can do what is asked.

    Raises:
        UserError: There is no such model, the engine isn't installed, or it doesn't serve these weights.
    """
    asked, name = cfg.serve.engine, cfg.model.model_name_or_path
    called = cfg.serve.name or _name_of(name)
    ggufs = [resolve(name)] if is_gguf(name) else _ggufs_in(name)
    if is_gguf(name) and asked not in ("auto", "llama_cpp"):
        raise UserError(
            f"serve.engine={asked}: {name} is a GGUF file, which llama.cpp serves; leave serve.engine out, or name "
            "the run or its merged weights."
        )
    try:
        source = None if is_gguf(name) or asked == "llama_cpp" else find_source(cfg.model)
    except UserError:
        if asked != "auto" or not ggufs:
            raise
        source = None  # a run that holds a GGUF file and no other weights
    if source is None:
        return _by_llama_cpp(cfg, called, ggufs)
    vllm = find_vllm(cfg.engine, look=True) if asked != "transformers" else None
    why = unservable(source) if vllm else None
    merged = _merged_beside(source)
    if vllm and (asked == "vllm" or not why) and not is_loopback(cfg.serve.host):
        raise UserError(
            f"serve.host={cfg.serve.host}: vLLM asks for its key under /v1 alone, and answers under /invocations "
            "without one; serve on 127.0.0.1 behind a proxy, or name a GGUF file, which llama.cpp serves."
        )
    if vllm and merged and asked != "transformers":
        note = "vLLM serves the run's merged weights: beside an adapter it would offer the base, too."
        return Served("vllm", called, merged, vllm=vllm, note=note)
    if vllm and not why:
        return Served("vllm", called, as_vllm_reads(source), vllm=vllm, note=_of_adapter(cfg, called, source))
    if asked == "vllm":
        raise UserError(
            f"serve.engine=vllm: {why}"
            if why
            else "serve.engine=vllm: there is no vLLM on this machine; "
            "engine.vllm=path/to/vllm names an installation, and `make setup-vllm` makes one for CPUs."
        )
    return replace(_by_transformers(cfg, called, source, ggufs), note=f"vLLM isn't used: {why}" if why else "")


def _merged_beside(source: Source) -> Source | None:
    """The merged weights of the run that an adapter is in, or None."""
    if source.adapter is None:
        return None
    merged = source.adapter.parent / "export" / "merged"
    if not (merged / "config.json").is_file():
        return None
    return Source(str(merged), None, None, str(merged), images_kwargs=source.images_kwargs)


def _of_adapter(cfg: Config, called: str, source: Source) -> str:
    if source.adapter is None:
        return ""
    base = f"vLLM offers the base, too: ask {called}, the model `base` is not the tuned one."
    if not cfg.model.load_in_4bit:
        return base
    return (
        f"{base} {IN_16_BIT} recipe=evaluate with engine.vllm measures what that changes; serve.engine=transformers "
        "serves it as trained."
    )


def _by_llama_cpp(cfg: Config, called: str, ggufs: list[Path]) -> Served:
    name = cfg.model.model_name_or_path
    if not ggufs:
        raise UserError(
            f"serve.engine=llama_cpp: {name} holds no GGUF file; make one: python -m gemma_tune recipe=export "
            f"export=gguf quant=q4_0 model.model_name_or_path={name}"
        )
    if len(ggufs) > 1:
        raise UserError(f"model.model_name_or_path={name}: it holds {len(ggufs)} GGUF files; name {_some(ggufs)}.")
    if importlib.util.find_spec("xllamacpp") is None:
        raise UserError(
            f"serve.engine=llama_cpp: llama.cpp, which serves {ggufs[0]}, isn't installed: pip install "
            "'gemma_tune[gguf]' brings it."
        )
    architecture, template = read_gguf_header(ggufs[0]).architecture, cfg.model.chat_template
    mmproj = mmproj_beside(ggufs[0])
    several = mmproj is None and any(ggufs[0].parent.glob(f"{MMPROJ}*.gguf"))
    note = f"Texts alone are served: several files of towers ({MMPROJ}*.gguf) stand beside it." if several else ""
    served = Served("llama_cpp", called, gguf=ggufs[0], mmproj=mmproj, note=note)
    if template is not None:
        text = template_of(None, template, "")
        if not is_template_file(template):  # with what training writes round an image
            text = template_for_llama_cpp(SimpleNamespace(chat_template=text), mmproj is not None)
        return replace(served, template=without_marks(text))
    if lacks_chat_template(ggufs[0]):
        forms = [family.form for family in FAMILIES.values() if family.gguf == architecture] or ["gemma3"]
        raise UserError(
            f"model.model_name_or_path={ggufs[0]}: it holds no chat template, so llama.cpp would write conversations "
            f"as ChatML, which is not how Gemma was trained; name the template: model.chat_template={forms[0]}, or "
            "the file of the one that it was tuned with."
        )
    return served


def _by_transformers(cfg: Config, called: str, source: Source, ggufs: list[Path]) -> Served:
    gguf = f"name a GGUF file, which llama.cpp serves: {_some(ggufs)}" if ggufs else "export a GGUF file and name that"
    if cfg.serve.api_key is not None:
        raise UserError(
            f"serve.api_key: `transformers serve` knows no keys, so anyone who reaches its port could ask; {gguf}, or "
            "take vLLM."
        )
    if cfg.serve.max_length is not None:
        raise UserError(f"serve.max_length: `transformers serve` has no such limit; leave it out, or {gguf}.")
    if lacking := [package for package in _SERVING if importlib.util.find_spec(package) is None]:
        raise UserError(
            f"serve.engine={cfg.serve.engine}: `transformers serve` needs {', '.join(lacking)}: pip install "
            f"'gemma_tune[serving]' brings it; or {gguf}."
        )
    return Served("transformers", called, source)


def _ggufs_in(name: str) -> list[Path]:
    """The models among a run's GGUF files; a GGUF LoRA is none."""
    return [file for file in gguf_models(resolve(name), "export/*/*.gguf") if _is_model(file)]


def _is_model(file: Path) -> bool:
    try:
        read_gguf_header(file)
    except UserError:
        return False
    return True


def _some(files: list[Path]) -> str:
    return " or ".join(map(str, files[:_NAMED])) + (f" (and {len(files) - _NAMED} more)" if len(files) > _NAMED else "")


def _name_of(model: str) -> str:
    """A model id by what the model is named: a GGUF file, a run, a folder, or a name on the Hub."""
    place, run = resolve(model), run_of(model)
    if is_gguf(model):
        name = place.stem
    elif is_bundled(model):
        name = "tiny"
    elif run:
        name = (run.parent if run.name in (TUNED, ON_GRID) else run).resolve().name
    else:
        name = place.resolve().name if place.is_dir() else model
    return re.sub(r"[^\w./-]+", "-", name, flags=re.ASCII).strip("-./") or "model"
