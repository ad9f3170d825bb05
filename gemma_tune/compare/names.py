"""Short names of runs, from what differs between their configurations: `learning_rate=2e-4, seed=1`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from gemma_tune.config.renamed import translated
from gemma_tune.nested import leaves
from gemma_tune.run.identity import identity_of
from gemma_tune.run.paths import without_tilde

SEED = "seed"
# Names say all that differs up to so many keys; of more, only those that tell the runs apart.
_ALL = 3
# These say most about a run, and the seed least.
_FIRST = ("recipe", "model.model_name_or_path")
# What says how a run was followed and what was written of it, which changes no figure; what another key says, too.
_LEFT_OUT = (
    "tracker.", "method", "train.logging_steps", "train.save_steps", "train.save_total_limit", "export.formats",
    "export.quality_samples", "export.mmproj", "eval.num_samples",
)  # fmt: skip
_TEXT = 60  # characters of a value


def differing(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys that are not the same in all configurations, each with its value in every one; None where it has none.

    Args:
        trees: Configurations as `config.yaml` holds them, also of earlier versions.
    """
    stored = [leaves(identity_of(translated(dict(tree)))) for tree in trees]
    flat = [{key: value for key, value in tree if not isinstance(value, Mapping)} for tree in stored]  # no empty ones
    keys = dict.fromkeys(key for tree in flat for key in tree if not key.startswith(_LEFT_OUT))
    found = {key: [tree.get(key) for tree in flat] for key in keys}
    return {key: values for key, values in found.items() if len(set(map(_frozen, values))) > 1}


def named(differences: Mapping[str, Sequence[Any]], count: int, whole: bool = False) -> list[str]:
    """A name for each of `count` runs; equal ones where nothing tells two runs apart.

    Args:
        differences: As `differing` gives them.
        count: How many runs there are.
        whole: Whether names say all that differs, however many keys that are.
    """
    keys = _telling_apart(differences, count, whole)
    short, columns = short_keys(keys), {key: short_values(differences[key]) for key in keys}
    return [", ".join(f"{short[key]}={columns[key][i]}" for key in keys) for i in range(count)]


def settings(differences: Mapping[str, Sequence[Any]], count: int, whole: bool = False) -> list[str]:
    """The same without the seed: runs of one setting are repetitions with other seeds."""
    others = {key: values for key, values in differences.items() if key != SEED}
    exact = [tuple(_frozen(values[i]) for values in others.values()) for i in range(count)]
    names = named(others, count, whole)
    # Two settings of one name: the name left out what tells them apart
    return names if len(set(names)) == len(set(exact)) else [" ".join(map(str, one)) for one in exact]


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or as many of its parts as tell it apart: `learning_rate`, `train.seed`."""
    return dict(zip(keys, _tails([tuple(key.lstrip("+").split(".")) for key in keys], "."), strict=True))


def short_values(values: Sequence[Any]) -> list[str]:
    """The values as people write them; of paths the last parts that tell them apart.

    Two values never have one text: long texts that begin alike are numbered, and numbers get all their digits.
    """
    texts = [v for v in values if isinstance(v, str)]
    short = [short_value(v) for v in values]
    if texts and any("/" in v for v in texts):
        distinct = list(dict.fromkeys(texts))
        tails = dict(zip(distinct, path_tails(distinct), strict=True))
        short = [tails[v] if isinstance(v, str) else short_value(v) for v in values]
    alike: dict[str, list[Hashable]] = {}
    for value, text in zip(values, short, strict=True):
        same = alike.setdefault(text, [])
        same += [] if _frozen(value) in same else [_frozen(value)]

    def apart(value: Any, text: str) -> str:
        if len(alike[text]) == 1:
            return text
        return repr(value) if isinstance(value, float) else f"{text} ({alike[text].index(_frozen(value)) + 1})"

    return [apart(value, text) for value, text in zip(values, short, strict=True)]


def short_value(value: Any) -> str:
    """A value as on the command line; small numbers with a power of ten: 2e-4."""
    if isinstance(value, float):
        return number(value)
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"


def number(value: float) -> str:
    """As few digits as say the number: 2e-4, 0.05, 3."""
    text = f"{value:.6g}"
    if value and abs(value) < 1e-2:
        digits, _, power = f"{value:.5e}".partition("e")
        text = f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return text


def path_tails(paths: Sequence[str]) -> list[str]:
    """The last parts of paths that tell them apart, as few as do."""
    return _tails([without_tilde(path).parts for path in paths], "/")


def _tails(parts: Sequence[tuple[str, ...]], between: str) -> list[str]:
    distinct = len(set(parts))
    longest = max(map(len, parts), default=1)
    depth = next(n for n in range(1, longest + 1) if len({p[-n:] for p in parts}) == distinct or n == longest)
    return [between.join(p[-depth:]) for p in parts]


def _telling_apart(differences: Mapping[str, Sequence[Any]], count: int, whole: bool) -> list[str]:
    """The keys that a name has: all of them, or of many as few as tell the runs apart; the seed last."""
    keys = sorted(differences, key=lambda key: (key == SEED, key not in _FIRST))
    if whole or len(keys) <= _ALL:
        return keys
    chosen: list[str] = []
    classes, most = 1, len(set(zip(*(map(_frozen, values) for values in differences.values()), strict=True)))
    while classes < min(most, count):
        found = {key: _classes([*chosen, key], differences) for key in keys if key not in chosen}
        best = max(found, key=lambda key: found[key])  # of equal ones the first
        chosen.append(best)
        classes = found[best]
    return [key for key in keys if key in chosen]


def _classes(keys: Sequence[str], differences: Mapping[str, Sequence[Any]]) -> int:
    return len(set(zip(*(map(_frozen, differences[key]) for key in keys), strict=True)))


def _frozen(value: Any) -> Hashable:
    return json.dumps(value, sort_keys=True, default=str)


def without_namesakes(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The names; those that several have get the other name behind it, which tells them apart."""
    count = Counter(names)
    return [
        f"{name} ({other})" if name and count[name] > 1 else name or other
        for name, other in zip(names, others, strict=True)
    ]
