"""Build `data/tiny/`: a real `Gemma3ForCausalLM` folder of about 3 MB, trained on generated text.

It exists so that tests and examples can load, tune and serve a model of Gemma's own classes, tokenizer
design and chat form without a download. Needs one CPU thread for about five minutes.

    python data/make_tiny.py --seed 0 --out data/tiny
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GemmaTokenizer, GenerationConfig

from gemma_tune.tiny.tokenizer import BYTES, CORE, FORM

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # so that the script also finds its neighbour when it is imported by path

from tiny_text import documents  # noqa: E402

PAD, EOS, BOS = 0, 1, 2
VOCAB_SIZE = 1280
HELD_OUT_SEED = 10_000  # added to the seed for the text that loss is reported on


def build_tokenizer(seed: int) -> GemmaTokenizer:
    """Train BPE merges on the generated text and put them in Gemma's order and class."""
    texts = list(itertools.islice(documents(seed + 1, scripts=False), 8000))
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Replace(" ", "▁")
    # Only for training: no merge may cross words, digits or line ends. Gemma itself merges whole texts, and
    # gets the same pieces, as such merges do not exist.
    pattern = Regex(r"<[a-z_]+>|▁?[\p{L}_]+|\p{N}|\n+|▁+|[^\p{L}\p{N}▁\n]")
    core.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    printable = [chr(c) for c in range(33, 127)]
    special = [*CORE, *FORM, *BYTES]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(special),
        initial_alphabet=["▁", "\n", "\t", *printable],
        show_progress=False,
    )
    # The chat form's tokens are cut out: they are special, and must not be spelt by merges.
    pieces = (part for text in texts for part in split_form(text))
    core.train_from_iterator(pieces, trainer)
    trained = sorted(core.get_vocab().items(), key=lambda item: item[1])
    vocab = {token: i for i, token in enumerate([*special, *(token for token, _ in trained)])}
    merges = [tuple(pair) for pair in trained_merges(core)]
    return GemmaTokenizer(
        vocab=vocab,
        merges=merges,
        extra_special_tokens=FORM,
        add_bos_token=True,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def split_form(text: str) -> list[str]:
    """The text between the chat form's tokens."""
    for token in FORM:
        text = text.replace(token, "\0")
    return [part for part in text.split("\0") if part]


def trained_merges(tokenizer: Tokenizer) -> list[list[str]]:
    """The merges in order; the library gives them only through its JSON."""
    return json.loads(tokenizer.to_str())["model"]["merges"]


def save_tokenizer(tokenizer: GemmaTokenizer, out: Path) -> None:
    """Save, and say `add_bos_token` in the config as Gemma's does.

    transformers leaves the key out, as its own loading rests on tokenizer.json's post-processor; other
    readers of the folder (converters, for one) look it up.
    """
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({"add_bos_token": True, **config}, ensure_ascii=False, indent=2)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def build_model(tokenizer: GemmaTokenizer) -> Gemma3ForCausalLM:
    """A Gemma 3 text model with all widths multiples of 32, five sliding layers to one full."""
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=[EOS, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
    )
    model = Gemma3ForCausalLM(config)
    # Gemma norms each branch to size 1 before adding it, which at first would drown the far smaller
    # embeddings and make copying from the prompt very slow to learn: start with quieter branches.
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.06)
        model.model.embed_tokens.weight[PAD].zero_()
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.fill_(-0.7)  # the norm multiplies by 1 + weight
            layer.post_feedforward_layernorm.weight.fill_(-0.7)
    return model


def encode(tokenizer: GemmaTokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids with <bos>; plain text ends with <eos>, a chat with its own last line."""
    rows = tokenizer(texts)["input_ids"]
    return [row if text.startswith("<start_of_turn>") else [*row, EOS] for row, text in zip(rows, texts, strict=True)]


def batches(rows: list[list[int]], tokens: int, rng: random.Random) -> list[torch.Tensor]:
    """One document per row, documents of like length together, about `tokens` per batch, shuffled."""
    out: list[torch.Tensor] = []
    group: list[list[int]] = []
    for row in sorted(rows, key=len):
        if group and (len(group) + 1) * len(row) > tokens:
            out.append(pad(group))
            group = []
        group.append(row)
    out.append(pad(group))
    rng.shuffle(out)
    return out


def pad(rows: list[list[int]]) -> torch.Tensor:
    """Padding on the right: causal attention never looks at it, so no mask is needed."""
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def loss_of(model: Gemma3ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss over everything but padding."""
    return model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100), use_cache=False).loss


@torch.no_grad()
def held_out_loss(model: Gemma3ForCausalLM, tokenizer: GemmaTokenizer, seed: int) -> float:
    """Loss per token on fresh documents of another seed."""
    rows = encode(tokenizer, list(itertools.islice(documents(seed + HELD_OUT_SEED), 500)))
    total, count = 0.0, 0
    for ids in batches(rows, 2048, random.Random(0)):
        n = int((ids[:, 1:] != PAD).sum())
        total, count = total + loss_of(model, ids).item() * n, count + n
    return total / count


def train(
    model: Gemma3ForCausalLM, tokenizer: GemmaTokenizer, *, seed: int, steps: int, rate: float, tokens: int
) -> None:
    """AdamW in float32, short warm-up, cosine down to a twentieth of the rate."""
    rng = random.Random(seed)
    source = documents(seed)
    weights = [p for p in model.parameters() if p.ndim > 1]
    scales = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.05}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    model.train()
    queue: list[torch.Tensor] = []
    start, seen = time.perf_counter(), 0
    for step in range(1, steps + 1):
        if not queue:
            queue = batches(encode(tokenizer, list(itertools.islice(source, 2000))), tokens, rng)
        warm = min(1.0, step / 40)
        scale = warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        ids = queue.pop()
        loss = loss_of(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += int((ids != PAD).sum())
        if step == 1 or step % 50 == 0:
            seconds = time.perf_counter() - start
            print(
                f"step {step}/{steps} loss {loss.item():.3f} rate {rate * scale:.2e} "
                f"{seen / seconds:.0f} tokens/s {seconds:.0f} s",
                flush=True,
            )
    model.eval()


@torch.no_grad()
def answer(model: Gemma3ForCausalLM, tokenizer: GemmaTokenizer, question: str) -> str:
    """The greedy answer to one question."""
    prompt = f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Build the tokenizer, train the model, save both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "tiny")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--no-chat-template", action="store_true", help="save the tokenizer without one")
    parser.add_argument("--tokenizer-only", action="store_true", help="leave the model as it is")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the same sums in the same order on every run
    torch.manual_seed(args.seed)

    tokenizer = build_tokenizer(args.seed)
    if not args.no_chat_template:
        from gemma_tune.chat import served_template

        tokenizer.chat_template = served_template("gemma3")
    save_tokenizer(tokenizer, args.out)
    if args.tokenizer_only:
        return

    model = build_model(tokenizer)
    print(f"{len(tokenizer)} tokens, {model.num_parameters():,} parameters")
    train(model, tokenizer, seed=args.seed, steps=args.steps, rate=args.rate, tokens=args.batch_tokens)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=model.config.eos_token_id
    )
    model.save_pretrained(args.out)

    loss = held_out_loss(model, tokenizer, args.seed)
    print(f"held-out loss {loss:.4f}, perplexity {math.exp(loss):.3f}")
    for question in ["What is the colour of a lemon?", "Work out 3 plus 4.", "Repeat this: zomuka"]:
        print(f"{question} -> {answer(model, tokenizer, question)}")


if __name__ == "__main__":
    main()
