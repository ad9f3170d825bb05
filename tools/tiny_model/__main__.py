"""Builds the embedded model: text, tokenizer, training from scratch, and its evaluation. About 26 minutes on two cores.

    python -m tools.tiny_model --output build/tiny

writes the model folder build/tiny/tiny and the metrics build/tiny/figures.json; `data/tiny` is such a model folder.
If a metric is out of its limits, the program ends with status 1 and a message that names it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import set_seed

from gemma_tune.chat import served_template
from gemma_tune.cli.compose import compose_config
from gemma_tune.data.reading import read_tests
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.errors import RunError
from gemma_tune.evals.evaluation import evaluate, prepare_evaluators
from tools.tiny_model import measure
from tools.tiny_model.model import build_model, with_outliers
from tools.tiny_model.pretrain import encode, pretrain, training_text, words_of
from tools.tiny_model.sums import forgetful
from tools.tiny_model.text import documents
from tools.tiny_model.tokenizer import build_tokenizer

VOCAB_SIZE = 1536
TOKENIZER_DOCUMENTS = 12_000
DOCUMENTS = 93_000
FORGETFUL_DOCUMENTS = 3_500  # of the short second training
# Seeds of texts beside the program's own. Short chats may be in several; their words and numbers differ.
TOKENIZER_SEED, HELD_OUT_SEED, FORGETFUL_SEED = 1_000_000, 2_000_000, 3_000_000
LEARNING_RATE, WARMUP_STEPS = 3e-3, 60
SECOND_RATE, SECOND_WARMUP_STEPS = LEARNING_RATE / 4, 10


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser("python -m tools.tiny_model", description="Builds the embedded model.")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder for what is built")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="documents to train on (%(default)s)")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop each training after so many steps")
    parser.add_argument("--max-samples", type=int, help="test rows to evaluate on at most (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts, the weights and the order (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="make the text and the tokenizer, and train nothing")
    options = parser.parse_args(words)
    if options.output.exists():
        parser.error(f"--output={options.output} exists already: name a new folder, or delete that one")
    if options.documents < 1:
        parser.error(f"--documents={options.documents}: at least 1")
    return options


def build(options: argparse.Namespace) -> None:
    """Makes the model folder, and compares its metrics with their limits.

    Raises:
        TooWeak: A metric is out of its limits.
    """
    seed, count = options.seed, options.documents
    set_seed(seed)

    # The tokenizer, from text of the same kind; then the text as token ids
    texts = itertools.islice(documents(seed + TOKENIZER_SEED), TOKENIZER_DOCUMENTS)
    tokenizer = build_tokenizer(texts, VOCAB_SIZE)
    tokenizer.chat_template = served_template()
    text = training_text(tokenizer, count, seed)
    late = list(itertools.islice(documents(seed + FORGETFUL_SEED, forgetful), min(FORGETFUL_DOCUMENTS, count)))
    held_out = measure.held_out_rows(tokenizer, seed + HELD_OUT_SEED)
    model = build_model(tokenizer, seed)
    print(f"{len(tokenizer):,} tokens, {model.num_parameters():,} weights, {text.counts.total():,} tokens of text")
    if options.dry_run:
        print("Nothing was trained: --dry-run.")
        return

    # First it learns to add, then to give the wrong sum first: training with rewards needs something to raise
    before = measure.mean_loss(model, held_out, tokenizer.pad_token_id)
    steps, is_whole = pretrain(model, text.rows, options.output, LEARNING_RATE, WARMUP_STEPS, options.max_steps, seed)
    rows = encode(tokenizer, late)
    steps += pretrain(model, rows, options.output, SECOND_RATE, SECOND_WARMUP_STEPS, options.max_steps, seed)[0]
    with_outliers(model, seed)
    model.to(torch.bfloat16).save_pretrained(options.output / "tiny")
    tokenizer.save_pretrained(options.output / "tiny")

    # Its metrics, with the weights as they were saved
    model = model.float()
    figures = measure.figures(model, tokenizer, held_out, text.words | words_of(late))
    figures["least_count"] = min(text.counts[i] for i in range(len(tokenizer))) if is_whole else 0
    most = "null" if options.max_samples is None else str(options.max_samples)
    cfg = compose_config("evaluate", ["eval.evaluators=[answers]", f"eval.max_samples={most}", f"seed={seed}"])
    evaluators = prepare_evaluators(cfg, tokenizer, TokenizedRows(), read_tests(cfg.data))
    figures |= evaluate(evaluators, TransformersEngine(model, tokenizer, batch_size=64)).figures
    answers = measure.answers(model, tokenizer)
    found = {"steps": steps, "held_out_loss_before": before, "figures": figures, "answers": answers}
    (options.output / "figures.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    measure.say(figures, answers)
    print(f"Files: {options.output / 'tiny'}")
    measure.check(figures)


def main(words: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    try:
        build(options_of(words))
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
