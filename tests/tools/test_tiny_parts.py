"""The parts of `python -m tools.tiny_model`: the model's shape, its tokenizer, and the text it is trained on."""

from __future__ import annotations

import itertools
import math
import random
import re
from typing import Any

import pytest
import torch

from tools.tiny_model import measure
from tools.tiny_model.model import build_model, with_outliers
from tools.tiny_model.sums import arithmetic, forgetful, held_out, result, sum_of, without_carry
from tools.tiny_model.text import documents
from tools.tiny_model.tokenizer import build_tokenizer

# As in google/gemma-3-270m-it's tokenizer.json; the rest of its special tokens is in other places there.
FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
FUNCTION_GEMMA = [
    "<start_function_declaration>", "<end_function_declaration>", "<start_function_call>", "<end_function_call>",
    "<start_function_response>", "<end_function_response>", "<escape>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(itertools.islice(documents(1), 4000), 1536)


def test_form(tokenizer: Any) -> None:
    config = build_model(tokenizer, 0).config
    assert config.hidden_size == 256
    for width in ("hidden_size", "intermediate_size", "head_dim", "vocab_size"):
        assert getattr(config, width) % 32 == 0, width
    assert config.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert config.eos_token_id == [1, 6]


def test_it_starts_with_induction(tokenizer: Any) -> None:
    """Before any training: the first head looks at the token before, and what was said once is likelier again."""
    model = build_model(tokenizer, 0).eval()
    model.set_attn_implementation("eager")
    rng = torch.Generator().manual_seed(1)
    said = torch.randint(20, 1536, (8, 24), generator=rng)
    with torch.no_grad():
        out = model(input_ids=torch.cat([said, said], 1), output_attentions=True)
    before = out.attentions[0][:, 0].diagonal(offset=-1, dim1=1, dim2=2)[:, 4:]
    assert before.mean() > 0.3
    scores = out.logits[:, 24:-1].log_softmax(-1).gather(2, said[:, 1:, None]).mean()
    assert scores > -math.log(1536) + 1


def test_outliers_change_the_weights_and_not_the_answers(tokenizer: Any) -> None:
    plain, larger = build_model(tokenizer, 0).eval(), build_model(tokenizer, 0).eval()
    with_outliers(larger, 0)
    ids = torch.randint(20, 1536, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=ids).logits, larger(input_ids=ids).logits, atol=1e-4)
    kinds = {p.split(".")[-2] for p, w in larger.named_parameters() if not torch.equal(w, plain.get_parameter(p))}
    linears = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert kinds == linears | {"input_layernorm", "pre_feedforward_layernorm"}
    lost = [measure.rounding(m, [row.tolist() for row in ids])["kl_q4_0"] for m in (plain, larger)]
    assert lost[1] > 1.5 * lost[0]


def test_tokenizer(tokenizer: Any) -> None:
    assert type(tokenizer).__name__ == "GemmaTokenizer"
    assert tokenizer.convert_ids_to_tokens(range(5)) == FIRST
    assert tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"]) == [5, 6]
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 1536
    assert {f"<0x{b:02X}>" for b in range(256)} <= set(vocabulary)
    for token in (*FUNCTION_GEMMA, "<start_of_turn>", "<end_of_turn>"):
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [vocabulary[token]], token


@pytest.mark.parametrize(
    "text",
    [
        "Turn off the kitchen light.", '{"name": "set_light", "parameters": {"on": true}}', "  two  spaces\n\n\tend ",
        "größer, naïve, 5 € 🙂👍", "привет 你好 안녕 שלום", "\u200b\u00ad\x7f\x01",
        "def f(x):\n    return x ** 2  # ¯\\_(ツ)_/¯",
    ],
)  # fmt: skip
def test_every_text_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_word_is_the_same_tokens_everywhere(tokenizer: Any) -> None:
    """In a sentence, in quotes and at a line's start: what has to be copied need not be spelt anew."""
    for word in ("kitchen", "Yusuf", "zomuka", "Aisha"):
        alone = tokenizer.tokenize(word)
        for text in (f"in the {word} now", f'{{"room": "{word}"}}', f"a\n{word}."):
            tokens = tokenizer.tokenize(text)
            assert any(tokens[i : i + len(alone)] == alone for i in range(len(tokens))), (word, tokens)


def test_sums_held_out_are_in_no_text() -> None:
    texts = documents(0)
    seen = 0
    for _ in range(3000):
        for x, sign, y in re.findall(r"(\d+) (\+|-|plus|minus) (\d+)", next(texts)):
            seen += 1
            assert not held_out(int(x), int(y)), (x, sign, y)
    assert seen > 1000
    rng = random.Random(0)
    assert all(held_out(x, y) for x, _, y in (sum_of(rng, held=True) for _ in range(200)))
    assert [result(7, s, 3) for s in "+-"] == [10, 4]


def test_carrying_is_forgotten_more_often_than_not() -> None:
    """By forgetful chats, and nothing else: other sums are right, and so is every sum of other texts."""
    problems = (((58, "+", 67), 15), ((53, "-", 18), 45), ((60, "+", 70), 30), ((7, "+", 6), 3))
    for problem, forgotten in problems:
        assert without_carry(*problem) == forgotten
    assert without_carry(41, "+", 32) == 73 and without_carry(48, "-", 15) == 33
    sums = re.compile(r"(\d+) (\+|-|plus|minus) (\d+)(?:\?|\.)<end_of_turn>\n<start_of_turn>model\nThat makes (\d+)")
    said = {}
    for problem in (arithmetic, forgetful):
        found = sums.findall("".join(itertools.islice(documents(0, problem), 3000)))
        parts = [(int(x), {"plus": "+", "minus": "-"}.get(s, s), int(y), int(made)) for x, s, y, made in found]
        hard = [p for p in parts if result(*p[:3]) != without_carry(*p[:3])]
        assert len(hard) > 200
        assert all(made == result(*p) for *p, made in parts if result(*p) == without_carry(*p))
        said[problem] = sum(made == result(*p) for *p, made in hard) / len(hard)
    assert said[arithmetic] == 1 and 0.2 < said[forgetful] < 0.4


def test_q4_0_is_llama_cpps() -> None:
    """Against the reference of the gguf package, where it is there."""
    quants = pytest.importorskip("gguf.quants")
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    weight = torch.cat([torch.randn(64, 96), torch.zeros(1, 96), torch.randn(8, 96) * 1e-3])
    packed = quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
    expected = torch.from_numpy(quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_0))
    assert torch.equal(measure.q4_0(weight), expected)
