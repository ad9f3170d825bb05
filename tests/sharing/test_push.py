"""`recipe=push` against a stand-in for the Hub: files and card arrive whole, and nothing of the maker's machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import READS_ONLY, TOKEN, HubServer, StoredRepository, serving
from huggingface_hub import ModelCard
from short_runs import short_run

import gemma_tune
from gemma_tune.cli.compose import compose_config
from gemma_tune.errors import UserError
from gemma_tune.run.manifest import file_digest
from gemma_tune.run.paths import ASSETS
from gemma_tune.sharing.contents import Repository, SentFile, repositories
from gemma_tune.sharing.private import Secrets, check_private, without_paths

Finished = Callable[[str], tuple[Path, gemma_tune.RunResult]]
BASE = "google/gemma-3-270m-it"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with serving() as server:
        yield server


@pytest.fixture
def run(finished: Finished, folder: Path) -> Path:
    """A copy of a LoRA run; tests may change it."""
    return Path(shutil.copytree(finished("lora_sft")[0], folder / "run", ignore=shutil.ignore_patterns("checkpoints")))


def words(run: Path, *more: str) -> list[str]:
    return [f"model.model_name_or_path={run}", "push.repo_id=me/tuned", *more]


def push(hub: HubServer | str, run: Path, *more: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a user's environment."""
    address = hub if isinstance(hub, str) else hub.address
    env = {n: v for n, v in os.environ.items() if not n.startswith("HF_")} | {
        "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(Path.cwd() / "hf_home"),
        "WANDB_API_KEY": "wandb-0123456789abcdef", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    env |= {"HF_TOKEN": token} if token else {}
    given = {word.partition("=")[0]: word for word in words(run, *more)}
    command = [sys.executable, "-m", "gemma_tune", "recipe=push", *given.values()]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_files_and_card_arrive_whole(hub: HubServer, run: Path) -> None:
    """Private, every file to the byte; nothing of the machine, of keys or of rows in any request."""
    before = len(hub.received)
    done = push(hub, run, "push.base_model=" + BASE)
    assert done.returncode == 0, done.stderr
    stored = hub.repositories["me/tuned"]
    assert stored.private and stored.messages[-1] == "Upload merged with gemma_tune"
    there, merged = stored.branches["main"], run / "export" / "merged"
    assert there.keys() == {p.name for p in merged.iterdir()}
    assert all(there[name] == (merged / name).read_bytes() for name in there if name != "README.md")
    card = ModelCard(there["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation) == (BASE, "finetune")
    assert card.text == ModelCard.load(merged / "README.md").text
    rows = [json.loads(line) for line in (ASSETS / "sample" / "test.jsonl").read_text("utf-8").splitlines()[:50]]
    texts = [row["messages"][0]["content"] for row in rows]
    for request in hub.received[before:]:
        for secret in (TOKEN, "wandb-0123456789abcdef", str(run), str(ASSETS), str(Path.cwd()), *texts):
            assert secret.encode() not in request
    assert TOKEN not in done.stdout + done.stderr + "".join(p.read_text("utf-8") for p in run.glob("*.json"))
    assert f"It is here: {hub.address}/me/tuned" in done.stdout

    # Once more: nothing large is sent again, and weights that are no longer there go
    there["model-00002-of-00002.safetensors"] = b"of an earlier commit"
    puts = sum(request.startswith("PUT") for request in hub.requests)
    again = push(hub, run, "push.commit_message=Once more", "push.artifacts=[merged]")
    assert again.returncode == 0, again.stderr
    assert puts == sum(request.startswith("PUT") for request in hub.requests)
    assert stored.messages[-1] == "Once more" and "model-00002-of-00002.safetensors" not in stored.branches["main"]
    assert stored.branches["main"]["README.md"] == (merged / "README.md").read_bytes(), "as it stands in the run"


@pytest.mark.slow
def test_an_adapter_names_its_base_on_the_hub(hub: HubServer, run: Path) -> None:
    refused = push(hub, run, "push.artifacts=[adapter]", "push.repo_id=me/adapter")
    assert refused.returncode == 2 and "push.base_model=OWNER/NAME" in refused.stderr
    assert "me/adapter" not in hub.repositories
    more = ["push.artifacts=[adapter]", "push.repo_id=me/adapter", f"push.base_model={BASE}", "push.revision=v1"]
    done = push(hub, run, *more, "push.private=false")
    assert done.returncode == 0, done.stderr
    stored = hub.repositories["me/adapter"]
    there = stored.branches["v1"]
    assert not stored.private and stored.branches["main"] == {}
    config = json.loads(there["adapter_config.json"])
    own = json.loads((run / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config == own | {"base_model_name_or_path": BASE}
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == there["adapter_model.safetensors"]
    assert ModelCard(there["README.md"].decode()).data.base_model_relation == "adapter"
    public = push(hub, run, *more)  # private is the default, and this repository is public
    assert public.returncode == 2 and "this repository is public" in public.stderr
    other = push(hub, run, "push.repo_id=me/adapter", "push.revision=v1", "push.private=false")
    assert other.returncode == 2 and "holds an adapter" in other.stderr


FAULTS = {
    "no token": ((), "", "", 2, "there is no token for"),
    "a wrong token": ((), "hf_" + "0" * 40, "", 2, "does not know the token"),
    "a token that reads": ((), READS_ONLY, "", 2, "the token may not write there"),
    "another owner": (("push.repo_id=other/name",), TOKEN, "", 2, "the token may not write there"),
    "an interrupted upload": ((), TOKEN, "/commit/", 1, "the upload was interrupted (status 500"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith("a ") else n for n in FAULTS])
@pytest.mark.slow
def test_what_the_hub_refuses_is_one_message(name: str, hub: HubServer, run: Path) -> None:
    more, token, fails_at, status, message = FAULTS[name]
    hub.fails_at = fails_at
    hub.repositories["me/again"] = StoredRepository(private=True)
    try:
        done = push(hub, run, "push.repo_id=me/again", *more, token=token)
    finally:
        hub.fails_at = ""
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert message in done.stderr and (not token or token not in done.stderr)
    assert hub.repositories["me/again"].branches == {"main": {}}


@pytest.mark.slow
def test_without_a_network(run: Path) -> None:
    done = push("http://127.0.0.1:9", run)
    assert done.returncode == 2 and "the Hub can't be asked" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_sent(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "export" / "merged" / "notes.txt").write_text("mine")
    result = gemma_tune.run("push", words(run, "dry_run=true"))
    said, card = capsys.readouterr().out, (run / "export" / "merged" / "README.md").read_text("utf-8")
    assert "me/tuned (private, branch main): merged" in said and card in said
    sizes = {p.name: p.stat().st_size for p in (run / "export" / "merged").iterdir() if p.name != "notes.txt"}
    assert result.metrics["files"] == {"me/tuned": sizes}
    assert all(f"{name}: {size:,} bytes" in said for name, size in sizes.items())
    assert "not sent: export/merged/notes.txt" in said and "Nothing was sent: dry_run=true." in said


@pytest.mark.slow
def test_several_artifacts_have_repositories_of_their_own(finished: Finished) -> None:
    run, _ = finished("qat, lora")
    asked = ["push.artifacts=[merged,gguf,w4a16,adapter]", f"push.base_model={BASE}", "dry_run=true"]
    found = gemma_tune.run("push", words(run, *asked)).metrics["files"]
    assert list(found) == ["me/tuned", "me/tuned-GGUF", "me/tuned-w4a16", "me/tuned-LoRA"]
    assert {"Modelfile", "README.md"} < found["me/tuned-GGUF"].keys()


def _add_gguf_files(run: Path) -> None:
    """Two GGUF files as a run leaves them, each with a Modelfile and a card."""
    result, manifest = (json.loads((run / name).read_text("utf-8")) for name in ("result.json", "manifest.json"))
    for kind in ("f16", "q8_0"):
        name, place = f"gguf_{kind}", run / "export" / f"gguf_{kind}"
        place.mkdir()
        (place / f"tiny-{kind}.gguf").write_bytes(f"GGUF {kind}".encode())
        (place / "Modelfile").write_text(f"FROM ./tiny-{kind}.gguf\n", encoding="utf-8")
        title, use = f"# tiny: {kind}", f"ollama create tiny-{kind} -f ./Modelfile && ollama run tiny-{kind}"
        text = f"---\nlibrary_name: gguf\ntags:\n- gguf\n---\n{title}\n\n{use}\n"
        (place / "README.md").write_text(text, encoding="utf-8")
        result["artifacts"][name] = f"export/{name}"
        files = [p for p in place.iterdir() if p.name != "README.md"]
        manifest["artifacts"][name] = {p.relative_to(run).as_posix(): file_digest(p) for p in files}
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.slow
def test_two_gguf_files_share_a_repository(run: Path) -> None:
    """Each file with the Modelfile that names it, and one card that names both."""
    _add_gguf_files(run)
    (found,) = repositories(compose_config("push", words(run, "push.artifacts=[gguf_f16,gguf_q8_0]")))
    files = {file.name: file.content for file in found.files}
    assert list(files) == ["Modelfile", "README.md", "gguf_q8_0.Modelfile", "tiny-f16.gguf", "tiny-q8_0.gguf"]
    for modelfile, gguf in (("Modelfile", "tiny-f16.gguf"), ("gguf_q8_0.Modelfile", "tiny-q8_0.gguf")):
        content = files[modelfile]
        assert isinstance(content, Path) and content.read_text("utf-8") == f"FROM ./{gguf}\n"
    card = ModelCard(found.card)
    assert card.data.library_name == "gguf" and card.content.count("library_name") == 1
    commands = [line for line in card.text.splitlines() if line.startswith("ollama")]
    assert commands == [
        "ollama create tiny-f16 -f ./Modelfile && ollama run tiny-f16",
        "ollama create tiny-q8_0 -f ./gguf_q8_0.Modelfile && ollama run tiny-q8_0",
    ]


@pytest.mark.slow
def test_no_path_of_a_local_base_is_sent(run: Path) -> None:
    """In the run folder PEFT finds its base by it; what is sent has the base's name on the Hub in its place."""
    own = json.loads((run / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert Path(own["base_model_name_or_path"]).is_absolute()
    more = ["push.artifacts=[adapter,merged]", f"push.base_model={BASE}"]
    for repository in repositories(compose_config("push", words(run, *more))):
        for file in repository.files:
            content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
            for path in (own["base_model_name_or_path"], str(ASSETS), str(run), str(Path.home())):
                assert path.encode() not in content, (file.name, path)
            if file.name == "adapter_config.json":
                assert json.loads(content) == own | {"base_model_name_or_path": BASE}


@pytest.mark.slow
def test_cards_of_equal_runs_are_equal(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, from other folders and at another time; and the two GGUF files arrive under one card."""
    pytest.importorskip("xllamacpp")
    asked = ("export.formats=[merged,gguf_f16,gguf_q8_0,gguf_lora]", "eval.evaluators=[held_out_loss,answers]")
    runs = folder / "one", folder / "somewhere" / "else" / "two"
    for run in runs:
        run.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(run.parent)
        short_run("lora_sft", run, *asked, "eval.max_samples=4")
    monkeypatch.chdir(folder)
    names = [card.relative_to(runs[0]) for card in sorted(runs[0].rglob("README.md"))]
    assert [name.parent.name for name in names] == ["adapter", "gguf_f16", "gguf_lora", "gguf_q8_0", "merged"]
    for name in names:
        text = (runs[0] / name).read_text("utf-8")
        assert text == (runs[1] / name).read_text("utf-8"), name
        assert not re.search(r"\d\d:\d\d|20\d\d-\d\d-\d\d|[0-9.]+ (seconds|minutes)", text) and str(folder) not in text
    done = push(hub, runs[1], "push.repo_id=me/both", "push.artifacts=[gguf_f16,gguf_q8_0]")
    assert done.returncode == 0, done.stderr
    there = hub.repositories["me/both"].branches["main"]
    assert list(there) == ["Modelfile", "README.md", "gguf_q8_0.Modelfile", "tiny-f16.gguf", "tiny-q8_0.gguf"]
    for modelfile, gguf in (("Modelfile", "tiny-f16.gguf"), ("gguf_q8_0.Modelfile", "tiny-q8_0.gguf")):
        assert f"FROM ./{gguf}" in there[modelfile].decode() and f"-f ./{modelfile} " in there["README.md"].decode()
        assert there[gguf] == (runs[1] / "export" / f"gguf_{gguf[5:-5]}" / gguf).read_bytes()


def _unfinished(run: Path) -> None:
    file = run / "result.json"
    file.write_text(file.read_text("utf-8").replace('"finished"', '"interrupted"'), encoding="utf-8")


def _failed_check(run: Path) -> None:
    result = json.loads((run / "result.json").read_text("utf-8"))
    result["metrics"]["verify"] = [{"name": "gguf: codes and scales", "verdict": "fail"}]
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _changed(run: Path) -> None:
    file = run / "export" / "merged" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _card(text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        file = run / "export" / "merged" / "README.md"
        file.write_text(file.read_text("utf-8") + text.replace("RUN", str(run)), encoding="utf-8")

    return change


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "not finished": (_unfinished, "this run is not finished (its status is interrupted)"),
    "a failed check": (_failed_check, "the check of its files failed (gguf: codes and scales)"),
    "a changed tensor": (_changed, "model.safetensors: this file has changed since the run checked it"),
    "a file that is gone": (lambda r: (r / "export/merged/config.json").unlink(), "config.json: this file of the run"),
    "no card": (lambda r: (r / "export/merged/README.md").unlink(), "it has no README.md"),
    "a broken card": (lambda r: (r / "export/merged/README.md").write_text("---\n[\n---\n"), "can't be read"),
    "a path": (_card("\nTrained in RUN/eval.\n"), "README.md: it holds a path of this machine"),
    "a token": (_card(f"\n{TOKEN}\n"), "README.md: it holds a token of the Hub"),
    "no manifest": (lambda r: (r / "manifest.json").write_text("{}"), "does not list the files of merged"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.slow
def test_what_is_not_sent(name: str, run: Path) -> None:
    change, message = REFUSED[name]
    change(run)
    with pytest.raises(UserError) as refused:
        gemma_tune.run("push", words(run, "dry_run=true"))
    assert message in str(refused.value) and TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["push.repo_id=name"], "push.repo_id=name: write OWNER/NAME"),
        (["push.repo_id=me/a--b"], "write OWNER/NAME"),
        (["push.repo_id=https://huggingface.co/me/name"], "write OWNER/NAME"),
        (["push.artifacts=[w4a16]"], "has no w4a16; it has adapter, merged"),
        (["push.artifacts=[merge]"], "Did you mean merged?"),
        (["push.artifacts=[merged,merged]"], "names merged twice"),
        (["push.revision=a b"], "can't be the name of a branch"),
        (["model.model_name_or_path=assets://tiny"], "name the run whose artifacts"),
        (["train.max_steps=3"], "has no effect with recipe=push"),
    ],
)
@pytest.mark.slow
def test_mistakes(more: list[str], message: str, run: Path) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.").replace("?", r"\?")):
        gemma_tune.run("push", list({w.partition("=")[0]: w for w in words(run, *more)}.values()))


@pytest.mark.slow
def test_an_artifact_is_named_by_its_run(run: Path) -> None:
    with pytest.raises(UserError, match=r"this is no run folder.* name the run, .*/run, and the artifact"):
        gemma_tune.run("push", words(run / "export" / "merged"))


@pytest.mark.slow
def test_settings_with_paths_are_left_out(tmp_path: Path) -> None:
    """Of the keys that libraries write; what is no path stays as it is."""
    file = tmp_path / "config.json"
    kept = {"model_type": "gemma3_text", "_name_or_path": BASE, "chat_template": "{{ a }}\n/b/c"}
    file.write_text(json.dumps(kept), encoding="utf-8")
    assert without_paths(file) == (file, [])
    paths = {"name_or_path": "/home/ann/m", "special_tokens_map_file": "C:\\Users\\ann\\m.json", "base": "/home/ann/m"}
    file.write_text(json.dumps(kept | paths), encoding="utf-8")
    content, said = without_paths(file)
    assert isinstance(content, bytes) and json.loads(content) == kept
    assert said == ["config.json is sent without name_or_path, special_tokens_map_file, base: a path of this machine"]
    file.write_text(json.dumps({"text_config": {"_name_or_path": "/home/ann/m", "layers": 3}}), encoding="utf-8")
    content, said = without_paths(file)
    assert isinstance(content, bytes) and json.loads(content) == {"text_config": {"layers": 3}}
    assert "text_config._name_or_path" in said[0]


@pytest.mark.slow
def test_keys_and_paths_are_found_in_weights_too() -> None:
    secrets = Secrets({"WANDB_API_KEY": "0123456789"}, ("/home/ann/modèle/x",))
    check_private([("model.safetensors", b'{"a": "b"}')], secrets)
    for content, found in (
        (b'{"__metadata__": "0123456789"}', "the value of WANDB_API_KEY"),
        ("/home/ann/modèle/x".encode(), "a path of this machine"),
        (json.dumps("/home/ann/modèle/x/y").encode(), "a path of this machine"),
    ):
        with pytest.raises(UserError, match=found) as refused:
            check_private([("model.gguf", content)], secrets)
        assert "0123456789" not in str(refused.value)
    assert Repository("a/b", [], [SentFile("x", b"12")], "").files[0].size == 2
