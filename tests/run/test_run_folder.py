"""Which folder a run has, when it may use it, and what it leaves there. No model and no torch."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemma_tune.cli.compose import compose_config, load_stored
from gemma_tune.config import Config
from gemma_tune.errors import RunError, UserError
from gemma_tune.run.checkpoints import seal
from gemma_tune.run.folder import RunFolder
from gemma_tune.run.identity import folder_of, identity
from gemma_tune.run.manifest import file_digest, write_json
from gemma_tune.run.paths import folder_status

WAYS_OUT = ("another output_dir", "overwrite=true")


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and one process alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture(scope="module")
def cfg() -> Config:
    """The configuration of `recipe=lora_sft`."""
    return compose_config("lora_sft")


def finish(cfg: Config) -> RunFolder:
    """A run that did nothing and finished."""
    folder = RunFolder.open(cfg)
    with folder.recording():
        folder.result.headline = {"name": "held_out_loss", "before": 2.0, "after": 1.0}
    return folder


def begin_and_stop(cfg: Config, error: BaseException) -> RunFolder:
    """A run that ended with an error."""
    folder = RunFolder.open(cfg)
    with pytest.raises(type(error)), folder.recording():
        raise error
    return folder


def refusal(cfg: Config) -> str:
    """The message with which a folder is refused; every such message names the ways out."""
    with pytest.raises(UserError) as caught:
        RunFolder.open(cfg)
    message = str(caught.value)
    assert all(way in message for way in WAYS_OUT), message
    return message


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_default_folder_is_stable(cfg: Config) -> None:
    """The same words give the same folder in another process, so every rank finds it."""
    folder = folder_of(cfg)
    assert folder == folder_of(compose_config("lora_sft"))
    # The same digest by hand: it may not hang on Python's hash() or on the order of keys.
    text = json.dumps(identity(cfg), sort_keys=True).encode()
    assert folder == Path("runs") / f"lora_sft-{hashlib.sha256(text).hexdigest()[:8]}"


def test_every_setting_has_its_folder() -> None:
    words = [
        "seed=1", "adapter.r=4", "adapter=dora", "model.load_in_4bit=true", "train.learning_rate=1e-4",
        "train.extra.adam_beta2=0.95", "data.max_train_samples=8", "eval=none", "export=none", "tracker=none",
    ]  # fmt: skip
    folders = {folder_of(compose_config("lora_sft", [w])) for w in words}
    folders |= {folder_of(compose_config(r)) for r in ("lora_sft", "qlora_sft", "full_sft")}
    assert len(folders) == len(words) + 3


@pytest.mark.parametrize(
    "word", ["overwrite=true", "dry_run=true", "train.resume_from_checkpoint=latest", "tracker.group=x"]
)
def test_how_it_is_carried_out_changes_no_folder(cfg: Config, word: str) -> None:
    assert folder_of(compose_config("lora_sft", [word])) == folder_of(cfg)


def test_named_folder(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert folder_of(replace(cfg, output_dir="out/a")) == Path("out/a")
    assert folder_of(replace(cfg, output_dir="~/out")) == Path("/home/ada/out")
    assert identity(replace(cfg, output_dir="out/a")) == identity(cfg)


def test_nothing_is_written_before_recording(cfg: Config) -> None:
    folder = RunFolder.open(cfg)
    assert not folder.finished
    assert list(Path.cwd().iterdir()) == []


def test_recording_begins_as_running(cfg: Config) -> None:
    """A process that is killed leaves a result that says so."""
    folder = RunFolder.open(cfg)
    with folder.recording():
        assert read(folder.path / "result.json")["status"] == "running"
        assert (folder.path / "manifest.json").is_file()
    assert folder_status(folder.path) == "finished"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "interrupted"), (ValueError("x"), "failed")])
def test_how_it_ended(cfg: Config, error: BaseException, status: str) -> None:
    folder = begin_and_stop(cfg, error)
    assert folder_status(folder.path) == status
    assert not RunFolder.open(cfg).finished  # without a checkpoint it may simply be run again


def test_finished_run_is_recognised(cfg: Config) -> None:
    first = finish(cfg)
    second = RunFolder.open(cfg)
    assert second.finished and second.path == first.path
    stored = second.stored_result()
    assert (stored.status, stored.headline_after, stored.folder) == ("finished", 1.0, first.path)
    assert read(first.path / "result.json").keys() == {
        "recipe", "status", "headline", "metrics", "artifacts", "seconds", "failures", "peak_memory_mb", "reason",
    }  # fmt: skip


def test_stored_configuration_repeats_the_run(cfg: Config) -> None:
    """`rerun=` needs the file alone: it gives the same configuration, and goes where it is told to."""
    folder = finish(compose_config("lora_sft", ["output_dir=first", "train.extra.adam_epsilon=1e-9", "seed=7"]))
    assert read(folder.path / "result.json")["recipe"] == "lora_sft"
    for stored in (folder.path, folder.path / "config.yaml"):
        again = load_stored(stored, ["output_dir=second", "dry_run=true"])
        assert identity(again) == identity(folder.cfg)
        assert (again.output_dir, again.dry_run, again.overwrite) == ("second", True, False)
    assert load_stored(folder.path, []).output_dir is None


def test_folder_of_another_configuration_is_refused(cfg: Config) -> None:
    finish(replace(cfg, output_dir="out"))
    assert "another configuration" in refusal(replace(cfg, output_dir="out", seed=7))
    assert folder_status(Path("out")) == "finished"


def test_folder_of_something_else_is_refused(cfg: Config) -> None:
    """Files of the user's stay where they are."""
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds no run of ours; name another folder"):
            RunFolder.open(replace(cfg, output_dir="out", overwrite=overwrite))
    assert Path("out/thesis.txt").is_file()


def write_checkpoint(folder: RunFolder, step: int, last: int = 9) -> Path:
    """A checkpoint as trainers leave it, without weights."""
    place = folder.checkpoints / f"step-{step}"
    place.mkdir(parents=True)
    state = {"global_step": step, "max_steps": last, "best_global_step": None}
    (place / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    (place / "optimizer.pt").write_bytes(bytes(range(99)))
    seal(place)
    return place


def resuming(cfg: Config, how: str) -> Config:
    return replace(cfg, train=replace(cfg.train, resume_from_checkpoint=how))


def test_a_begun_run_goes_on(cfg: Config) -> None:
    """From its newest checkpoint, without a word; `never` refuses, and `latest` insists."""
    with pytest.raises(UserError, match=r"=latest: .*holds no checkpoint \(train.save_steps writes them\)"):
        RunFolder.open(resuming(cfg, "latest"))
    folder = begin_and_stop(cfg, KeyboardInterrupt())
    with pytest.raises(UserError, match=r"=latest: .*holds no checkpoint"):
        RunFolder.open(resuming(cfg, "latest"))
    assert RunFolder.open(cfg).resumed is None
    for step in (2, 5):
        write_checkpoint(folder, step)
    assert "was begun and has checkpoints; leave out train.resume" in refusal(resuming(cfg, "never"))
    for how in ("auto", "latest", str(folder.checkpoints / "step-2")):
        again = RunFolder.open(resuming(cfg, how))
        assert again.resumed and again.resumed.step == (2 if how.endswith("step-2") else 5)
        assert not again.resumed.at_the_end
        with pytest.raises(ValueError, match="x"), again.recording():
            assert (folder.checkpoints / "step-2").is_dir(), "resuming must keep the checkpoints"
            raise ValueError("x")
    # From an earlier one, those behind it stand aside until the run is finished
    assert (folder.path / ".replaced" / "checkpoints" / "step-5").is_dir()
    assert RunFolder.open(replace(cfg, overwrite=True)).resumed is None  # overwrite wins over auto, a path over both
    named = replace(resuming(cfg, str(folder.checkpoints / "step-2")), overwrite=True)
    assert getattr(RunFolder.open(named).resumed, "step", None) == 2
    for step in (9,):
        write_checkpoint(folder, step)
    assert getattr(RunFolder.open(cfg).resumed, "at_the_end", False)


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json", "digests.json"])
@pytest.mark.parametrize("how", ["cut", "emptied", "removed", "one bit"])
def test_a_damaged_checkpoint_is_passed_over(cfg: Config, name: str, how: str) -> None:
    folder = begin_and_stop(cfg, KeyboardInterrupt())
    whole, broken = (write_checkpoint(folder, step) for step in (2, 5))
    content = bytearray((broken / name).read_bytes())
    content[len(content) // 3] ^= 4
    if how == "removed":
        (broken / name).unlink()
    else:
        changed = {"cut": bytes(content[:-7]), "emptied": b"", "one bit": bytes(content)}[how]
        (broken / name).write_bytes(changed)
    again = RunFolder.open(cfg).resumed
    assert again and again.step == 2 and f"passed over {broken}: {name} " in again.lines()[0]
    with pytest.raises(UserError, match=rf"step-5: {name} .*name another checkpoint"):
        RunFolder.open(resuming(cfg, str(broken)))
    (whole / "optimizer.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"passed over .*step-5.*passed over .*step-2.*overwrite=true"):
        RunFolder.open(cfg)


def test_only_an_end_needs_no_optimizer(cfg: Config) -> None:
    """What holds the weights alone is no step to go on from."""
    folder = begin_and_stop(cfg, KeyboardInterrupt())
    write_checkpoint(folder, 2)
    for step, expected in ((5, (2, False)), (9, (9, True))):
        alone = write_checkpoint(folder, step)
        (alone / "optimizer.pt").unlink()
        seal(alone)
        again = RunFolder.open(cfg).resumed
        assert again and (again.step, again.at_the_end) == expected
        assert again.at_the_end or f"passed over {alone}: it has no optimizer's state" in again.lines()[0]


def test_one_process_at_a_time(cfg: Config) -> None:
    """The second one is refused by host and number, however it wants to use the folder; the dead keep nothing."""
    child = (
        "import sys, time\nfrom pathlib import Path\nfrom gemma_tune.run.lock import locked\n"
        "Path('out').mkdir(exist_ok=True)\n"
        "with locked(Path('out')):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    cfg = replace(cfg, output_dir="out")
    begin_and_stop(cfg, ValueError("x"))
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        for other in (cfg, resuming(cfg, "latest"), replace(cfg, overwrite=True)):
            with pytest.raises(UserError, match=rf"out: process {process.pid} on \S+ is writing there"):
                RunFolder.open(other)
        assert folder_status(Path("out")) == "failed"
        process.kill()
    folder = RunFolder.open(cfg)
    with folder.recording():
        assert folder_status(Path("out")) == "running"
        with pytest.raises(UserError, match=rf"process {os.getpid()} "):
            RunFolder.open(replace(cfg, overwrite=True))
    assert not list(Path("out").glob(".lock"))


def test_a_run_that_died_is_shown_as_such(cfg: Config) -> None:
    folder = finish(cfg)
    write_json(folder.path / "result.json", {"status": "running"})
    assert folder_status(folder.path) == "died"


def test_overwrite_deletes_no_file_of_the_users(cfg: Config) -> None:
    """Wherever it lies in the folder; the first one is named."""
    cfg = replace(cfg, output_dir="out", train=replace(cfg.train, save_steps=3))
    folder = RunFolder.open(cfg)
    with folder.recording():
        folder.adapter.mkdir()
        (folder.adapter / "a.bin").touch()
        folder.result.artifacts["adapter"] = "adapter"
        write_checkpoint(folder, 3)
    RunFolder.open(replace(cfg, overwrite=True))
    for name in ("notes.txt", "adapter/mine.txt", "checkpoints/step-3/mine", "export/mine/a", "mine/config.yaml"):
        Path("out", name).parent.mkdir(parents=True, exist_ok=True)
        Path("out", name).write_text("x", encoding="utf-8")
        with pytest.raises(UserError, match=rf"would delete out/{name}, which no run has written there"):
            RunFolder.open(replace(cfg, overwrite=True))
        Path("out", name).unlink()
    (Path("out") / "export").joinpath("mine").rmdir()
    with RunFolder.open(replace(cfg, overwrite=True)).recording():
        pass


def begin_on(cfg: Config, inputs: Path) -> None:
    """A run that read these inputs, and was interrupted behind a checkpoint."""
    folder = RunFolder.open(cfg)
    with pytest.raises(KeyboardInterrupt), folder.recording():
        folder.add_inputs(inputs)
        folder.check_inputs()
        write_checkpoint(folder, 3)
        raise KeyboardInterrupt


def test_inputs_that_changed(cfg: Config) -> None:
    """The old digest stays, and so does what the run has left."""
    Path("rows.jsonl").write_text("1", encoding="utf-8")
    cfg = replace(cfg, output_dir="out")
    begin_on(cfg, Path("rows.jsonl"))
    Path("rows.jsonl").write_text("2", encoding="utf-8")
    for _ in range(2):
        again = RunFolder.open(cfg)
        with pytest.raises(UserError, match=r"rows\.jsonl: this file has changed since"), again.recording():
            again.add_inputs(Path("rows.jsonl"))
            again.check_inputs()
        assert folder_status(Path("out")) == "interrupted"
    allowed = replace(cfg, train=replace(cfg.train, resume_data_changed=True))
    again = RunFolder.open(allowed)
    with again.recording():
        again.add_inputs(Path("rows.jsonl"))
        again.check_inputs()
    assert again.resumed and folder_status(Path("out")) == "finished"


@pytest.mark.parametrize("name", [".", "..", "../..", "link/.."])
def test_the_current_folder_is_no_run_folder(cfg: Config, name: str) -> None:
    Path("link").mkdir()
    with pytest.raises(UserError, match="this is the folder that you are in, or one above it"):
        RunFolder.open(replace(cfg, output_dir=name))
    assert Path("link").is_dir()


def test_a_link_is_followed(cfg: Config) -> None:
    Path("disk").mkdir()
    Path("out").symlink_to("disk")
    for overwrite in (False, True):
        with RunFolder.open(replace(cfg, output_dir="out", overwrite=overwrite)).recording():
            pass
        assert Path("out").is_symlink() and folder_status(Path("disk")) == "finished"
    assert {p.name for p in Path.cwd().iterdir()} == {"disk", "out"}


def test_killed_between_its_first_files(cfg: Config) -> None:
    """And while another run was to be replaced: nothing stands in the way of the next start."""
    cfg = replace(cfg, output_dir="out")
    folder = finish(cfg)
    for name in ("manifest.json", "result.json"):
        (folder.path / name).unlink()
    (folder.path / "result.json.partial").write_text("{", encoding="utf-8")
    finish(cfg)
    assert {p.name for p in folder.path.iterdir()} == {"config.yaml", "manifest.json", "result.json"}
    for error in (KeyboardInterrupt(), ValueError("x")):
        begin_and_stop(replace(cfg, overwrite=True), error)
        kept = Path("out/.replaced/result.json")
        assert read(kept)["status"] == "finished"
    finish(cfg)
    assert not kept.exists() and folder_status(Path("out")) == "finished"


def test_no_file_of_the_users_goes_with_a_run_that_begins_anew(cfg: Config) -> None:
    """Nor an empty folder, nor a link; and a folder that can't be renamed, as a mounted disk, is used as it is."""
    cfg = replace(cfg, output_dir="out")
    folder = begin_and_stop(cfg, KeyboardInterrupt())
    for name in ("thesis.txt", "eval/notes.txt", "checkpoints/checkpoint-mine/x", "mine.partial", "mine.part/x"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("years of work", encoding="utf-8")
    (folder.path / "sub").mkdir()
    (folder.path / "link").symlink_to("/usr")
    before = folder.path.stat().st_ino
    finish(cfg)
    assert folder.path.stat().st_ino == before and (folder.path / "link").is_symlink()
    for name in ("thesis.txt", "eval/notes.txt", "checkpoints/checkpoint-mine/x", "mine.partial", "mine.part/x", "sub"):
        assert (folder.path / name).exists(), name
    with pytest.raises(UserError, match="which no run has written there"):
        RunFolder.open(replace(cfg, overwrite=True))


def test_an_overwrite_that_cannot_begin_leaves_the_old_run(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = replace(cfg, output_dir="out")
    folder = finish(cfg)
    (folder.path / "eval" / "media").mkdir(parents=True)
    for name in ("eval/after.json", "eval/media/0a1b.png", "media.jsonl"):
        write_json(folder.path / name, {})

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    again = RunFolder.open(replace(cfg, overwrite=True))
    with pytest.raises(UserError, match=r"can't be written \(No locks available\)"), again.recording():
        pass
    assert (folder.path / "eval" / "after.json").is_file() and read(folder.path / "result.json")["status"] == "finished"


def test_another_process_was_quicker(cfg: Config) -> None:
    """What was decided before the model was loaded is looked at again under the lock."""
    cfg = replace(cfg, output_dir="out")
    late = RunFolder.open(cfg)
    finish(cfg)
    with pytest.raises(UserError, match="another process has used it meanwhile; repeat the command"), late.recording():
        pass
    assert RunFolder.open(cfg).finished


def test_new_files_among_the_inputs(cfg: Config) -> None:
    """A file that joins a folder of rows changes the data as much as one that changes."""
    cfg = replace(cfg, output_dir="out")
    Path("rows").mkdir()
    Path("rows/a.jsonl").write_text("1", encoding="utf-8")
    begin_on(cfg, Path("rows"))
    for change in (Path("rows/b.jsonl").touch, Path("rows/a.jsonl").unlink):
        change()
        again = RunFolder.open(cfg)
        with pytest.raises(UserError, match="since the run in out began"), again.recording():
            again.add_inputs(Path("rows"))
            again.check_inputs()


def test_a_file_is_no_folder(cfg: Config) -> None:
    Path("out").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="this is a file"):
        RunFolder.open(replace(cfg, output_dir="out"))


def test_an_empty_folder_is_used(cfg: Config) -> None:
    Path("out").mkdir()
    assert finish(replace(cfg, output_dir="out")).path == Path("out")


def test_overwrite_replaces_the_run(cfg: Config) -> None:
    """Nothing of the old run is left beside the new one, and nothing is deleted before the new one begins."""
    old = finish(replace(cfg, output_dir="out", seed=7))
    (old.path / "adapter").mkdir()
    folder = RunFolder.open(replace(cfg, output_dir="out", overwrite=True))
    assert (old.path / "adapter").is_dir()
    with folder.recording():
        assert not (folder.path / "adapter").exists()
    assert yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))["seed"] == cfg.seed


def test_folder_that_cannot_be_made(cfg: Config) -> None:
    """A mistake of the user's, so no traceback; as root every folder can be written, so a file stands in the way."""
    Path("out").write_text("", encoding="utf-8")
    folder = RunFolder.open(replace(cfg, output_dir="out/run"))
    with pytest.raises(UserError, match="output_dir=out/run: the folder can't be written"), folder.recording():
        pass


def test_no_right_to_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As root every folder can be written, so the system's answer stands in; a dry run writes nothing."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    words = [f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError) as error:
        compose_config("lora_sft", words)
    assert str(error.value) == (
        f"output_dir={tmp_path / 'run'}: you have no right to write in {tmp_path}; name another folder."
    )
    compose_config("lora_sft", [*words, "dry_run=true"])


def test_manifest(cfg: Config) -> None:
    """Versions, seed, and a digest of every input file and of every file of every artifact."""
    Path("rows.jsonl").write_bytes(b"abc")
    Path("model").mkdir()
    Path("model/config.json").write_bytes(b"")
    folder = RunFolder.open(cfg)
    with folder.recording():
        folder.add_inputs(Path("rows.jsonl"), Path("model"), None)
        (folder.adapter / "sub").mkdir(parents=True)
        (folder.adapter / "sub" / "a.bin").write_bytes(b"abc")
        folder.result.artifacts["adapter"] = "adapter"
    manifest = read(folder.path / "manifest.json")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180-2
    assert manifest["inputs"] == {"rows.jsonl": abc, "model/config.json": hashlib.sha256().hexdigest()}
    assert manifest["artifacts"] == {"adapter": {"adapter/sub/a.bin": abc}}
    assert file_digest(Path("rows.jsonl")) == abc
    assert manifest["seed"] == cfg.seed
    assert {"torch", "transformers", "trl", "peft"} <= manifest["versions"].keys()
    assert manifest["git"] is None  # the current folder is no repository


def test_only_rank_0_writes(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("made_by_the_first")
    folder.mkdir()
    monkeypatch.setenv("RANK", "1")
    finish(replace(cfg, output_dir=str(folder))).add_inputs(Path("nowhere"))
    folder.rmdir()  # it is empty
    assert list(Path.cwd().iterdir()) == []


def test_timed_steps_add_up(cfg: Config) -> None:
    folder = RunFolder.open(cfg)
    for _ in range(2):
        with folder.timed("evaluate"):
            pass
    assert folder.result.seconds.keys() == {"evaluate"} and folder.result.seconds["evaluate"] >= 0


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "train: 3", "method: mine"])
def test_folder_with_a_strange_config_is_refused(cfg: Config, text: str) -> None:
    """Another program's config.yaml is no run of ours: a refusal, not a crash."""
    Path("out").mkdir()
    Path("out/config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="holds no run of ours"):
        RunFolder.open(replace(cfg, output_dir="out", overwrite=True))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:600])


def _cut_at_a_line(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 3]), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_bytes(b""), "this file is damaged (it has no recipe)"),
        (_cut, "this file is damaged ("),
        (_cut_at_a_line, "this file is damaged ("),
        (lambda file: file.write_bytes(b"\xff" * 9), "this file is damaged ("),
        (lambda file: file.write_bytes(b"recipe: [" + file.read_bytes()), "this file is damaged ("),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "its end is cut off"),
        (lambda file: file.unlink(), "this file is missing"),
    ],
    ids=["emptied", "cut", "cut at a line", "no text", "no YAML", "without its last byte", "missing"],
)
@pytest.mark.parametrize("manifest", [True, False], ids=["manifest", "checkpoint"])
def test_a_damaged_configuration_is_said(cfg: Config, damage: Callable[[Path], Any], said: str, manifest: bool) -> None:
    """By its manifest, or a checkpoint, the folder is a run's: it says what is wrong, and can be begun anew."""
    mine = replace(cfg, output_dir="out")
    folder = begin_and_stop(mine, KeyboardInterrupt())
    if not manifest:
        (folder.path / "manifest.json").unlink()
        write_checkpoint(folder, 3)
    damage(Path("out/config.yaml"))
    message = refusal(mine)
    assert message.startswith("out/config.yaml: ") and said in message and "Put it back as it was" in message
    RunFolder.open(replace(mine, overwrite=True))
    Path("out/thesis.txt").touch()
    with pytest.raises(UserError, match=r"overwrite=true would delete out/thesis\.txt"):
        RunFolder.open(replace(mine, overwrite=True))


def test_what_could_not_be_measured_is_kept(cfg: Config) -> None:
    """Of a run that is killed: what was noted up to the checkpoint that it goes on from."""
    mine = replace(cfg, output_dir="out")
    pid = os.fork()
    if pid == 0:
        folder = RunFolder.open(mine)
        with folder.recording():
            folder.keep_failures({"before: kl": "a", "step 2: answers": "b"})
            write_checkpoint(folder, 3)
            folder.keep_failures({"step 4: answers": "c", "step 12: kl": "d"})
            os._exit(0)
    os.waitpid(pid, 0)
    assert folder_status(Path("out")) == "died"
    resumed = RunFolder.open(mine)
    with resumed.recording():
        assert read(Path("out/result.json"))["failures"] == {"step 2: answers": "b"}
        resumed.keep_failures({"step 4: answers": "e"})
    assert resumed.result.failures == {"step 2: answers": "b", "step 4: answers": "e"}
    assert read(Path("out/result.json"))["failures"] == resumed.result.failures


def test_overwriting_what_the_run_needs_is_refused(cfg: Config) -> None:
    finish(replace(cfg, output_dir="out"))
    Path("out/adapter").mkdir(exist_ok=True)
    needy = replace(cfg, output_dir="out", overwrite=True, model=replace(cfg.model, model_name_or_path="out/adapter"))
    with pytest.raises(UserError, match="overwrite=true would delete out/adapter"):
        RunFolder.open(needy)
    Path("out/t.jsonl").touch()
    data = replace(cfg.data, test_files={"mine": "out/t.jsonl"})
    with pytest.raises(UserError, match=r"overwrite=true would delete out/t\.jsonl"):
        RunFolder.open(replace(cfg, output_dir="out", overwrite=True, data=data))


@pytest.mark.parametrize(
    "word",
    [
        "eval.kl.reference=out/x", "eval.tool_calls.questions_file=out/x", "eval.tool_calls.answers_file=out/x",
        "eval.lm_eval.include_path=out/x", "eval.long_context.text_file=out/x", "compare.models=out/x",
        "eval.evaluators=out/x:f", "eval.during_training=out/x:f", "data.format=out/x:f",
    ],
)  # fmt: skip
def test_overwriting_what_is_measured_with_is_refused(cfg: Config, word: str) -> None:
    finish(replace(cfg, output_dir="out"))
    Path("out/x").touch()
    needy = deepcopy(replace(cfg, output_dir="out", overwrite=True))
    key, _, value = word.partition("=")
    *groups, last = key.split(".")
    part: Any = needy
    for group in groups:
        part = getattr(part, group)
    setattr(part, last, [value] if isinstance(getattr(part, last), list) else value)
    with pytest.raises(UserError, match="overwrite=true would delete out/x"):
        RunFolder.open(needy)


# A full disk


@pytest.fixture
def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_half_written_is_left(full: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays as it was."""
    file = Path("result.json")
    write_json(file, {"a": 1})
    fill_up(monkeypatch, full)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, {"a": 2})
    assert read(file) == {"a": 1} and [p.name for p in Path.cwd().iterdir()] == ["result.json"]


def fill_up(monkeypatch: pytest.MonkeyPatch, full: OSError) -> None:
    """From now on files are begun, and the disk is full."""

    def write_text(path: Path, text: str, **_: Any) -> None:
        path.touch()
        raise full

    monkeypatch.setattr(Path, "write_text", write_text)


def in_words() -> BaseException:
    return RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def behind_another() -> BaseException:
    try:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("make", [in_words, behind_another])
def test_a_full_disk_is_no_crash(cfg: Config, make: Callable[[], BaseException]) -> None:
    folder = RunFolder.open(cfg)
    with pytest.raises(RunError, match=rf"{folder.path}: the disk is full; make room"), folder.recording():
        raise make()
    assert folder_status(folder.path) == "failed"
    with pytest.raises(ValueError, match=r"^x$"), RunFolder.open(replace(cfg, seed=3)).recording():
        raise ValueError("x")


def test_a_full_disk_while_the_result_is_written(cfg: Config, full: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result that was begun takes the status, and nothing more has room."""
    folder = RunFolder.open(cfg)
    with pytest.raises(RunError, match="the disk is full"), folder.recording():
        fill_up(monkeypatch, full)
    assert folder_status(folder.path) == "failed" and not list(folder.path.glob("*.partial"))


def test_an_error_is_said_though_the_disk_is_full(cfg: Config, full: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.open(cfg)
    with pytest.raises(ValueError, match="the first error"), folder.recording():
        fill_up(monkeypatch, full)
        raise ValueError("the first error")


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_from_the_start(
    cfg: Config, full: OSError, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """No folder is left, and the run that was to be replaced stands where it stood."""
    if there:
        finish(replace(cfg, output_dir="out", seed=7))
    folder = RunFolder.open(replace(cfg, output_dir="out", overwrite=True))
    with monkeypatch.context() as until:
        fill_up(until, full)
        with pytest.raises(UserError, match=r"out: the folder can't be written \(No space left"), folder.recording():
            raise AssertionError("nothing is run")
    assert [p.name for p in Path.cwd().iterdir()] == (["out"] if there else [])
    assert not there or yaml.safe_load(Path("out/config.yaml").read_text("utf-8"))["seed"] == 7
