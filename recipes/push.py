"""What a run has made, uploaded to the Hugging Face Hub with its model card: `push`. No weights are loaded."""

from __future__ import annotations

from rich.console import Console

from gemma_tune.config import Config
from gemma_tune.run.result import RunResult
from gemma_tune.sharing.contents import repositories
from gemma_tune.sharing.upload import connect, upload


def run(cfg: Config) -> RunResult:
    """Uploads; there is no run folder, and `artifacts` of the result names the repositories."""
    out, result = Console(highlight=False), RunResult(cfg.recipe, status="finished")

    # What would be sent: whole files that the run has checked, without anything of this machine in them
    found = repositories(cfg)
    for one in found:
        for line in one.lines(cfg.push):
            out.print(line, markup=False, soft_wrap=True)
    result.metrics = {"files": {one.repo_id: {file.name: file.size for file in one.files} for one in found}}
    if cfg.dry_run:
        for one in found:
            out.print(f"\n{one.repo_id}/README.md:\n\n{one.card}", markup=False, soft_wrap=True)
        out.print("Nothing was sent: dry_run=true.")
        result.status = "dry_run"
        return result

    # A token that may write there, and one commit for each repository
    hub = connect()
    for one in found:
        url = upload(hub, one, cfg.push)
        out.print(f"It is here: {url}", markup=False, soft_wrap=True)
        result.artifacts[one.repo_id] = url
    return result
