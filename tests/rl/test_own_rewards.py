"""A user's reward functions: called by the signature they are written in, or refused by their parameters' names."""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from gemma_tune.errors import UserError
from gemma_tune.rewards.base import Completion, Task
from gemma_tune.rl.own_rewards import prepare
from gemma_tune.rl.scoring import Scorer, WeightedReward

WILD = Path(os.environ.get("GEMMA_TUNE_TEST_DATA") or "unset") / "wild/21-trl-reward-signature/rew.py"


def chat(asked: str, answer: str) -> Task:
    prompt = [{"role": "user", "content": asked}]
    return Task("rows.jsonl:1", prompt, answer, row={"prompt": prompt, "answer": answer})


def text(asked: str, answer: str) -> Task:
    return Task("rows.jsonl:1", [{"role": "user", "content": asked}], answer, row={"prompt": asked, "answer": answer})


CHATS, TEXTS = [chat("2+2?", "4"), chat("1+1?", "2")], [text("2+2?", "4"), text("1+1?", "2")]
SAID = [Completion("4", 2, ids=[7, 1]), Completion("four", 2, ids=[8, 1])]


def written(folder: Path, source: str, tasks: Any = None, name: str = "f") -> Any:
    (folder / "mine.py").write_text(source)
    return prepare(f"{folder}/mine.py:{name}", "reward.functions.mine", CHATS if tasks is None else tasks)


@pytest.mark.skipif(not WILD.is_file(), reason="GEMMA_TUNE_TEST_DATA names no folder with wild/")
@pytest.mark.parametrize(
    ("name", "on_chats", "on_texts"),
    [
        ("kwargs_only", [-19 / 20, -19 / 20], [-19 / 20, -16 / 20]),
        ("prompts_first", [1.0, 0.0], [1.0, 0.0]),
        ("with_answer", [1.0, 0.0], None),
        ("later", [0.5, 0.5], [0.5, 0.5]),
        ("flat", [0.5, 0.5], [0.5, 0.5]),
    ],
)
def test_each_signature_as_it_is_written(name: str, on_chats: Any, on_texts: Any) -> None:
    """The scores that TRL's call gives, computed by hand; `with_answer` reads messages and so needs conversations."""
    for tasks, wanted in ((CHATS, on_chats), (TEXTS, on_texts)):
        reward = prepare(f"{WILD}:{name}", "reward.functions.mine", tasks)
        if wanted is not None:
            assert list(reward(SAID, tasks)) == wanted


def test_what_trl_passes(tmp_path: Path) -> None:
    """Everything by `**kwargs`, under TRL's names; never the columns that TRL keeps for itself."""
    source = "def f(completions, **given):\n    return [given | {'said': completions}]\n"
    (given,) = written(tmp_path, source)(SAID, CHATS)
    assert given["said"] == [[{"role": "assistant", "content": "4"}], [{"role": "assistant", "content": "four"}]]
    assert given["prompts"] == [task.prompt for task in CHATS] and given["answer"] == ["4", "2"]
    assert given["completion_ids"] == [[7, 1], [8, 1]] and given["trainer_state"].global_step == 0
    assert given.keys() == {
        "said", "prompts", "answer", "completion_ids", "trainer_state", "log_extra", "log_metric"
    }  # fmt: skip
    given["log_metric"]("mine", 1.0)
    (given,) = written(tmp_path, source, TEXTS)(SAID, TEXTS)
    assert given["prompts"] == ["2+2?", "1+1?"] and given["said"] == ["4", "four"]


def test_thinking_and_calls_of_a_conversation(tmp_path: Path) -> None:
    reward = written(tmp_path, "def f(prompts, completions):\n    return completions\n")
    said = Completion("<t>hm</t>ok", 3, text="ok", thinking="hm", calls=[("on", {"room": "hall"})])
    call = {"type": "function", "function": {"name": "on", "arguments": {"room": "hall"}}}
    message = {"role": "assistant", "content": "ok", "reasoning_content": "hm", "tool_calls": [call]}
    assert reward([said], CHATS[:1]) == [[message]]


def test_fields_that_only_some_rows_have(tmp_path: Path) -> None:
    """None, as in a column of a data set; a default is replaced only where a row of the batch has the field."""
    rows = [chat("a", "b"), Task("x", CHATS[0].prompt, row={"prompt": CHATS[0].prompt, "level": 3})]
    reward = written(tmp_path, "def f(completions, level, answer='none'):\n    return [(level, answer)]\n", rows)
    assert reward(SAID, rows) == [([None, 3], ["b", None])]
    assert reward(SAID[:1], rows[:1]) == [([None], ["b"])]
    assert reward(SAID[:1], rows[1:]) == [([3], "none")]


def test_our_signature_by_name(tmp_path: Path) -> None:
    """Whatever the order; further parameters with defaults stay as they are."""
    source = "def f(records, completions, scale=2):\n    return [len(records), str(completions[1]), scale]\n"
    assert written(tmp_path, source)(SAID, CHATS) == [2, "four", 2]
    source = "class Kept:\n    async def __call__(self, completions, records):\n        return [1.0]\nf = Kept()\n"
    assert written(tmp_path, source)(SAID, CHATS) == [1.0]


def test_async_in_a_notebook(tmp_path: Path) -> None:
    """There a loop runs in this thread already."""
    reward = written(tmp_path, "async def f(prompts, completions):\n    return [len(p) for p in prompts]\n")

    async def cell() -> Any:
        return reward(SAID, CHATS)

    assert asyncio.run(cell()) == reward(SAID, CHATS) == [1, 1]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "def f(prompts, completions, label): ...",
            r"\(prompts, completions, label\): label is neither .* prompt, answer",
        ),
        ("def f(prompts, completions, records): ...", "records is neither an argument of TRL's"),
        ("def f(prompt, completions): ...", r"prompt is neither .*TRL names it prompts\."),
        ("def f(answers, rows): ...", r"its parameters are \(answers, rows\): it takes no completions"),
        ("def f(answer): ...", "it takes no completions"),
        ("def f(*given): ...", r"\(\*given\): it takes no completions"),
        ("def f(prompts, completions, /): ...", "before `/` can't be passed by name"),
        ("f = range", "its parameters can't be read"),
        ("def f(completions, records, answers): ...", "nothing is given for answers"),
    ],
)
def test_refused_by_name(source: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        written(tmp_path, source + "\n")
    assert re.search("write .completions, records.", str(caught.value))


def test_fields_are_not_asked_for_before_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(completions, anything): ...\n")
    assert prepare(f"{tmp_path}/mine.py:f", "reward.functions.mine", None)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("[0.5]", "gave 1 scores for 2 completions"),
        ("None", "TypeError"),
        ("['good'] * len(completions)", "gave 'good', not a number"),
    ],
)
def test_wrong_scores_are_failures(returned: str, reason: str, tmp_path: Path) -> None:
    reward = written(tmp_path, f"async def f(prompts, completions):\n    return {returned}\n")
    scores = Scorer([WeightedReward("mine", reward, 1.0)], 5, 1.0).score(SAID, CHATS)
    if returned == "[0.5]":  # asked for each completion alone, it is right
        assert scores.values["mine"] == [0.5, 0.5]
    else:
        assert scores.values["mine"] == [None, None] and reason in scores.failed["mine"][0]


def test_none_where_it_does_not_apply(tmp_path: Path) -> None:
    reward = written(tmp_path, "def f(prompts, completions, **kwargs):\n    return [None, 1.0]\n")
    scores = Scorer([WeightedReward("mine", reward, 1.0)], 5, 1.0).score(SAID, CHATS)
    assert scores.values["mine"] == [None, 1.0] and scores.complete(0)


def test_an_async_reward_has_the_time_limit(tmp_path: Path) -> None:
    source = "import asyncio\nasync def f(completions, **kwargs):\n    await asyncio.sleep(60)\n    return [1.0]\n"
    scorer, begun = Scorer([WeightedReward("mine", written(tmp_path, source), 1.0)], 0.2, 1.0), time.perf_counter()
    assert "took longer than 0.2 s" in scorer.score(SAID[:1], CHATS[:1]).failed["mine"][0]
    assert time.perf_counter() - begun < 5
