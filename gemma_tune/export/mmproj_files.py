"""The mmproj file beside each GGUF file of an export: what it is made of, and its lines of the check."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from gemma_tune.chat import Unrenderable
from gemma_tune.config import Config
from gemma_tune.data.tokenized import TokenizedRows
from gemma_tune.errors import UserError
from gemma_tune.export import mmproj
from gemma_tune.export.file_tensor import FileTensors
from gemma_tune.export.int4_check import UNVERIFIED, WARN, CheckLine
from gemma_tune.export.media_check import AS_SERVED, QUANTIZED, media_lines
from gemma_tune.export.media_questions import conversations_with_media, questions, questions_of
from gemma_tune.export.media_reference import TrainedModel
from gemma_tune.export.media_rows_check import rows_line
from gemma_tune.export.media_template import writes_media
from gemma_tune.export.mmproj_tensors import F16
from gemma_tune.export.transformers_check import TrainedForward
from gemma_tune.media.families import llama_image_tokens
from gemma_tune.media.processor import MediaProcessor
from gemma_tune.models.checkpoint import CheckpointFiles
from gemma_tune.models.family import NARROW
from gemma_tune.models.load import family_of, load_config
from gemma_tune.models.source import Source
from gemma_tune.models.towers.towers import open_towers
from gemma_tune.models.towers.trained_towers import trained_tensors
from gemma_tune.run.paths import MMPROJ

LORA = "gguf_lora"
_NO_CROPS = (
    "The model was trained with crops of large images beside them (model.images_kwargs.do_pan_and_scan), and llama.cpp "
    "makes none: it sees large images otherwise than in training, and the lines on images compare without them. Serve "
    "export/merged, or train without."
)
_QUANTIZED = ("gguf", "gguf_q8_0")
# Rows that are asked in each file, of models narrower than `NARROW` and of others: a picture of Gemma 3 4B takes half a
# minute on a CPU
_ROWS = (32, 4)


@dataclass(frozen=True)
class ExportedTowers:
    """What an mmproj file is made of.

    Attributes:
        config: The whole model's.
        tensors: Every tensor of the towers, by its name in the checkpoint.
        most_tokens: The most tokens of an image in training.
        shown: Conversations of rows with images and sound, which llama.cpp is asked.
    """

    config: Any
    tensors: FileTensors
    most_tokens: int
    shown: Sequence[list[dict[str, Any]]] = ()

    def write(self, folder: Path, title: str) -> Path:
        """Writes the file of a model of this title, and says so."""
        file = folder / mmproj.file_name(title)
        mmproj.export(self.tensors, self.config, file, name=title, most_tokens=self.most_tokens)
        print(f"{file.name}: the towers for images and sound, for llama.cpp and Ollama.", file=sys.stderr)
        return file


def exported_towers(
    cfg: Config, source: Source, tokenizer: Any, model: Any = None, rows: Sequence[TokenizedRows] = ()
) -> ExportedTowers | None:
    """What goes into an mmproj file; None where no GGUF file gets one.

    Args:
        cfg: `export`.
        source: What the model was loaded from.
        tokenizer: Its tokenizer.
        model: The trained model, of whose towers those tensors are taken that were trained; the others are the
            checkpoint's.
        rows: Rows to ask llama.cpp about, the held-out ones first.

    Raises:
        UserError: llama.cpp has no place for a tensor.
    """
    if not wants_mmproj(cfg) or not family_of(source).has_towers:
        return None
    config, checkpoint = load_config(source), CheckpointFiles.of(source, family_of(source))
    tensors: FileTensors = mmproj.towers_of(checkpoint)
    if model is not None:
        tensors = {**tensors, **trained_tensors(model)}
    if said := mmproj.check_mmproj(config, tensors):
        print(said, file=sys.stderr)
        return None
    if not writes_media(tokenizer):
        print(
            "the GGUF file's chat template is your own: llama.cpp puts an image where its marker stands, without what "
            "the model's processor writes round it.",
            file=sys.stderr,
        )
    media = getattr(tokenizer, "media", None)
    most = _ROWS[0] if config.get_text_config().hidden_size < NARROW else _ROWS[1]
    shown = conversations_with_media(record for part in rows for record in part.records)
    tokens = media.most_image_tokens if media else mmproj.IMAGE_TOKENS
    return ExportedTowers(config, tensors, tokens, [*islice(shown, most)])


def wants_mmproj(cfg: Config) -> bool:
    """Whether a GGUF file is written that an mmproj file can stand beside."""
    return cfg.export.mmproj and any(name.startswith("gguf") and name != LORA for name in cfg.export.formats)


def mmproj_lines(
    name: str, file: Path, towers: ExportedTowers | None, forward: TrainedForward, tokenizer: Any
) -> Iterator[CheckLine]:
    """Reads the mmproj file beside a GGUF file back, and asks both of them about a picture, a sound, and rows' media.

    Args:
        name: The format, for people.
        file: The GGUF file.
        towers: What its mmproj file was made of; None: it has none.
        forward: The trained model.
        tokenizer: Its tokenizer.
    """
    if towers is None:
        return
    beside = next(file.parent.glob(f"{MMPROJ}*.gguf"))
    yield mmproj.stored_mmproj_line(name, beside, towers.tensors, towers.config, F16)
    media = getattr(tokenizer, "media", None)
    why = _unseeing(forward.model) if media else getattr(tokenizer, "no_media", None) or "it has no processor"
    if media is None or why:
        yield _not_asked(name, f"{why}.")
        return
    if media.images_kwargs.get("do_pan_and_scan"):
        yield CheckLine(f"{name}: Pan & Scan", "crops as in training", "none in llama.cpp", WARN, _NO_CROPS)
        tokenizer = _without_crops(tokenizer)
    limits = llama_image_tokens(media)
    reference, bounds = TrainedModel(forward), QUANTIZED if name in _QUANTIZED else AS_SERVED
    with tempfile.TemporaryDirectory() as folder:
        try:
            ours = questions(tokenizer, towers.config, Path(folder))
        except (Unrenderable, TemplateError) as error:  # a chat template of the user's own: no row has media, either
            yield _not_asked(name, str(error))
            return
        for question in ours:
            what = f"{name}: {question.medium} in llama.cpp"
            yield from media_lines(what, file, beside, reference, [question], bounds, image_tokens=limits)
    if asked := questions_of(tokenizer, towers.shown):
        yield rows_line(f"{name}: rows in llama.cpp's chat", file, beside, reference, asked, limits)


def _without_crops(tokenizer: Any) -> Any:
    """The tokenizer with media as llama.cpp sees them: without Pan & Scan."""
    made, media = copy.copy(tokenizer), tokenizer.media
    kwargs = {**media.images_kwargs, "do_pan_and_scan": False}
    made.media = MediaProcessor(media.model_type, media.soft_ids, lambda: media.files.folder, kwargs)
    return made


def _not_asked(name: str, why: str) -> CheckLine:
    return CheckLine(f"{name}: media in llama.cpp", "answers as in training", "not asked", UNVERIFIED, why)


def _unseeing(model: Any) -> str:
    """Why the trained model can't be asked; empty where it can."""
    try:
        open_towers(model)
    except (RuntimeError, UserError) as error:
        return str(error).rstrip(".")
    return ""
