"""The embedded model before training: Gemma 3's class with small widths, and a start that can nearly copy."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

EMBEDDING_STD = 0.06
# The branches of a layer are normed to this share of the residual's unit: at 1 they would drown the embeddings.
BRANCH_GAIN = 0.7
# Of a head's rotary frequencies, so many of the fastest tell a neighbour from a neighbour's neighbour.
FAST = 8
OUTLIERS = 16  # one channel in so many gets weights that are
OUTLIER = 7.0  # times as large as they were


def build_model(tokenizer: Any, seed: int) -> Gemma3ForCausalLM:
    """A Gemma 3 text model with all widths multiples of 32, five sliding layers to one full.

    Args:
        tokenizer: Gives the vocabulary's size and the special ids.
        seed: Of the random weights.
    """
    torch.manual_seed(seed)
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=256,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops,
    )
    model = Gemma3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=config.pad_token_id, bos_token_id=config.bos_token_id, eos_token_id=stops
    )
    with torch.no_grad():
        start_with_induction(model, seed)
    return model


def start_with_induction(model: Gemma3ForCausalLM, seed: int) -> None:
    """Sets weights of some heads so that they roughly repeat what followed the last time.

    Copying from the prompt needs two layers to work together, and is found late in training or, at this size in half
    an hour, not at all (In-context Learning and Induction Heads, Olsson et al. 2022). So the parts are laid out, and
    training makes them fit (as in Mimetic Initialization, Trockman and Kolter 2023):

    - the first layer's first key head reads a direction that all embeddings share, and its queries are the same turned
      back by one position: through the rotary embedding it looks at the token before, and writes a part of that
      token's embedding into a space of its own;
    - in the layers after it, queries read the same part of the present token, and keys that space: they look at the
      place after the present token's last occurrence, and repeat what stands there.

    Args:
        model: Freshly made.
        seed: Of the random directions.
    """
    rng = torch.Generator().manual_seed(seed)
    c = model.config
    width, dim, group = c.hidden_size, c.head_dim, c.num_attention_heads // c.num_key_value_heads
    shared = torch.randn(width, generator=rng)
    shared /= shared.norm()

    def subspace() -> torch.Tensor:
        """Rows of length one, [head_dim, hidden_size], none along the shared direction."""
        rows = torch.linalg.qr(torch.randn(width, width, generator=rng))[0][:dim]
        rows = rows - torch.outer(rows @ shared, shared)
        return rows / rows.norm(dim=1, keepdim=True)

    def queries(attention: Any, rows: torch.Tensor) -> None:
        attention.q_proj.weight[: group * dim] = rows.repeat(group, 1)

    def passes_on(attention: Any, read: torch.Tensor, write: torch.Tensor) -> None:
        attention.v_proj.weight[:dim] = read
        attention.o_proj.weight[:, : group * dim] = write.T.repeat(1, group) / group

    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=EMBEDDING_STD, generator=rng)
    embedding -= torch.outer(embedding @ shared, shared)
    embedding += EMBEDDING_STD * width**0.5 * shared

    half = dim // 2
    turn = c.rope_parameters["sliding_attention"]["rope_theta"] ** (-torch.arange(half) / half)
    fast = (torch.arange(half) < FAST).float()
    here = torch.cat([fast, fast])
    before = torch.cat([fast * (turn.cos() + turn.sin()), fast * (turn.cos() - turn.sin())])
    part, space = subspace(), subspace()

    first, *rest = [layer.self_attn for layer in model.model.layers]
    first.k_proj.weight[:dim] = torch.outer(here, shared) + 0.002 * torch.randn(dim, width, generator=rng)
    queries(first, torch.outer(before, shared) + 0.002 * torch.randn(dim, width, generator=rng))
    passes_on(first, part, space)
    for attention in rest:
        attention.k_proj.weight[:dim] = space
        queries(attention, part)
        repeated = subspace()
        passes_on(attention, repeated, repeated)
    for layer in model.model.layers:
        layer.self_attn.q_norm.weight.fill_(1.0)  # the norm multiplies by 1 + weight: attention begins sharp
        layer.self_attn.k_norm.weight.fill_(1.0)
        layer.post_attention_layernorm.weight.fill_(BRANCH_GAIN - 1)
        layer.post_feedforward_layernorm.weight.fill_(BRANCH_GAIN - 1)


def with_outliers(model: Gemma3ForCausalLM, seed: int) -> None:
    """Makes some input channels of every linear layer larger; the model computes the same.

    Large models grow channels whose weights or activations stand out, and those make rounding to 4 bit cost something
    (LLM.int8, Dettmers et al. 2022; AWQ, Lin et al. 2023). A model trained for half an hour has none, and rounding
    costs it nothing to be seen. So a share of the columns is multiplied, and what feeds them divided by as much: the
    norm before, the rows of `v_proj` before `o_proj`, those of `up_proj` before `down_proj`.

    Args:
        model: Trained, float32.
        seed: Of the channels.
    """
    rng = torch.Generator().manual_seed(seed)
    groups = model.config.num_attention_heads // model.config.num_key_value_heads

    def scales(channels: int) -> torch.Tensor:
        return torch.ones(channels).masked_fill(torch.rand(channels, generator=rng) < 1 / OUTLIERS, OUTLIER)

    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, fed in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.pre_feedforward_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            scale = scales(len(norm.weight))
            norm.weight.data = (1 + norm.weight.data) / scale - 1
            for linear in fed:
                linear.weight.data.mul_(scale)
        scale = scales(attention.v_proj.out_features)
        attention.v_proj.weight.data.div_(scale[:, None])
        per_head = scale.view(-1, 1, attention.head_dim).expand(-1, groups, -1)  # a group shares its values
        attention.o_proj.weight.data.mul_(per_head.reshape(-1))
        scale = scales(mlp.up_proj.out_features)
        mlp.up_proj.weight.data.div_(scale[:, None])
        mlp.down_proj.weight.data.mul_(scale)
