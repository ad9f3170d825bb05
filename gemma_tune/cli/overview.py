"""What the command line prints of itself: the recipes, examples, and `--help`."""

from __future__ import annotations

import re

from gemma_tune.run.paths import CONFIGS, shipped_recipes

_EXAMPLES = """\
Examples:
  python -m gemma_tune recipe=qlora_sft
  python -m gemma_tune recipe=lora_sft model=gemma3_1b_it data=messages data.train_file=my.jsonl
  python -m gemma_tune recipe=qlora_sft model=gemma3_4b_it data=columns data.train_file=my.jsonl \\
      data.prompt_column=question data.completion_column=answer dry_run=true"""

_HELP = """\
python -m gemma_tune recipe=NAME [group=option …] [key=value …]

  group=option    choose a file of configs/: {groups}
  key=value       set a value, for example train.learning_rate=1e-4 (docs/configuration.md lists all)
  dry_run=true    check settings and rows, count tokens, estimate the memory; train nothing
  rerun=FILE      repeat a run from its config.yaml (with output_dir=… overwrite=… dry_run=…)

  --config-dir FOLDER   look for your own YAML files there, too (FOLDER/recipe/my_run.yaml)
  -m, --multirun        run every combination of comma-separated values; ends with a table (runs/sweep-…)
  --cfg job             print the composed configuration, unresolved and unchecked
  recipe=NAME --help    what one recipe does, and its keys
  --version             the versions of gemma_tune and what it is built on

Values with blanks, brackets or commas are written in quotes: 'eval.evaluators=[held_out_loss,answers]'.
"""


def recipes() -> dict[str, str]:
    """The shipped recipes, each with the first line of its YAML's comment."""
    found = {}
    for name, file in shipped_recipes().items():
        comments = re.findall(r"^# (?!@package)(.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = comments[0] if comments else ""
    return found


def overview() -> str:
    """What `python -m gemma_tune` alone prints."""
    width = max(len(n) for n in recipes())
    lines = [f"  {name.ljust(width)}  {line}" for name, line in recipes().items()]
    return "\n".join(["Recipes (python -m gemma_tune recipe=NAME):", *lines, "", _EXAMPLES])


def help_page() -> str:
    """What `--help` prints."""
    groups = " ".join(sorted(p.name for p in CONFIGS.iterdir() if p.is_dir()))
    return _HELP.format(groups=groups) + "\n" + overview()
