"""The lines of the table that vLLM gives: what a run exports, served by vLLM and compared with the trained model.

Two questions. Are the files the trained model? Transformers computes them in float32 and compares. Does vLLM compute
what is in them? It does so in bfloat16, so what rounding explains is measured: Transformers computes the same files in
that type, too, and vLLM may be a few times as far away from float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from gemma_tune.config import Config, EngineConfig
from gemma_tune.engines.llama_cpp import TopTokens
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.engines.vllm import VllmEngine
from gemma_tune.engines.vllm_server import PLAIN, VllmOptions, VllmServer, unservable
from gemma_tune.errors import RunError, UserError
from gemma_tune.export.engine_lines import at_least_ok, figures_of
from gemma_tune.export.int4_check import FAIL, OK, UNVERIFIED, WARN, CheckLine
from gemma_tune.export.llama_check import BEST, Forward, agreements_with
from gemma_tune.models.load import load_config, stop_token_ids
from gemma_tune.models.load_weights import load_model
from gemma_tune.models.source import Source, find_source
from gemma_tune.progress import phase

# How far vLLM may be from the trained model, in mean KL: so many times as far as Transformers in the same type, and in
# any case so far. On the embedded model, tuned, in bfloat16: Transformers 1.3e-4, vLLM 1.3e-4 (docs/serving.md).
_TIMES, _LEAST_KL = 4.0, 1e-5
# Of the difference between two log-probabilities, which is twice as far off as each; and as above
_MARGIN_TIMES, _LEAST_MARGIN = 4.0, 1e-3


class LogProbs:
    """Log-probabilities of rows that are kept in memory.

    Attributes:
        rows: Token ids, [T] each.
        log_probs: float32 on the CPU, [T, V] each.
    """

    def __init__(self, rows: Sequence[Sequence[int]], log_probs: Sequence[torch.Tensor]) -> None:
        self.rows, self.log_probs = rows, log_probs

    @classmethod
    def of(cls, model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], name: str) -> LogProbs:
        """Those that a loaded model gives, computed in its own type."""
        return cls(rows, list(TransformersEngine(model, tokenizer).log_probs(rows, name)))

    def logits(self) -> Iterator[torch.Tensor]:
        """See `Forward`."""
        yield from self.log_probs

    def top(self) -> list[TopTokens]:
        """The best tokens, as an engine gives them."""
        best = (row.topk(min(BEST, row.shape[-1])) for row in self.log_probs)
        return [TopTokens(found.indices, found.values) for found in best]


@dataclass(frozen=True)
class Rounding:
    """How far rounding to a type moves probabilities.

    Attributes:
        kl: Mean KL, nats a position.
        margin: Difference of the two best log-probabilities up to which the best token may be another one, nats.
        dtype: The type.
    """

    kl: float
    margin: float
    dtype: str

    @property
    def most_kl(self) -> float:
        """The mean KL that is accepted."""
        return max(_TIMES * self.kl, _LEAST_KL)


def rounding(exact: LogProbs, rounded: LogProbs, dtype: str) -> Rounding:
    """How far a type moves the probabilities of the same files.

    Args:
        exact: What Transformers gives in float32.
        rounded: What it gives in the type.
        dtype: The type.
    """
    (agreement,) = agreements_with(exact, [rounded.top()])
    largest = 0.0
    for wide, narrow in zip(exact.log_probs, rounded.log_probs, strict=True):
        best = wide.topk(2)
        largest = max(largest, (narrow.gather(-1, best.indices) - best.values).abs().max().item())
    return Rounding(agreement.mean_kl, max(_MARGIN_TIMES * largest, _LEAST_MARGIN), dtype)


def vllm_lines(
    cfg: Config,
    vllm: Path,
    places: Mapping[str, str],
    reference: Forward,
    tokenizer: Any,
    base: LogProbs | None = None,
    weights_kl: float = 0.0,
    same: Mapping[str, str] | None = None,
) -> list[CheckLine]:
    """A line for each artifact, loaded by vLLM and asked through its API.

    Args:
        cfg: `model` and `engine`.
        vllm: The `vllm` command.
        places: The artifacts' folders, by their names: `adapter`, `merged`, `w4a16`.
        reference: The trained model on some rows.
        tokenizer: Its tokenizer.
        base: The model that was tuned, on the same rows: an engine that leaves the adapter out gives its answers.
        weights_kl: How far rounding the trained weights to the files' type has moved them, mean KL.
        same: Of an artifact that Transformers can't load, the folder of one that holds the same numbers.
    """
    return [
        _line(cfg, vllm, name, place, reference, tokenizer, base, weights_kl, (same or {}).get(name))
        for name, place in places.items()
    ]


def merged_lines(
    cfg: Config,
    vllm: Path,
    place: Path,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    weights_kl: float,
) -> list[CheckLine]:
    """The line of export/merged: of an adapter's model the base is told from it, too.

    Args:
        cfg: `model` and `engine`.
        vllm: The `vllm` command.
        place: The merged folder.
        model: The trained model, or a PeftModel around it.
        tokenizer: Its tokenizer.
        rows: Token ids.
        weights_kl: See `vllm_lines`.
    """
    trained = LogProbs.of(model, tokenizer, rows, "reference")
    return vllm_lines(
        cfg, vllm, {"merged": str(place)}, trained, tokenizer, base_of(model, tokenizer, rows), weights_kl
    )


def base_of(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]]) -> LogProbs | None:
    """What a model with an adapter gives without it; None where every weight was trained."""
    if not isinstance(model, PeftModel):
        return None
    with model.disable_adapter():
        return LogProbs.of(model, tokenizer, rows, "base")


def _line(
    cfg: Config,
    vllm: Path,
    name: str,
    place: str,
    reference: Forward,
    tokenizer: Any,
    base: LogProbs | None,
    weights_kl: float,
    same: str | None = None,
) -> CheckLine:
    model = replace(cfg.model, model_name_or_path=place, load_in_4bit=False, added_tokens=[], chat_template=None)
    what = f"{name} in vLLM"

    def computed(dtype: str) -> LogProbs:
        phase(f"checking {name}: in Transformers, {dtype}")
        here = replace(model, model_name_or_path=same or place, dtype=dtype, device="cpu")
        loaded = load_model(here, find_source(here), tokenizer, packed=True)
        return LogProbs.of(loaded, tokenizer, reference.rows, name)

    try:
        source = find_source(model)
        if why := unservable(source):
            return CheckLine(what, "served by vLLM", "not run", UNVERIFIED, why)
        dtype = _dtype(source)
        files = computed("float32")
        explained = rounding(files, computed(dtype), dtype)
        (stored,) = agreements_with(reference, [files.top()])
        if stored.mean_kl > max(explained.most_kl, _TIMES * weights_kl):
            must = f"the trained model: KL at most {max(explained.most_kl, _TIMES * weights_kl):.2g}"
            untuned = base is not None and agreements_with(base, [files.top()])[0].mean_kl <= explained.most_kl
            problem = _UNTUNED if untuned else _OTHER
            return CheckLine(what, must, f"its files: {figures_of(stored)}", FAIL, problem)
        found = served_top(vllm, cfg.engine, source, tokenizer, reference.rows, dtype)
        return judged(what, found, files, explained, base)
    except (RunError, UserError, torch.OutOfMemoryError, MemoryError) as error:
        return CheckLine(what, "served by vLLM", "not run", UNVERIFIED, str(error) or type(error).__name__)


def served_top(
    vllm: Path, engine: EngineConfig, source: Source, tokenizer: Any, rows: Sequence[Sequence[int]], dtype: str
) -> list[TopTokens]:
    """vLLM's best tokens after each token of each row.

    Raises:
        EngineUnavailable: vLLM doesn't start, or dies.
    """
    options = VllmOptions(
        dtype=dtype,
        max_length=max(map(len, rows)) + 8,
        most_log_probs=BEST,
        arguments=(*PLAIN, *engine.vllm_args),
    )
    server = VllmServer(vllm, source, options=options)
    with VllmEngine(server, tokenizer, stop_token_ids(tokenizer)) as served:
        return list(served.top_log_probs(rows, BEST, "vLLM"))


def judged(
    what: str, found: Sequence[TopTokens], tuned: Forward, explained: Rounding, base: LogProbs | None
) -> CheckLine:
    """The line of what an engine has answered: the trained model, its base, or neither.

    Args:
        what: The artifact and the engine, for people.
        found: The engine's best tokens.
        tuned: What it must have computed: the artifact, in float32.
        explained: How far rounding moves that.
        base: The model that was tuned.
    """
    (trained,) = agreements_with(tuned, [found], explained.margin)
    must = (
        f"KL at most {explained.most_kl:.2g} (Transformers in {explained.dtype}: {explained.kl:.2g}), the same best "
        f"token beyond margins of {explained.margin:.2g}"
    )
    good = trained.mean_kl <= explained.most_kl and not trained.apart
    if base is None:
        return CheckLine(
            what, must, figures_of(trained), at_least_ok(trained) if good else FAIL, "" if good else _OTHER
        )
    (like_base,) = agreements_with(base, [found], explained.margin)
    (apart,) = agreements_with(tuned, [base.top()], explained.margin)
    line = CheckLine(what, must, f"{figures_of(trained)}; from the base KL {like_base.mean_kl:.2g}", OK)
    if good and apart.mean_kl <= explained.most_kl and not apart.apart:
        return replace(line, verdict=WARN, problem=_ALIKE)
    if not good or like_base.mean_kl <= trained.mean_kl:
        nearer = like_base.mean_kl <= max(explained.most_kl, trained.mean_kl / _TIMES)
        return replace(line, verdict=FAIL, problem=_BASE if nearer else _OTHER)
    return replace(line, verdict=at_least_ok(trained))


_BASE = "The base model answers, and the adapter is not applied: the base is served under the name of what was tuned."
_UNTUNED = "Its files are the base model, and not what was tuned: the adapter in them changes nothing."
_OTHER = (
    "Neither the trained model answers nor its base: another adapter, an adapter of another base, or other weights."
)
_ALIKE = (
    "Training has changed the answers by less than rounding does, so they cannot be told from the base model's; train "
    "for longer."
)


def four_bit_line(trained: LogProbs, served: LogProbs) -> CheckLine:
    """Of a QLoRA adapter: the 4-bit base that it was trained on against the 16-bit base that it is served on."""
    (found,) = agreements_with(served, [trained.top()])
    apart = found.mean_kl > _LEAST_KL
    what = "the adapter on its 4-bit base (trained) against the 16-bit base (served)"
    return CheckLine(what, "said", figures_of(found), WARN if apart else OK, _FOUR_BIT if apart else "")


_FOUR_BIT = (
    "Engines serve the adapter on 16-bit weights, and it was trained on 4-bit ones: what was measured in training is "
    "not quite what is served. Ways out: serve export/merged, which holds the 4-bit weights as numbers; train on the "
    "16-bit base (recipe=lora_sft); train for the int4 file that is served (recipe=tune_to_int4); on a GPU vLLM's "
    "--quantization bitsandbytes serves a 4-bit base. recipe=evaluate of the adapter measures what is served."
)


def _dtype(source: Source) -> str:
    """The type that vLLM computes in: float32 where the folder's is, else bfloat16, in which Gemma was trained."""
    config = load_config(source).get_text_config()
    return "float32" if str(getattr(config, "dtype", None)).removeprefix("torch.") == "float32" else "bfloat16"
