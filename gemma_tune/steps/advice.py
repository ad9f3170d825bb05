"""What to do where an exported file is worse than its source: with the command that trains for int4."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from gemma_tune.cli.run_settings import as_evaluated
from gemma_tune.config import Config, DataConfig, ExportConfig, ModelConfig, QuantConfig
from gemma_tune.config.data import KINDS_OF_ROWS
from gemma_tune.config.methods import Reads, named_method
from gemma_tune.config.renamed import translated
from gemma_tune.run.existing import run_of, stored_config
from gemma_tune.run.paths import CONFIGS
from gemma_tune.untrusted import read_yaml
from gemma_tune.validation.commandline import in_quotes

_PLAIN = re.compile(r"(?!null$|true$|false$)[\w./:@+-]+", re.IGNORECASE)
# Of training with rewards alone; training for int4 reads answers
_OF_REWARDS = ("generator", "generator_options", "generator_seed", "prompts_only", "enable_thinking")


def advice_on(cfg: Config, metrics: Mapping[str, Any]) -> Iterator[str]:
    """What to do where a file is worse than its source: the test says so, not the figures alone.

    Args:
        cfg: The run's configuration.
        metrics: `exported_metrics`.
    """
    worse = [row["name"] for row in metrics["files"] if row.get("verdict") == "worse"]
    if not worse:
        return
    said = f"{', '.join(worse)}: {metrics['metric']} is worse than the source's."
    if cfg.quant.grid == "none":
        yield f"{said} A file of more bits is nearer to it: gguf_f16."
        return
    if cfg.traits.trains and cfg.quant.continues:
        yield (
            f"{said} That is the checkpoint before it was tuned: a lower train.learning_rate, or quant.cross_entropy "
            "below 1, stays nearer to it."
        )
        return
    if cfg.traits.trains:
        yield (
            f"{said} More training for int4 may win it back: train.num_train_epochs (quant.stage2.num_train_epochs "
            "with recipe=tune_to_int4)."
        )
        return
    yield f"{said} Training for int4 wins most of it back: {shlex.join(_qat_command(cfg))}"


def _qat_command(cfg: Config) -> list[str]:
    """Trains the same model for the same files, on the rows of its run and on what was named in their place."""
    name, q = cfg.model.model_name_or_path, cfg.quant
    words = ["python", "-m", "gemma_tune", "recipe=qat", f"model.model_name_or_path={name}"]
    # Beside what a run brings to the model of that name by itself
    by_itself = as_evaluated(replace(cfg, model=ModelConfig(name))).model
    words += _words("model", asdict(cfg.model), asdict(by_itself))
    if q.continues:  # from itself, the checkpoint has no KL divergence
        q = replace(q, cross_entropy=1.0)
    words += _words("quant", asdict(q), asdict(QuantConfig()) | read_yaml(CONFIGS / "quant" / "q4_0.yaml"))
    int4 = read_yaml(CONFIGS / "export" / "int4.yaml")
    words += _words("export", asdict(cfg.export), asdict(ExportConfig()) | int4)
    return [*words, *_rows(cfg)]


def _rows(cfg: Config) -> list[str]:
    """The words that differ from what the run brings; without a run that trained on examples, all that is named."""
    run = run_of(cfg.model.model_name_or_path)
    stored = translated(stored_config(run) or {}) if run else {}
    made = named_method(stored) if stored else None
    data, sources = asdict(cfg.data), KINDS_OF_ROWS[0][0]
    without = not any(data[key] for key in sources if key not in _OF_REWARDS)
    left_out = {*_OF_REWARDS}
    if made is not None and made.reads is Reads.EXAMPLES:
        if without:  # an export doesn't need them, and may have left the run's out
            left_out |= {key for keys in KINDS_OF_ROWS[0] for key in keys}
        return [*_words("data", data, asdict(DataConfig()) | stored.get("data", {}), left_out)]
    train = ["data.train_file=YOUR_ROWS.jsonl"] if without else []
    return ["data=auto", *train, *_words("data", data, asdict(DataConfig()), left_out)]


def _words(
    group: str, values: Mapping[str, Any], others: Mapping[str, Any], left_out: Collection[str] = ()
) -> Iterator[str]:
    """`group.key=value` for each value that is another one than in `others`, a mapping with all of its keys."""
    for key, value in values.items():
        if key in left_out or (key in others and value == others[key]):
            continue
        if isinstance(value, dict):
            yield from _words(f"{group}.{key}", value, {})
        else:
            yield f"{group}.{key}={_written(value)}"


def _written(value: Any) -> str:
    """As it stands on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else in_quotes(value)
    return json.dumps(value)
