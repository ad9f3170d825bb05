"""Checks before a model is trained, each with one line of result."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn

from gemma_tune.chat import form_of, without_marks
from gemma_tune.chat.own import OwnForm, own_text
from gemma_tune.chat.render import prepared, row_of_text
from gemma_tune.config.adapter import ALL_LINEAR
from gemma_tune.errors import UserError
from gemma_tune.models.adapters.adapter import weights_beside
from gemma_tune.models.contexts import evaluating
from gemma_tune.models.estimate.activations import kernel_of
from gemma_tune.models.estimate.memory import in_unit
from gemma_tune.models.estimate.size import empty_model
from gemma_tune.models.family import BY_DOCUMENT, FAMILIES
from gemma_tune.models.source import find_source
from gemma_tune.train.batches import has_media
from gemma_tune.train.check_inputs import CheckInputs
from gemma_tune.train.media_check import media_line

_LOOKED_AT, _COMPARED, _KV_TOKENS = 1000, 20, 64
_SAME_LOSS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative; a cache changes the order of summation


class CheckFailed(Exception):
    """A check's message for the user: what is wrong, where, and how to fix it."""


class CheckWarning(str):
    """What a check found that the user should know, and that is no reason to stop."""


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _trained_share(x: CheckInputs) -> str:
    trained, tokens = x.rows.trained_tokens, x.rows.tokens
    rows = x.rows.read - len(x.rows.dropped)
    if trained == 0:
        raise CheckFailed(
            "the loss counts no token of any row; an assistant's answer must lie within train.max_length."
        )
    if x.chats and trained >= tokens - rows:
        raise CheckFailed("the loss counts every token, the prompts', too: the rows' messages have no user's turn.")
    kind = "the assistant's answers" if x.chats else "running text, all of it"
    return f"{trained / tokens:.1%} of {tokens:,} tokens ({kind})"


def _stop_token(x: CheckInputs) -> str:
    tokens = form_of(x.tokenizer).stop_tokens if x.chats else (x.tokenizer.eos_token,)
    ids = dict(zip(tokens, x.tokenizer.convert_tokens_to_ids(list(tokens)), strict=True))
    trained = [token for token, i in ids.items() if i in x.rows.trained_ids]
    if not trained and not x.chats:
        return CheckWarning(
            f"none is trained, because every text is cut before its {tokens[0]} (train.max_length): the model will not "
            "learn to stop."
        )
    if not trained:
        raise CheckFailed(
            f"no row trains {' or '.join(tokens)}, so the model would not learn to stop: all are cut before it. Raise "
            f"train.max_length={x.cfg.train.max_length}."
        )
    for token in trained:
        if ids[token] not in x.base.generation_config.eos_token_id:
            raise CheckFailed(f"{token} is trained, but generation_config.json would not stop at it.")
    return f"{' and '.join(trained)} trained, and in generation_config.json"


def _one_bos(x: CheckInputs) -> str:
    bos, looked = x.tokenizer.bos_token_id, x.rows.rendered[:_LOOKED_AT]
    for row, record in zip(looked, x.rows.records, strict=False):
        if row.input_ids[0] != bos or row.input_ids.count(bos) != 1:
            raise CheckFailed(
                f"{record.where}: {row.input_ids.count(bos)} <bos> in this row; there must be one, at its start."
            )
    return f"one, at the start of each row ({_rows(len(looked))} looked at)"


def _template(x: CheckInputs) -> str:
    form = form_of(x.tokenizer)
    chats = [(r, row) for r, row in zip(x.rows.records, x.rows.rendered[:_COMPARED], strict=False) if r.messages]
    for record, row in chats:
        messages = prepared(form, record.messages or [], record.tools)
        if isinstance(form, OwnForm):  # in its child process; a program of others doesn't run in this one
            text = own_text(replace(form, source=without_marks(form.source), marked=False), messages, record.tools)[0]
        else:
            text = x.tokenizer.apply_chat_template(messages, tools=record.tools, tokenize=False, as_generated=True)
        served = row_of_text(x.tokenizer, messages, text).input_ids
        if served[: len(row.input_ids)] != row.input_ids:
            raise CheckFailed(
                f"{record.where}: the template that will be saved gives other tokens than are trained on."
            )
    return f"{form.name}; the one that will be saved gives the same tokens ({_rows(len(chats))} compared)"


def _adapters(x: CheckInputs) -> str:
    if x.cfg.adapter.peft_type == "none":
        if x.counts.trainable != x.counts.total - x.frozen:
            raise CheckFailed(
                f"{x.counts.trainable:,} of {x.counts.total:,} weights are trained; adapter=none trains all of them."
            )
        if x.frozen:
            return f"none; all weights of the language model are trained but for {x.frozen:,} that are kept as they are"
        return f"none; all {x.counts.total:,} weights of the language model are trained"
    family = FAMILIES[x.base.config.model_type]
    sizes = {
        n: (m.in_features, m.out_features)
        for n, m in empty_model(x.base.config).named_modules()
        if isinstance(m, nn.Linear) and ".layers." in n
    }
    wrappers = [m for m in x.base.modules() if isinstance(m, ParamWrapper)]  # around tensors of fused experts
    placed = {n: m for n, m in x.base.named_modules() if isinstance(m, LoraLayer) and not isinstance(m, ParamWrapper)}
    outside = sorted(set(placed) - set(sizes))
    if outside:
        raise CheckFailed(f"adapter.target_modules reaches {outside[0]}, which is no linear layer of the blocks.")
    formula = sum(
        m.r["default"] * sum(sizes[n]) + (sizes[n][1] if m.use_dora["default"] else 0) for n, m in placed.items()
    )
    formula += sum(m.num_experts * m.r["default"] * (m.in_features + m.out_features) for m in wrappers)
    formula += weights_beside(x.base)
    if formula != x.counts.trainable:
        raise CheckFailed(
            f"{x.counts.trainable:,} weights are trained, and r·(in + out) over all adapted layers is {formula:,}."
        )
    continued = find_source(x.cfg.model).adapter is not None  # has the layers that it has
    everywhere = x.cfg.adapter.target_modules == ALL_LINEAR and x.cfg.adapter.layers_to_transform is None
    if everywhere and not continued and len(placed) != x.shape.linear_layers:
        raise CheckFailed(f"adapters are on {len(placed)} of {x.shape.linear_layers} linear layers of {family.name}.")
    experts = f" and {len(wrappers)} tensors of experts" if wrappers else ""
    where = f"{len(placed)} of {x.shape.linear_layers} linear layers{experts}"
    return f"on {where}, {formula:,} weights as r·(in + out) gives"


def _quantized(x: CheckInputs) -> str:
    c = x.counts
    if not x.cfg.model.load_in_4bit:
        return f"nothing; the weights are {x.cfg.model.dtype}"
    if c.four_bit != x.shape.linear_parameters:
        raise CheckFailed(f"{c.four_bit:,} of {x.shape.linear_parameters:,} weights of the linear layers are in 4 bit.")
    return f"{c.four_bit:,} of {c.total:,} weights ({c.four_bit / c.total:.1%}); the rest are {x.cfg.model.dtype}"


def _experts(x: CheckInputs) -> str | None:
    c = x.counts
    if not c.experts:
        return None
    said = f"{c.experts:,} weights ({c.experts / c.total:.1%}) in {c.expert_tensors} fused tensors, {c.expert_bits} bit"
    if x.cfg.adapter.peft_type == "none":
        return f"{said}, trained"
    if c.experts_adapted:
        return f"{said}, with an adapter for each expert; 4 bit doesn't reach them"
    return f"{said}: frozen; 4 bit doesn't reach them, and adapters by adapter.target_parameters"


def _shared_keys_and_values(x: CheckInputs) -> str | None:
    shared = getattr(x.base.config, "num_kv_shared_layers", 0)
    if not shared:
        return None
    row = next(iter(x.rows.rendered))
    ids = torch.tensor([row.without_media[:_KV_TOKENS]], device=x.base.get_input_embeddings().weight.device)
    with evaluating(x.model):
        losses = [x.model(input_ids=ids, labels=ids, use_cache=cache).loss.item() for cache in (True, False)]
    if abs(losses[0] - losses[1]) > _SAME_LOSS[x.base.dtype] * abs(losses[0]):
        raise CheckFailed(
            f"{shared} layers share keys and values, and the loss is {losses[0]:.4f} with a cache and {losses[1]:.4f} "
            "without: this version of Transformers loses them in training; take the one of constraints.txt."
        )
    return f"{shared} layers share them; the loss is the same with a cache and without ({losses[1]:.4f})"


def _media(x: CheckInputs) -> str | None:
    try:
        return media_line(x.model, x.tokenizer, x.rows.rendered[:_LOOKED_AT])
    except ValueError as error:
        raise CheckFailed(str(error)) from error


def _accumulation(x: CheckInputs) -> str:
    if not x.weighs_tokens:
        raise CheckFailed(
            "each batch counts the same whatever its number of tokens: this model class doesn't accept "
            "num_items_in_batch."
        )
    return "weighted by tokens, over all forward passes of a step"


def _beginnings(x: CheckInputs) -> str | None:
    if x.cfg.train.train_sampling_strategy != "group_by_beginning":
        return None
    on_gpu = x.base.get_input_embeddings().weight.device.type != "cpu"
    if (kernel := kernel_of(x.cfg, x.shape, on_gpu)) != BY_DOCUMENT:
        fix = "model.attn_implementation=by_document computes once what rows of a batch begin with alike."
        if BY_DOCUMENT not in (family := FAMILIES[x.base.config.model_type]).attention:
            fix = f"{family.name} has no kernel that doesn't; leave it out."
        return CheckWarning(
            f"group_by_beginning saves nothing: attention is {kernel}, which computes whole rows; {fix}"
        )
    if has_media(x.rows.dataset):
        return CheckWarning("group_by_beginning saves nothing in batches with media, whose rows are computed whole.")
    return "what rows of a batch begin with alike is computed once"


def _dtype(x: CheckInputs) -> str:
    kinds = {p.dtype for p in x.base.parameters() if p.is_floating_point()}
    if torch.float16 in kinds:
        raise CheckFailed("float16 overflows on Gemma 3's activations; set model.dtype=bfloat16 or float32.")
    trained = {p.dtype for p in x.base.parameters() if p.requires_grad}
    rounds = "; small updates are rounded away in bfloat16: model.dtype=float32 keeps them"
    said = f"weights {_types(kinds)}, trained ones {_types(trained)}"
    return said + (rounds if torch.bfloat16 in trained else "")


def _types(kinds: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(k).removeprefix("torch.") for k in kinds))


def _memory(x: CheckInputs) -> str:
    needs, free = x.memory
    return f"about {in_unit(needs)}, estimated; {in_unit(free)} are free"


CHECKS: dict[str, Callable[[CheckInputs], str | None]] = {
    "trained share": _trained_share,
    "stop token": _stop_token,
    "<bos>": _one_bos,
    "template": _template,
    "adapters": _adapters,
    "experts": _experts,
    "in 4 bit": _quantized,
    "shared keys and values": _shared_keys_and_values,
    "images and sounds": _media,
    "gradient accumulation": _accumulation,
    "beginnings": _beginnings,
    "types": _dtype,
    "memory": _memory,
}

# No gradient-accumulation check: DPO averages over pairs, not tokens.
CHECKS_FOR_PAIRS = tuple(name for name in CHECKS if name != "gradient accumulation")
CHECKS_FOR_REWARD_MODEL = ("<bos>", "template", "experts", "types", "memory")
# Prompts have no answer to learn from.
CHECKS_FOR_PROMPTS = ("<bos>", "adapters", "experts", "in 4 bit", "images and sounds", "types", "memory")


def preflight(inputs: CheckInputs, names: Collection[str] = tuple(CHECKS)) -> list[str]:
    """Runs the checks that apply to this model.

    Args:
        inputs: What they look at.
        names: The checks to run.

    Returns:
        A line for each check.

    Raises:
        UserError: With every check that failed.
    """
    lines, failed = [], []
    for name, check in ((name, check) for name, check in CHECKS.items() if name in names):
        try:
            said = check(inputs)
        except CheckFailed as error:
            failed.append(f"✗ {name}: {error}")
            continue
        if said is not None:
            lines.append(f"{'warning:' if isinstance(said, CheckWarning) else '✓'} {name}: {said}")
    if failed:
        raise UserError(*failed)
    return lines
