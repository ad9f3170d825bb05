"""Recipes: the order of steps, one file for each kind of work. `cli/runner.py` calls them.

A recipe with a run folder is a module with

- `run(cfg, folder) -> RunResult`: the steps, top to bottom;
- `read`: how it reads its data, which a dry run calls, too: `(cfg, setup) -> Data` where it trains, else
  `(cfg, folder)`, which gives a list of what is measured (`Measurement`);
- perhaps `look(cfg) -> Setup`: how it finds the model, where that is not `look_at_model`;
- perhaps `stages`: functions `(cfg, path) -> Config`, the trainings that it runs one after the other;

`chat` and `preview` keep no run folder: they have `run(cfg)` alone.
"""
