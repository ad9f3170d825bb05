"""Memory of one forward and backward pass: what layers keep, attention's scores, and the head."""

from __future__ import annotations

from gemma_tune.config import Config
from gemma_tune.models.estimate.size import ModelSize
from gemma_tune.models.family import BY_DOCUMENT
from gemma_tune.models.kernels.document_attention import PRODUCTS
from gemma_tune.models.kernels.documents import BLOCK, MULTIPLE
from gemma_tune.models.kernels.tiled_head import COLUMNS
from gemma_tune.models.sharding import recomputes, sharding_of

_LOGIT_ROWS = 256  # positions whose logits are held at once
# TRL's head: tokens and columns of a tile, and the float32 copies of it that torch's operations hold in its backward
# pass, beside the product and a mask
_TRL_TOKENS, _TRL_COLUMNS, _TRL_COPIES = 4096, 32_768, 7
_OFFLOADED_LATE = 5  # activations that TRL's offloading keeps on the GPU while they are copied (max_fwd_stash_size)
_FLOAT32 = 4.0


def longest_possible(cfg: Config) -> int:
    """Tokens of the longest row while none is known: `train.max_length`, and of a pair that of both answers."""
    return cfg.train.max_length * cfg.traits.sequences


def tokens_of_row(cfg: Config, longest: int) -> int:
    """Tokens of one example of a forward pass at most; `train.max_length` where rows are packed."""
    return cfg.train.max_length if cfg.train.packing else longest


def offloads(cfg: Config) -> bool:
    """Whether what the backward pass needs waits in the host's memory (TRL's `activation_offloading`)."""
    return bool(cfg.train.extra.get("activation_offloading"))


def kernel_of(cfg: Config, shape: ModelSize, on_gpu: bool) -> str:
    """What computes attention while it trains."""
    asked = cfg.model.attn_implementation
    by_document = not on_gpu and asked is None and shape.attention == "sdpa" and shape.sliding_layers
    return BY_DOCUMENT if by_document else asked or shape.attention


def fuses(cfg: Config, on_gpu: bool) -> bool:
    """Whether norms and adapted layers are ours (`model.fused_layers`); compiled ones take their place."""
    fused = not on_gpu if cfg.model.fused_layers is None else cfg.model.fused_layers
    return fused and not cfg.train.torch_compile


def has_our_head(cfg: Config, on_gpu: bool) -> bool:
    """Whether the head is computed in our tiles (`train.tiled_head`)."""
    return not on_gpu if cfg.train.tiled_head is None else cfg.train.tiled_head


def rounds(cfg: Config) -> bool:
    """Whether a training multiplies with weights on a grid; of a method with stages it is the stage that does."""
    return cfg.traits.trains and cfg.traits.quantizes and not cfg.traits.stages


def trains_embedding(cfg: Config) -> bool:
    """Whether the embedding is trained, and the head tied to it; in QAT not where the files hold it in 16 bit."""
    return cfg.adapter.peft_type == "none" and not (rounds(cfg) and cfg.quant.embedding_grid is None)


def shared_prompts(cfg: Config, shape: ModelSize, on_gpu: bool) -> int:
    """Of how many prompts at most a forward pass computes each once for all of its completions (compact batches).

    TRL deals the completions of a generation out to its passes at random. 0: none is shared.
    """
    train = cfg.train
    assert train.per_device_train_batch_size is not None  # filled in before a run begins
    compact = train.compact_batches and kernel_of(cfg, shape, on_gpu) == BY_DOCUMENT and not shape.media_tokens
    if not (cfg.traits.rewarded and compact) or cfg.adapter.lora_dropout:
        return 0
    rows = train.per_device_train_batch_size
    return min(rows, -(-rows * train.passes_per_generation // train.num_generations))


def computed_tokens(cfg: Config, shape: ModelSize, longest: int, on_gpu: bool) -> int:
    """Tokens of a forward pass at most: with rewards a prompt that completions share counts once (compact batches)."""
    assert cfg.train.per_device_train_batch_size is not None
    rows, each = cfg.train.per_device_train_batch_size, tokens_of_row(cfg, longest)
    if not (prompts := shared_prompts(cfg, shape, on_gpu)):
        return rows * each
    completion = _completion(cfg, each)
    return prompts * (each - completion) + rows * completion


def _completion(cfg: Config, each: int) -> int:
    return min(each, cfg.train.max_completion_length or each)


def of_layer(cfg: Config, shape: ModelSize, act: float, stream: float, kernel: str, fused: bool = False) -> float:
    """Bytes that an average layer keeps of each token, without attention's scores.

    A norm keeps its input: ours in its own type, Transformers' in float32, and where it is trained what its weight is
    multiplied with, too. In mixed precision each product has a copy of its input in bfloat16: five in place of two.
    SDPA and plain products keep the keys and values of all queries' heads, which grouped ones are copied to, and the
    output.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        act: Bytes of a number that is multiplied.
        stream: Bytes of a number of the residual stream; more than `act` in mixed precision.
        kernel: What computes attention.
        fused: Whether norms are ours.
    """
    full = cfg.adapter.peft_type == "none"
    products = shape.layer_width + (shape.other_width if full else 0)
    if stream > act:
        products += 3 * shape.hidden_size
    if kernel in ("sdpa", "eager"):
        products += 3 * shape.query_width - shape.key_width
    norms = shape.norm_width * _FLOAT32 * (2 if full else 1)
    if fused:  # two are given the residual stream, the others what products gave
        norms = shape.norm_width * act + 2 * shape.hidden_size * (stream - act)
    return products * act + norms


def activations(
    cfg: Config, shape: ModelSize, act: float, stream: float, longest: int, on_gpu: bool, again: bool = True
) -> float:
    """Bytes that the backward pass needs of the forward pass, with the masks and scores of attention.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        act: Bytes of a number that is multiplied.
        stream: Bytes of a number of the residual stream.
        longest: Tokens of the longest row, after cutting.
        on_gpu: Whether it trains on a GPU.
        again: Whether those that are computed again in the backward pass are left out.
    """
    tokens = computed_tokens(cfg, shape, longest, on_gpu)
    row = tokens_of_row(cfg, longest)
    pairs = float(tokens * (tokens if cfg.train.packing else row))  # packed rows are joined to one
    attention, masks, scores = kernel_of(cfg, shape, on_gpu), 0.0, 0.0
    if attention in ("eager", "sdpa"):  # one mask for full attention and one for sliding windows; bool
        masks = 2 * pairs
    if attention == "eager":  # the scores of all heads: in the model's type, and float32 for softmax and its backward
        scores = pairs * shape.num_attention_heads * (act + 8.0)
    elif attention == BY_DOCUMENT:  # what softmax gives, and for each kind of layer a bias
        full, sliding = _attended(cfg, shape, longest)
        masks, share = (full + sliding) * act, shape.sliding_layers / shape.num_hidden_layers
        scores = (share * sliding + (1 - share) * full) * shape.num_attention_heads * act
    elif attention == "sdpa":  # each call makes its mask a bias of the model's type
        scores = pairs * act
    one_layer = tokens * of_layer(cfg, shape, act, stream, attention, fuses(cfg, on_gpu)) + scores
    given = tokens * shape.stream_width * stream
    beside = masks + cast_weights(cfg, shape, act, stream)
    if offloads(cfg):
        return min(_OFFLOADED_LATE, shape.num_hidden_layers) * given + one_layer + beside
    if recomputes(cfg) and again:
        return shape.num_hidden_layers * given + one_layer + beside
    return shape.num_hidden_layers * one_layer + beside


def cast_weights(cfg: Config, shape: ModelSize, act: float, stream: float) -> float:
    """Bytes of the copies that are multiplied with in place of weights: in bfloat16 in mixed precision, rounded in QAT.

    Of weights that are trained torch keeps those in bfloat16 until the end of a forward pass, and the backward pass
    needs all of them; of others, and of rounded ones, those of one layer where it is computed again.
    """
    if (stream <= act and not rounds(cfg)) or cfg.model.load_in_4bit:
        return 0.0
    again = recomputes(cfg) and (cfg.adapter.peft_type != "none" or rounds(cfg))
    layers = 1 if again else shape.num_hidden_layers
    of_layers = (shape.linear_parameters + shape.expert_parameters) * act * layers / shape.num_hidden_layers
    on_grid = rounds(cfg) and cfg.quant.embedding_grid is not None
    return of_layers + (shape.vocab_size * shape.hidden_size * _FLOAT32 if on_grid else 0.0)


def logits(cfg: Config, shape: ModelSize, act: float, stream: float, longest: int, on_gpu: bool) -> float:
    """Bytes of the head: logits of some positions at once, and what our head, tile by tile, holds besides.

    Of one that isn't trained those are the states of trained positions, taken to be all, and their gradients; of one
    that is, the gradient that its tiles are summed up in, and what is added to it at once. In mixed precision there is
    a copy of the head. TRL's on a CPU makes larger tiles.

    Args:
        cfg: The configuration.
        shape: The model's sizes.
        act: Bytes of a number that is multiplied.
        stream: Bytes of a number of the residual stream.
        longest: Tokens of the longest row, after cutting.
        on_gpu: Whether it trains on a GPU.
    """
    if cfg.traits.classifies:
        return 0.0
    head = shape.vocab_size * shape.hidden_size
    copied = head * act if stream > act else 0.0
    tiled, tokens = has_our_head(cfg, on_gpu), computed_tokens(cfg, shape, longest, on_gpu)
    ours = cfg.traits.quantizes or cfg.train.loss is not None
    if not tiled and not ours and not on_gpu:  # without Triton
        tile = min(tokens, _TRL_TOKENS) * min(shape.vocab_size, _TRL_COLUMNS)
        return tile * (_TRL_COPIES * _FLOAT32 + act + 1) + copied
    if not tiled or ours:
        return 3 * _LOGIT_ROWS * shape.vocab_size * _FLOAT32 + copied
    held = 2 * tokens * shape.hidden_size * act
    if cfg.adapter.peft_type == "none":
        held = head * _FLOAT32 + min(shape.vocab_size, COLUMNS) * shape.hidden_size * act
    return _LOGIT_ROWS * shape.vocab_size * act + held + copied


def offloaded(cfg: Config, shape: ModelSize, act: float, stream: float, longest: int) -> float:
    """Bytes of activations that wait in the host's memory, of one process."""
    tokens = computed_tokens(cfg, shape, longest, on_gpu=True)
    each = shape.stream_width * stream if recomputes(cfg) else of_layer(cfg, shape, act, stream, "")
    return shape.num_hidden_layers * tokens * each


def stream_bytes(cfg: Config, size: float, act: float) -> float:
    """Bytes of a number of the residual stream: those of a weight, but of sharded ones those that are gathered."""
    return act if sharding_of(cfg).shards > 1 else max(size, act)


def _attended(cfg: Config, shape: ModelSize, longest: int) -> tuple[float, float]:
    """Pairs of a query and a key that attention by document computes in a full and in a sliding layer, at most.

    A block of queries meets the keys before it, of a window those in it, and a completion's its whole prompt; it is
    filled up. In full layers documents above `PRODUCTS` tokens are torch's kernel's, which keeps nothing.
    """
    tokens, near = computed_tokens(cfg, shape, longest, on_gpu=False), shape.sliding_window + BLOCK
    near = -(-near // MULTIPLE) * MULTIPLE
    prompts = shared_prompts(cfg, shape, on_gpu=False)
    if not prompts:
        return tokens * (min(longest, PRODUCTS) + BLOCK) / 2, tokens * min((longest + BLOCK) / 2, near)
    each = tokens_of_row(cfg, longest)
    completion = _completion(cfg, each)
    prompt = each - completion
    begin, own = prompts * prompt, tokens - prompts * prompt
    met = prompt + (completion + BLOCK) / 2
    full = begin * (min(prompt, PRODUCTS) + BLOCK) / 2 + own * met
    return full, begin * min((prompt + BLOCK) / 2, near) + own * min(met, near)
