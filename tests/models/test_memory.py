"""The estimate of memory, part by part: what each of several processes holds, what attention and offloading need."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import small_models
import torch
import transformers
from transformers import AutoConfig

from gemma_tune.cli.compose import compose_config
from gemma_tune.config import Config, ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.estimate import capacity
from gemma_tune.models.estimate.memory import estimate, host_memory
from gemma_tune.models.estimate.size import ModelSize, empty_model, published_size, size_of
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.kernels.document_attention import by_document
from gemma_tune.models.published import published
from gemma_tune.models.sharding import sharding_of
from gemma_tune.plan.known_models import options, planned_models

EIGHT = ["launch.num_processes=8"]
TWO_MACHINES = [*EIGHT, "launch.num_nodes=2"]  # composed for a dry run, which asks for no other machine
KINDS = {
    "gemma1": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3_text", "gemma3n": "gemma3n_text",
    "gemma4_e2b": "gemma4_text", "gemma4_26b": "gemma4_text", "gemma4_31b": "gemma4_text",
    "gemma4_12b": "gemma4_unified_text",
}  # fmt: skip


def composed(recipe: str, model: str, *words: str) -> tuple[Config, ModelSize]:
    cfg = compose_config(recipe, [f"model={model}", "data=sample", "dry_run=true", *words])
    size = published_size(cfg.model.model_name_or_path)
    assert size is not None
    return cfg, size


@pytest.mark.parametrize("name", KINDS)
def test_weights_in_and_outside_of_the_layers(name: str) -> None:
    text = AutoConfig.for_model(KINDS[name], **small_models.MODELS[name][1])
    size = size_of(text)
    layers: Counter[str] = Counter()
    outside = 0
    for parameter, p in empty_model(text).named_parameters():
        if found := re.match(r"model\.layers\.(\d+)\.", parameter):
            layers[found[1]] += p.numel()
        else:
            outside += p.numel()
    assert size.layer_parameters == max(layers.values()) and size.outer_parameters == outside
    assert outside + sum(layers.values()) == size.parameters and len(layers) == size.num_hidden_layers


@pytest.mark.parametrize("name", KINDS)
def test_what_a_layer_is_given_for_each_token(name: str) -> None:
    text, tokens = AutoConfig.for_model(KINDS[name], **small_models.MODELS[name][1]), 8
    model = getattr(transformers, FAMILIES[KINDS[name]].language_class)(text)
    given = []

    def look(_: object, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        tensors = [t for t in (*arguments, named.get("per_layer_input")) if isinstance(t, torch.Tensor)]
        given.append(sum(t.numel() for t in tensors) / tokens)

    model.model.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    model(input_ids=torch.randint(3, 100, (1, tokens)), use_cache=False)
    assert given == [size_of(text).stream_width]


def test_masks_of_long_rows() -> None:
    """SDPA saves for each layer its mask as a bias, as counted here; FlashAttention takes no mask."""
    text, tokens = AutoConfig.for_model("gemma3_text", **small_models.MODELS["gemma3_text"][1]), 256
    model = transformers.Gemma3ForCausalLM(text).train()
    model.set_attn_implementation("sdpa")
    biases, masks = {}, {}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (tokens, tokens):
            biases[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def see(_: object, arguments: object, named: dict[str, torch.Tensor]) -> None:
        masks[named["attention_mask"].data_ptr()] = named["attention_mask"].untyped_storage().nbytes()

    for layer in model.model.layers:
        layer.register_forward_pre_hook(see, with_kwargs=True)
    two_rows = torch.cat([torch.arange(tokens // 2)] * 2)[None]
    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        model(input_ids=torch.randint(3, 100, (1, tokens)), position_ids=two_rows, use_cache=False)
    words = ["train.packing=true", "train.per_device_train_batch_size=1", f"train.max_length={tokens}"]
    words.append("model.attn_implementation=sdpa")
    plain, size = composed("full_sft", "gemma3_1b_it", *words)[0], size_of(text)
    with_masks = estimate(plain, size, False, tokens)["activations"]
    plain.model.attn_implementation = "flash_attention_2"
    # SDPA keeps the keys and values of all queries' heads, and its output, besides
    heads = tokens * text.num_hidden_layers * (3 * size.query_width - size.key_width) * 4
    counted = sum(biases.values()) + sum(masks.values()) + heads
    assert with_masks - estimate(plain, size, False, tokens)["activations"] == pytest.approx(counted / 2**30)


def test_what_attention_by_document_keeps() -> None:
    """The results of softmax of all blocks, as counted here; on a GPU it isn't the default."""
    text, tokens = AutoConfig.for_model("gemma3_text", **small_models.MODELS["gemma3_text"][1]), 512
    model, kept = transformers.Gemma3ForCausalLM(text).train(), {}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 3 and torch.allclose(tensor.sum(-1), torch.ones(()), atol=1e-4):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with by_document(model), torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        model(input_ids=torch.randint(3, 100, (1, tokens)), use_cache=False)
    words = ["train.packing=false", "train.per_device_train_batch_size=1", f"train.max_length={tokens}"]
    plain, size = composed("full_sft", "gemma3_1b_it", *words)[0], size_of(text)
    ours, on_gpu = (estimate(plain, size, False, tokens, on_gpu=gpu)["activations"] for gpu in (False, True))
    plain.model.attn_implementation = "sdpa"
    assert estimate(plain, size, False, tokens, on_gpu=True)["activations"] == on_gpu
    plain.model.attn_implementation = "flash_attention_2"
    biases = (512 * 288 + 512 * 96) * 4
    found = (ours - estimate(plain, size, False, tokens)["activations"]) * 2**30 - biases
    assert found == pytest.approx(sum(kept.values()), rel=0.03) and found >= sum(kept.values())


def test_ddp_keeps_everything_whole() -> None:
    one, size = composed("full_sft", "gemma3_1b_it")
    several, _ = composed("full_sft", "gemma3_1b_it", *EIGHT)
    alone, each = (estimate(cfg, size, True, 1024) for cfg in (one, several))
    assert each.pop("DDP's buckets") == alone["gradients"]
    assert each.pop("total") == pytest.approx(alone.pop("total") + alone["gradients"])
    assert each == alone


@pytest.mark.parametrize(
    ("words", "shards"),
    [
        (EIGHT, 8), (TWO_MACHINES, 8), ([*TWO_MACHINES, "parallel.shard_within_node=false"], 16),
        ([*EIGHT, "parallel.shard_within_node=true"], 8), (["launch.num_nodes=4"], 4),
    ],
)  # fmt: skip
def test_fsdp2_shares_what_does_not_depend_on_the_rows(words: list[str], shards: int) -> None:
    one, size = composed("full_sft", "gemma3_27b_it")
    several, _ = composed("full_sft", "gemma3_27b_it", *words, "parallel=fsdp2")
    assert sharding_of(several).shards == shards
    alone, each = (estimate(cfg, size, True, 1024) for cfg in (one, several))
    for part in ("weights", "gradients", "optimizer"):
        assert each[part] == pytest.approx(alone[part] / shards)
    # What is gathered is in bfloat16 already, and so are the numbers between layers
    narrow, _ = composed("full_sft", "gemma3_27b_it", "model.dtype=bfloat16")
    assert each["activations"] == estimate(narrow, size, False, 1024)["activations"]
    # Two layers' weights and gradients in bfloat16, those of embeddings and head, and nothing of the others
    assert each["gathered"] == pytest.approx(2 * 2 * (1.41 + 2 * 0.4129) * 1e9 / 2**30, rel=1e-3)


def test_a_machine_of_one_process_has_nothing_to_share() -> None:
    with pytest.raises(UserError, match=r"shard_within_node=true with one process on each machine shares nothing"):
        composed("full_sft", "gemma3_1b_it", "launch.num_nodes=4", "parallel=fsdp2", "parallel.shard_within_node=true")


def test_mixed_precision_over_bfloat16_weights() -> None:
    """accelerate makes the trained weights float32 where it shards them: `fsdp2_prepare_model`."""
    words = [*EIGHT, "parallel=fsdp2", "train.bf16=true"]
    plain, size = composed("full_sft", "gemma3_1b_it", *words)
    asked, _ = composed("full_sft", "gemma3_1b_it", *words, "model.dtype=bfloat16")
    assert estimate(asked, size, True, 1024) == estimate(plain, size, True, 1024)


def test_all_of_a_layers_experts_are_gathered() -> None:
    """26B-A4B: 30 layers of 128 experts, of which 8 are at work; E4B: 42 rows of 256 for each of 262,144 tokens."""
    cfg, size = composed("lora_sft", "gemma4_26b_a4b_it", *EIGHT, "parallel=fsdp2")
    experts = 128 * 3 * 2816 * 704
    assert estimate(cfg, size, False, 1024)["gathered"] > 2 * 2 * experts / 2**30
    cfg, size = composed("lora_sft", "gemma4_e4b_it", *EIGHT, "parallel=fsdp2")
    assert estimate(cfg, size, False, 1024)["gathered"] > 2 * 262_144 * (42 * 256 + 2560) / 2**30
    cfg, _ = composed("lora_sft", "gemma4_e4b_it", *EIGHT, "parallel=fsdp2", "parallel.reshard_after_forward=false")
    whole = 2 * size.parameters + 4 * size.lora_parameters(16)
    assert estimate(cfg, size, False, 1024)["gathered"] == pytest.approx(whole / 2**30)


def test_a_machines_memory_is_shared_by_its_processes() -> None:
    cpu = torch.device("cpu")
    assert capacity.free_memory(cpu, 4) == pytest.approx(capacity.free_memory(cpu) / 4, rel=0.2)


def test_who_needs_how_much_is_said() -> None:
    cfg, size = composed("full_sft", "gemma3_27b_it", *TWO_MACHINES)
    with pytest.raises(UserError, match=r"of memory on each of 16 processes, and 79\.0 GiB are free") as error:
        capacity.check_memory(cfg, size, True, 79.0, on_gpu=True)
    assert "What should fit:" in str(error.value) and "parallel=fsdp2" in str(error.value)
    found = str(error.value).split("What should fit: ")[1].split()
    cfg, _ = composed("full_sft", "gemma3_27b_it", *TWO_MACHINES, *found)
    capacity.check_memory(cfg, size, True, 79.0)
    assert capacity.memory_warning(cfg, size, True, 1024, 79.0) is None
    said = capacity.memory_warning(cfg, size, True, 1024, 40.0)
    assert said and "on each of 16 processes, which share the model among 8, and 40.0 GiB" in said


def test_what_is_proposed_is_not_refused() -> None:
    """fsdp2 only on GPUs, and not with what it can't do; with 4-bit weights ddp takes its place again."""
    cfg, size = composed("full_sft", "gemma3_27b_it", *EIGHT)
    for on_gpu, free, word in ((False, 79.0, "recipe=lora_sft"), (True, 79.0, "parallel=fsdp2"), (True, 20.0, "")):
        said = capacity.memory_warning(cfg, size, True, 256, free, on_gpu=on_gpu)
        assert said and word in said and ("parallel=fsdp2" in said) == (word == "parallel=fsdp2" or free == 20.0)
    qat, _ = composed("qat", "gemma3_27b_it", *EIGHT)
    said = capacity.memory_warning(qat, size, True, 256, 79.0, on_gpu=True)
    assert said and "fsdp2" not in said
    sharded, _ = composed("lora_sft", "gemma3_27b_it", "launch.num_processes=2", "parallel=fsdp2")
    said = capacity.memory_warning(sharded, size, False, 256, 19.0, on_gpu=True)
    assert said and "recipe=qlora_sft" in said and "parallel=ddp" in said
    words = [*EIGHT, *said.split("What should fit: ")[1].replace("recipe=qlora_sft", "").split()]
    assert compose_config("qlora_sft", ["model=gemma3_27b_it", *words]).parallel.strategy == "ddp"


def test_offloaded_activations_wait_on_the_host() -> None:
    """27B, one row of 128k tokens: 62 layers keep 5,376 numbers of 2 bytes a token, offloaded five of them."""
    words = ["train.per_device_train_batch_size=1", "train.max_length=131072", "train.gradient_checkpointing=true"]
    words += ["model.attn_implementation=flash_attention_2"]
    kept, size = composed("lora_sft", "gemma3_27b_it", *words)
    moved, _ = composed("lora_sft", "gemma3_27b_it", *words, "train.extra.activation_offloading=true", *EIGHT)
    here, there = (estimate(cfg, size, False, 131_072)["activations"] for cfg in (kept, moved))
    one = 131_072 * 5376 * 2 / 2**30
    assert here - there == pytest.approx((62 - 5) * one)
    assert host_memory(moved, size, False, 131_072) == {"offloaded activations": pytest.approx(8 * 62 * one)}
    assert host_memory(kept, size, False, 131_072) == {}
    said = capacity.host_warning(moved, size, False, 131_072)
    assert said and "for offloaded activations, and" in said and "train.max_length" in said
    assert capacity.host_warning(kept, size, False, 131_072) is None


def test_offloading_is_proposed_before_shorter_rows() -> None:
    """Not without a GPU, nor for GRPO, whose trainer hasn't the option."""
    words = ["train.max_length=131072", "model.attn_implementation=flash_attention_2"]
    cfg, size = composed("qlora_sft", "gemma3_12b_it", *words)
    for on_gpu in (True, False):
        said = capacity.memory_warning(cfg, size, False, 131_072, 60.0, on_gpu=on_gpu)
        assert said and ("train.extra.activation_offloading=true" in said) == on_gpu
        assert ("train.max_length=256" in said) != on_gpu
    found = said.split("What should fit: ")[1].split()
    fitted, _ = composed("qlora_sft", "gemma3_12b_it", *words[1:], *found)
    assert estimate(fitted, size, False, 256)["total"] <= 60
    grpo, _ = composed("grpo", "gemma3_12b_it", "data=arithmetic", "train.max_completion_length=100000")
    said = capacity.memory_warning(grpo, size, False, 131_072, 60.0, on_gpu=True)
    assert said and "offloading" not in said


def test_one_process_of_a_machine_reads_the_weights() -> None:
    cfg, size = composed("lora_sft", "gemma3_27b_it", *TWO_MACHINES, "parallel=fsdp2")
    assert host_memory(cfg, size, False, 1024) == {"weights while loading": 2 * size.parameters / 2**30}
    each, _ = composed(
        "lora_sft", "gemma3_27b_it", *TWO_MACHINES, "parallel=fsdp2", "parallel.cpu_ram_efficient_loading=false"
    )
    assert host_memory(each, size, False, 1024) == {"weights while loading": 8 * 2 * size.parameters / 2**30}


def test_what_is_said_of_long_rows_holds() -> None:
    """What a user of sequence parallelism is told instead (validation/processes.py), of every size with such rows."""
    words = ["train.per_device_train_batch_size=1", "train.packing=true", "train.gradient_checkpointing=true"]
    words.append("train.extra.activation_offloading=true")
    checked = []
    for recipe, tokens, more in (("lora_sft", 2**15, []), ("qlora_sft", 2**17, ["flash_attention_2"])):
        cfg = compose_config(recipe, ["model=gemma3_1b_it", "data=sample", *words, f"train.max_length={tokens}"])
        cfg.model.attn_implementation = more[0] if more else None
        for model in planned_models(ModelConfig(model_name_or_path="assets://tiny")):
            found = published(model.name) or published(options()[model.name])
            assert found is not None
            text = AutoConfig.for_model(found.model_type, **found.text)
            if text.max_position_embeddings >= tokens:
                checked.append((model.name, tokens))
                fits = estimate(cfg, model.size, False, tokens, on_gpu=True)["total"] < 79
                assert fits != ("26b_a4b" in model.name and tokens == 2**17), model.name
    assert ("gemma4_31b_it", 2**17) in checked and ("gemma3_1b_it", 2**15) in checked


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
def test_adamw_keeps_its_state_in_the_weights_type(dtype: torch.dtype, name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(256, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    held = sum(t.nbytes for key, t in optimizer.state[weight].items() if key != "step")
    cfg, size = composed("full_sft", "gemma3_1b_it", f"model.dtype={name}")
    assert estimate(cfg, size, False, 1)["optimizer"] == held / 256 * size.parameters / 2**30


def test_decoded_weights() -> None:
    """Two bytes of each 4-bit weight, on a CPU where they are few or it is asked for."""
    for model, few in (("gemma3_270m_it", True), ("gemma3_1b_it", False)):
        cfg, size = composed("qlora_sft", model)

        def weights(on_gpu: bool = False, cfg: Config = cfg, size: ModelSize = size, **keys: bool) -> float:
            changed = replace(cfg, model=replace(cfg.model, **keys))
            return estimate(changed, size, False, 1024, on_gpu=on_gpu)["weights"]

        off, on = (weights(keep_decoded=kept) for kept in (False, True))
        assert on - off == pytest.approx(2 * size.linear_parameters / 2**30)
        assert weights() == (on if few else off)
        assert weights(fused_layers=False) == weights(on_gpu=True) == off
        compiled = replace(cfg, train=replace(cfg.train, torch_compile=True))
        assert weights(cfg=compiled, keep_decoded=True) == off


def test_the_table_of_per_layer_embeddings_is_on_the_host() -> None:
    """E2B: 262,144 rows of 35 x 256 numbers of 2 bytes; not where it is trained, shared by processes, or turned off."""
    words = ["train.gradient_checkpointing=true", "train.per_device_train_batch_size=1"]
    cfg, size = composed("qlora_sft", "gemma4_e2b_it", *words)
    table = 262_144 * 35 * 256 * 2 / 2**30
    on_cpu, on_gpu = (estimate(cfg, size, False, 1024, on_gpu=gpu) for gpu in (False, True))
    assert on_cpu["weights"] - on_gpu["weights"] == pytest.approx(table)
    assert on_gpu["total"] < 4
    assert host_memory(cfg, size, False, 1024) == {"per-layer embeddings": pytest.approx(table)}
    off = ["model.per_layer_table_on_host=false"]
    for recipe, more in (("full_sft", []), ("qlora_sft", EIGHT), ("qlora_sft", off)):
        other, _ = composed(recipe, "gemma4_e2b_it", *more)
        assert "per-layer embeddings" not in host_memory(other, size, False, 1024)
    for recipe in ("full_sft", "lora_sft"):
        with pytest.raises(UserError, match=r"per_layer_table_on_host=true: .*; leave it out"):
            composed(recipe, "gemma4_e2b_it", "model.per_layer_table_on_host=true", *EIGHT)
