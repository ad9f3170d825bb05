"""From a data file to int4 files that were measured in llama.cpp: tuning, training for int4, and one table."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console

from gemma_tune.cli.stages import of_measuring, of_quantization, of_tuning
from gemma_tune.compare.comparison import compare_models
from gemma_tune.compare.results import results_of
from gemma_tune.compare.sections import write_comparison
from gemma_tune.compare.stored import stored_results
from gemma_tune.compare.terminal import show
from gemma_tune.config import Config
from gemma_tune.data.reading import data_files
from gemma_tune.errors import RunError, UserError
from gemma_tune.models.source import find_source
from gemma_tune.process_failures import go_on_alone, waiting_for_main
from gemma_tune.processes import from_main
from gemma_tune.recipes import qat, sft
from gemma_tune.report.exported import files_section
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.paths import ON_GRID, TUNED, gguf_models
from gemma_tune.run.result import RunResult
from gemma_tune.run.terminal import say, say_files
from gemma_tune.steps.inputs import note_inputs
from gemma_tune.steps.measure_only import measure_where_read
from gemma_tune.steps.setup import set_up

read = sft.read
stages = (of_tuning, of_quantization)


def _stage(recipe: Any, cfg: Config, whole: RunFolder) -> RunResult:
    """Runs a stage, a run of its own; of an interrupted run, what is finished stays as it is."""
    folder = from_main(lambda: RunFolder.open(cfg, whole.stops))
    folder.stops = whole.stops
    if folder.finished:
        return folder.stored_result(of_now=not cfg.train.resume_data_changed)
    whole.stops.end_in_time(cfg.train.max_seconds)
    with waiting_for_main():  # which exports alone
        recipe.run(cfg, folder)
    return folder.result


def run(cfg: Config, folder: RunFolder) -> RunResult:
    """Tunes, trains for int4, exports, and measures the GGUF in llama.cpp with the evaluators of the others."""
    first, second = (stage(cfg, folder.path) for stage in stages)
    # Refuses the second training before the first begins; its model does not exist yet, and has the first one's size
    source = find_source(cfg.model)
    set_up(second, folder, partial(qat.look, find=lambda _: source))
    result, tuned, quantized = folder.result, folder.path / TUNED, folder.path / ON_GRID
    with folder.recording():
        note_inputs(cfg, folder, source, data_files(cfg.data))
        say("1 of 3: tuning")
        with folder.timed("tune"):
            result.take(TUNED, _stage(sft, first, folder))
        folder.keep_on_error = True  # from here on there is something to keep
        say("", "2 of 3: training for int4")
        try:
            with folder.timed("quantize"):
                result.take(ON_GRID, _stage(qat, second, folder))
        except (RunError, UserError) as error:
            kept = f"The tuned model is complete: recipe=qat model.model_name_or_path={tuned} continues from it."
            raise type(error)(f"{error} {kept}") from error

        folder.stops.end_in_time(cfg.train.max_seconds)
        go_on_alone()
        say("", "3 of 3: the GGUF in llama.cpp")
        gguf_file = gguf_models(quantized / "export" / "gguf")[0]
        served = of_measuring(cfg, str(gguf_file), tokenizer=str(tuned / "export" / "merged"))
        found, left_out = measure_where_read(served, "GGUF in llama.cpp", folder)
        base, after = stored_results("base", str(tuned), "before"), stored_results("tuned", str(tuned))
        int4 = stored_results("int4, trained", str(quantized))
        gguf = [results_of("GGUF in llama.cpp", found)] if found.figures else []
        last = [int4, *gguf][-1]
        comparison = compare_models([after, base, int4, *gguf], left_out=left_out)  # after is the baseline
        write_comparison(comparison, folder.report, files_section(result.metrics[ON_GRID]))
        result.artifacts |= {"report": "report.md", "page": "report.html"}
        if name := last.headline:
            result.headline = {"name": name, "before": base.figures.get(name), "after": last.figures[name]}
        result.metrics |= {"after": found.figures, "comparison": comparison.summary()}
    say("")
    show(comparison, Console(highlight=False))
    say_files(quantized, result.metrics[ON_GRID])
    say(*(f"not measured: {where}: {reason}" for where, reason in result.failures.items()))
    say("Files:", *(f"  {name:14} {folder.path / path}" for name, path in result.artifacts.items()))
    return result
