"""report.md and report.html: what was done, from what, how well, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_tune.config import Config
from gemma_tune.config.methods import Reads
from gemma_tune.errors import RunError
from gemma_tune.evals.evaluation import Evaluation
from gemma_tune.page.charts import draw_curves
from gemma_tune.page.html import html
from gemma_tune.page.markdown import markdown
from gemma_tune.page.text import VISIBLE
from gemma_tune.report.curves import read_panels
from gemma_tune.report.sections import PICTURE, ReportInputs, sections
from gemma_tune.run.folder import RunFolder

PAGE_MARK = '<meta name="generator" content="gemma_tune report">'


def write_report(
    cfg: Config,
    folder: RunFolder,
    trained: str,
    before: Evaluation,
    after: Evaluation,
    notes: Sequence[str] = (),
    checks: Sequence[str] = (),
) -> Path:
    """Writes report.md with loss.png, report.html, and the model card of each artifact.

    Args:
        cfg: The configuration.
        folder: The run folder, with its result.
        trained: What was trained, in one line.
        before: The evaluation before training; empty where there is none.
        after: The evaluation after training.
        notes: Notes about the rows, a line each.
        checks: The checks before training, a line each.

    Returns:
        The path of report.md.

    Raises:
        RunError: A file can't be written.
    """
    from gemma_tune.report.card import write_cards  # loads what exports; the package's other modules don't

    # Other losses, and `dft`, are no mean over tokens of a cross-entropy or a KL
    in_nats = cfg.traits.reads is Reads.EXAMPLES and cfg.train.loss_type != "dft"
    panels = read_panels(folder.metrics, "loss, nats a token" if in_nats else "loss")
    inputs = ReportInputs(cfg, folder, trained, before, after, panels, notes, checks)
    try:
        write_cards(inputs)  # before the sizes of the artifacts are counted
        title, parts = f"{cfg.recipe}: {cfg.model.model_name_or_path}".translate(VISIBLE), sections(inputs)
        if panels:
            draw_curves(panels, folder.path / PICTURE)
        for file, lines in (
            (folder.report, markdown(title, parts)),
            (folder.report.with_suffix(".html"), html(title, PAGE_MARK, parts)),
        ):
            # File names may hold bytes that aren't UTF-8
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RunError(f"{folder.report}: the report can't be written ({error.strerror or error}).") from error
    return folder.report
