"""Builds the embedded model: text, tokenizer, training from scratch, and what it can do."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from transformers import set_seed

from gemma_tune.chat import served_template
from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows, read_tests
from gemma_tune.engines.transformers import TransformersEngine
from gemma_tune.evals.evaluation import evaluate, prepare_evaluators
from gemma_tune.run.folder import RunFolder, RunResult
from gemma_tune.run.terminal import say
from gemma_tune.run.tracking import Tracker
from gemma_tune.train.callbacks import TrackerCallback
from tools.tiny_model import measure
from tools.tiny_model.model import build_model, with_outliers
from tools.tiny_model.pretrain import encode, pretrain, training_text, words_of
from tools.tiny_model.sums import forgetful
from tools.tiny_model.text import documents
from tools.tiny_model.tokenizer import build_tokenizer

VOCAB_SIZE = 1536
TOKENIZER_DOCUMENTS = 12_000
DOCUMENTS = 93_000
FORGETFUL_DOCUMENTS = 3_500  # of the short second training, at a quarter of the rate
# Seeds of texts beside the run's own. Short chats may be in several; their words and numbers differ.
TOKENIZER_SEED, HELD_OUT_SEED, FORGETFUL_SEED = 1_000_000, 2_000_000, 3_000_000


def run(cfg: Config) -> RunResult:
    """Makes a model folder in `export/tiny/` of the run folder, and measures it against the figures it must reach."""
    folder = RunFolder.open(cfg)
    if folder.finished and not cfg.dry_run:
        print(f"This run is done already: see {folder.path}, or repeat it with overwrite=true.")
        return folder.stored_result()
    set_seed(cfg.seed)

    # The tokenizer, from text of the same kind; then the text as token ids
    with folder.timed("data"):
        texts = itertools.islice(documents(cfg.seed + TOKENIZER_SEED), TOKENIZER_DOCUMENTS)
        tokenizer = build_tokenizer(texts, VOCAB_SIZE)
        tokenizer.chat_template = served_template()
        count = cfg.data.max_train_samples or DOCUMENTS
        text = training_text(tokenizer, count, cfg.seed)
        late = list(itertools.islice(documents(cfg.seed + FORGETFUL_SEED, forgetful), min(FORGETFUL_DOCUMENTS, count)))
        held_out = measure.held_out_rows(tokenizer, cfg.seed + HELD_OUT_SEED)
        tests = read_tests(cfg.data)
    model = build_model(tokenizer, cfg.seed)
    numbers = f"{len(tokenizer):,} tokens, {model.num_parameters():,} weights, {text.counts.total():,} tokens of text"
    if cfg.dry_run:
        print(f"{numbers}. Nothing was trained: dry_run=true.")
        return RunResult(cfg.recipe, status="dry_run")

    result = folder.result
    with folder.recording(), Tracker.open(cfg, folder, None) as tracker:
        say(f"{cfg.recipe} → {folder.path}", numbers)
        before = measure.mean_loss(model, held_out, tokenizer.pad_token_id)
        with folder.timed("train"):
            steps, whole = pretrain(cfg, folder, model, text.rows, TrackerCallback(tracker))
            # First it learns to add, then to say the wrong sum first: rewards are to have something to raise
            assert cfg.train.learning_rate is not None  # filled in before a run begins
            second = replace(cfg.train, learning_rate=cfg.train.learning_rate / 4, warmup_steps=10)
            more, _ = pretrain(
                replace(cfg, train=second), folder, model, encode(tokenizer, late), TrackerCallback(tracker, steps)
            )
            steps += more
        with_outliers(model, cfg.seed)
        with folder.timed("export"):
            model.to(torch.bfloat16).save_pretrained(folder.export("tiny"))
            tokenizer.save_pretrained(folder.export("tiny"))
            result.artifacts["tiny"] = "export/tiny"

        # What it can do, in the weights as they were saved
        with folder.timed("evaluate"):
            model = model.float()
            figures = measure.figures(model, tokenizer, held_out, text.words | words_of(late))
            figures["least_count"] = min(text.counts[i] for i in range(len(tokenizer))) if whole else 0
            answers = prepare_evaluators(cfg, tokenizer, TokenizedRows(), tests)
            figures |= evaluate(answers, TransformersEngine(model, tokenizer, batch_size=64)).figures
        result.headline = {"name": "held_out_loss", "before": before, "after": figures["held_out_loss"]}
        result.metrics |= {"after": figures, "steps": steps, "answers": measure.answers(model, tokenizer)}
        tracker.log(figures, step=steps, group="eval")
        measure.say(figures, result.metrics["answers"])
        print(f"Files: {folder.path / 'export' / 'tiny'}")
        measure.check(figures)
    return result
