"""The language part with towers beside it computes what the checkpoint's own class does, packed and padded, too."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from slow import slow_after
from small_models import original, save

from gemma_tune.config import ModelConfig
from gemma_tune.errors import UserError
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.family import FAMILIES
from gemma_tune.models.language_part import load_language_part
from gemma_tune.models.load import load_config
from gemma_tune.models.source import Source
from gemma_tune.models.towers.image_attention import ImageAttention, image_attention
from gemma_tune.models.towers.tower_files import load_towers, published_names
from gemma_tune.models.towers.towers import open_towers, remember_towers, seeing, towers_of

SOFT = 1500
IDS = {"image_token_id": SOFT, "audio_token_id": SOFT + 1, "video_token_id": SOFT + 2}
TOKENS = 4  # of an image
IN_SLIDING_LAYERS = ImageAttention(in_full_layers=False, beyond_window=False)
ATTENTION = {
    "gemma3": ImageAttention(in_full_layers=True, beyond_window=False), "gemma4_e2b": None,
    "gemma4_26b": IN_SLIDING_LAYERS, "gemma4_31b": IN_SLIDING_LAYERS,
}  # fmt: skip
CLOSE = 1e-5  # of the largest logit


@pytest.fixture(scope="module", params=slow_after(1, ATTENTION))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any, Any]:
    """Its name and folder, the language part with towers, and the checkpoint's own class."""
    folder = save(request.param, tmp_path_factory.mktemp(request.param))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= IDS
    if ATTENTION[request.param] is IN_SLIDING_LAYERS:
        config["text_config"]["use_bidirectional_attention"] = "vision"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return request.param, folder, loaded(folder), original(folder)


def loaded(folder: Path, attention: str | None = None) -> Any:
    source = Source(str(folder), None, None, str(folder), image_attention=attention)
    cfg, config = ModelConfig(model_name_or_path=str(folder), dtype="float32", device="cpu"), load_config(source)
    language = load_language_part(cfg, source, config, FAMILIES[config.model_type].language_class).eval()
    remember_towers(language, partial(load_towers, cfg, source, config))
    open_towers(language)
    return language


def picture(name: str, seed: int, model: Any) -> dict[str, torch.Tensor]:
    """What the image processor would give of one image, `TOKENS` of it."""
    torch.manual_seed(seed)
    if name == "gemma3":
        return {"pixel_values": torch.randn(1, 3, 16, 16)}
    vision = model.config.vision_config
    side = 2 * vision.pooling_kernel_size
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1)
    return {
        "pixel_values": torch.rand(1, side * side, 3 * vision.patch_size**2),
        "image_position_ids": places.reshape(1, side * side, 2),
    }


def row(before: int, after: int, seed: int) -> torch.Tensor:
    made = torch.randint(3, 1400, (before + after,), generator=torch.Generator().manual_seed(seed)).tolist()
    return torch.tensor([[*made[:before], *[SOFT] * TOKENS, *made[before:]]])


def expected(name: str, model: Any, ids: torch.Tensor, media: dict[str, torch.Tensor]) -> torch.Tensor:
    types = {"token_type_ids" if name == "gemma3" else "mm_token_type_ids": (ids == SOFT).long()}
    with torch.no_grad():
        return model(input_ids=ids, **media, **types).logits


def with_media(model: Any, media: dict[str, torch.Tensor], **inputs: Any) -> torch.Tensor:
    with torch.no_grad(), seeing(model, media):
        return model(**inputs, use_cache=False).logits


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).abs().max() <= CLOSE * wanted.abs().max()


def test_one_row_and_what_it_would_be_without_its_image(family: Any) -> None:
    name, _, ours, theirs = family
    assert image_attention(ours.config) == ATTENTION[name]
    ids, media = row(3, 30, 1), picture(name, 1, theirs)
    wanted = expected(name, theirs, ids, media)
    assert torch.equal(with_media(ours, media, input_ids=ids), wanted)
    assert not torch.allclose(with_media(ours, None, input_ids=ids), wanted, atol=0.1)  # type: ignore[arg-type]


def test_packed_rows_are_what_each_is_alone(family: Any) -> None:
    """Transformers' own masks are wrong here by 0.4: the second row gets the images of the first."""
    name, _, ours, theirs = family
    rows, media = (row(3, 30, 1), row(1, 12, 2)), [picture(name, seed, theirs) for seed in (1, 2)]
    wanted = torch.cat([expected(name, theirs, r, m) for r, m in zip(rows, media, strict=True)], 1)
    places = torch.cat([torch.arange(r.shape[1]) for r in rows])[None]
    both = {key: torch.cat([m[key] for m in media]) for key in media[0]}
    assert_close(with_media(ours, both, input_ids=torch.cat(rows, 1), position_ids=places), wanted)


@pytest.mark.parametrize(
    ("name", "attention", "stored"),
    slow_after(1, [("gemma4_e2b", "bidirectional", "vision"), ("gemma4_31b", "causal", None)]),
)
def test_the_attention_that_is_asked_for(name: str, attention: str, stored: str | None, tmp_path: Path) -> None:
    """That of Transformers' class with it in config.json: one row, two packed ones, and what is generated."""
    folder = save(name, tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8")) | IDS
    other = None if stored else "vision"

    def said(value: str | None) -> None:
        config["text_config"]["use_bidirectional_attention"] = value
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    said(stored)
    theirs = original(folder)
    said(other)
    ours = loaded(folder, attention)
    assert ours.config.use_bidirectional_attention == stored
    rows, media = (row(3, 30, 1), row(1, 12, 2)), [picture(name, seed, theirs) for seed in (1, 2)]
    wanted = [expected(name, theirs, r, m) for r, m in zip(rows, media, strict=True)]
    assert torch.equal(with_media(ours, media[0], input_ids=rows[0]), wanted[0])
    places = torch.cat([torch.arange(r.shape[1]) for r in rows])[None]
    both = {key: torch.cat([m[key] for m in media]) for key in media[0]}
    packed = with_media(ours, both, input_ids=torch.cat(rows, 1), position_ids=places)
    assert_close(packed, torch.cat(wanted, 1))
    asked = {"input_ids": rows[0], "attention_mask": torch.ones_like(rows[0]), "max_new_tokens": 4, "do_sample": False}
    with seeing(ours, media[0]):
        found = ours.generate(**asked)
    assert torch.equal(found, theirs.generate(**asked, **media[0], mm_token_type_ids=(rows[0] == SOFT).long()))
    theirs.config.get_text_config().use_bidirectional_attention = other
    assert (expected(name, theirs, rows[0], media[0]) - wanted[0]).abs().max() > 0.01


def test_where_there_is_no_such_choice(tmp_path: Path) -> None:
    folder = save("gemma3", tmp_path)
    with pytest.raises(UserError, match=r"model\.image_attention=causal: it is a choice of Gemma 4"):
        load_config(Source(str(folder), None, None, str(folder), image_attention="causal"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_what_each_is_alone(family: Any, side: str) -> None:
    name, _, ours, theirs = family
    rows, media = (row(3, 30, 1), row(1, 12, 2)), [picture(name, seed, theirs) for seed in (1, 2)]
    pad = rows[0].shape[1] - rows[1].shape[1]
    sides = (pad, 0) if side == "left" else (0, pad)
    ids = torch.cat([rows[0], torch.nn.functional.pad(rows[1], sides)])
    mask = torch.cat([torch.ones_like(rows[0]), torch.nn.functional.pad(torch.ones_like(rows[1]), sides)])
    both = {key: torch.cat([m[key] for m in media]) for key in media[0]}
    found = with_media(ours, both, input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    assert_close(found[1][mask[1] == 1], expected(name, theirs, rows[1], media[1])[0])
    assert_close(found[0], expected(name, theirs, rows[0], media[0])[0])


def test_eager_attention_and_generated_tokens(family: Any) -> None:
    name, _, ours, theirs = family
    ids, media = row(3, 30, 1), picture(name, 1, theirs)
    types = {"token_type_ids" if name == "gemma3" else "mm_token_type_ids": (ids == SOFT).long()}
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    with seeing(ours, media):
        found = ours.generate(**asked)
    assert torch.equal(found, theirs.generate(**asked, **media, **types))
    ours.set_attn_implementation("eager")
    try:
        assert_close(with_media(ours, media, input_ids=ids), expected(name, theirs, ids, media))
    finally:
        ours.set_attn_implementation("sdpa")


def test_every_tensor_has_its_name_in_the_files(family: Any) -> None:
    _, folder, ours, _ = family
    towers = towers_of(ours)
    assert towers is not None
    config = json.loads((folder / "config.json").read_text("utf-8"))
    checkpoint = CheckpointFiles(folder, FAMILIES[config["model_type"]])
    names = published_names(towers, checkpoint)
    assert names.keys() == towers.stored().keys()
    assert set(names.values()) == {n for n in checkpoint.files if checkpoint.family.is_tower(n)}
    assert all(torch.equal(checkpoint.read(names[n]), tensor) for n, tensor in towers.stored().items())


@pytest.mark.slow
def test_a_head_that_is_stored_beside_the_embedding(tmp_path: Path) -> None:
    """As other tools write it; Transformers fails to compare it with the embedding of a model without a vocabulary."""
    folder = save("gemma4_e2b", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    embedding = next(t for n, t in tensors.items() if n.endswith("language_model.embed_tokens.weight"))
    save_file({**tensors, "lm_head.weight": embedding.clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert len(loaded(folder).towers.stored()) == sum("tower" in n or "embed_" in n for n in tensors) - 2
