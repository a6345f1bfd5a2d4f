"""Generation: with its cache the same tokens as without; batching changes nothing; draws are fair and reproducible."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.config import ModelSection
from jaxlean.data.format import Pair
from jaxlean.data.tokenize import Counts, Encoder
from jaxlean.errors import ConfigError, DataError
from jaxlean.hub.load import Model, load, load_tokenizer
from jaxlean.run import generate as module
from jaxlean.run.generate import Sampling, chat_template, encode_prompt, generate, stop_ids

pytestmark = pytest.mark.usefixtures("small_machine")

NEW = 6


@pytest.fixture(scope="module")
def model(small_machine, tiny_base) -> Model:
    return load(tiny_base, "float32")


def prompts_of(lengths: Sequence[int], vocab_size: int = 2048) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, vocab_size, length).tolist() for length in lengths]


def greedy_without_cache(model: Model, prompt: list[int], num: int) -> list[int]:
    """The likeliest token of the whole sequence so far, one after the other. Padded on the right: nobody sees it."""
    ids = list(prompt)
    for _ in range(num):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(jnp.argmax(model(padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


def greedy(model: Model, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    return generate(model, prompts, **({"max_new_tokens": NEW, "stop": []} | options))


def test_greedy_is_the_argmax_of_the_full_forward(model):
    prompts = prompts_of([3, 17, 32, 40, 1])
    wanted = [greedy_without_cache(model, prompt, NEW) for prompt in prompts]
    assert len({tuple(tokens) for tokens in wanted}) == 5, "a test that any constant passes"
    assert greedy(model, prompts) == wanted


@pytest.mark.parametrize("family", ["mistral_window", "qwen2_window", "qwen3_tied", "llama_llama3", "llama_yarn"])
def test_so_it_is_for_windows_norms_and_stretched_positions(golden, family):
    loaded = load(golden / family, "float32")
    prompts = prompts_of([5, 33, 21], loaded.config.vocab_size)
    assert greedy(loaded, prompts) == [greedy_without_cache(loaded, prompt, NEW) for prompt in prompts]


def test_a_batch_of_different_lengths_equals_one_by_one(model):
    prompts = prompts_of([2, 9, 31, 30, 12])
    together = greedy(model, prompts)
    assert together == [greedy(model, [prompt])[0] for prompt in prompts]
    assert together == greedy(model, prompts, batch_size=2), "the last batch is filled up with rows of nothing"
    assert greedy(model, prompts[::-1]) == together[::-1]


def test_stop_ids_end_a_row_and_are_not_returned(model):
    prompts = prompts_of([4, 8, 16])
    free = greedy(model, prompts)
    stop = free[1][2]
    cut = [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in free]
    assert greedy(model, prompts, stop=[stop]) == cut
    assert len(cut[1]) <= 2
    first = free[0][0]
    assert greedy(model, prompts, stop=[first, stop])[0] == []


def test_no_more_than_asked_for(model):
    prompts = prompts_of([4, 8])
    longer = greedy(model, prompts)
    assert all(len(tokens) == NEW for tokens in longer)
    for num in (1, 3):
        assert greedy(model, prompts, max_new_tokens=num) == [tokens[:num] for tokens in longer]
    assert generate(model, [], max_new_tokens=3, stop=[]) == []


def test_in_bfloat16(tiny_base):
    loaded = load(tiny_base, "bfloat16")
    (tokens,) = greedy(loaded, prompts_of([5]))
    assert len(tokens) == NEW


# ---- sampling


def sample(model: Model, prompts: list[list[int]], **how: Any) -> list[list[int]]:
    options = {key: how.pop(key) for key in ("batch_size", "max_new_tokens") if key in how}
    return greedy(model, prompts, sampling=Sampling(**how), **options)


def test_the_likeliest_of_one_is_greedy(model):
    prompts = prompts_of([4, 8])
    assert sample(model, prompts, temperature=1.0, top_k=1) == greedy(model, prompts)
    assert sample(model, prompts, temperature=1.0, top_p=1e-6) == greedy(model, prompts)
    assert sample(model, prompts, temperature=1e-4) == greedy(model, prompts)


def test_the_seed_alone_decides(model):
    prompts = prompts_of([4, 8, 20])
    first = sample(model, prompts, temperature=1.0, seed=3)
    assert sample(model, prompts, temperature=1.0, seed=3) == first
    assert sample(model, prompts, temperature=1.0, seed=3, batch_size=1) == first, "not how it is cut into batches"
    assert sample(model, prompts, temperature=1.0, seed=4) != first


def test_another_seed_compiles_nothing(model):
    prompts = prompts_of([4])
    sample(model, prompts, temperature=0.7, seed=1)
    before = module._complete._cache_size()
    sample(model, prompts, temperature=0.7, seed=2)
    assert module._complete._cache_size() == before


def test_prompts_and_steps_share_no_randomness(model):
    same = prompts_of([6]) * 8
    rows = sample(model, same, temperature=5.0)
    assert len({tuple(tokens) for tokens in rows}) == 8
    # With flat logits a token depends on the draw alone: the same draw at each step would repeat it.
    assert all(len(set(tokens)) > NEW // 2 for tokens in rows)


def test_drawn_tokens_are_of_those_allowed(model):
    prompt = prompts_of([6])[0]
    padded = np.zeros((1, 64), np.int32)
    padded[0, :6] = prompt
    logits = np.asarray(model(padded)[0, 5], np.float64) / 2.0
    mass = np.exp(logits - logits.max())
    ranked = np.argsort(-mass)
    share = np.cumsum(mass[ranked] / mass.sum())
    nucleus = set(ranked[: int(np.searchsorted(share, 0.5)) + 1].tolist())
    assert 2 <= len(nucleus) < 500
    for how, allowed in (({"top_k": 5}, set(ranked[:5].tolist())), ({"top_p": 0.5}, nucleus)):
        rows = sample(model, [prompt] * 200, temperature=2.0, max_new_tokens=1, batch_size=200, **how)
        drawn = {tokens[0] for tokens in rows}
        assert drawn <= allowed
        assert len(drawn) > 1


def test_tokens_come_as_often_as_their_probability_says():
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.tile(jnp.log(jnp.asarray(shares, jnp.float32)), (4000, 1))
    keys = jax.random.split(jax.random.key(0), 4000)

    def frequency(**how: Any) -> np.ndarray:
        drawn = module._choose(logits, Sampling(**how), keys, jnp.int32(0))
        return np.bincount(drawn, minlength=4) / 4000

    # 4000 draws: a standard deviation is at most 0.008
    np.testing.assert_allclose(frequency(temperature=1.0), shares, atol=0.03)
    np.testing.assert_allclose(frequency(temperature=0.5), shares**2 / (shares**2).sum(), atol=0.03)
    np.testing.assert_allclose(frequency(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(frequency(temperature=1.0, top_p=0.79), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(frequency(temperature=1.0, top_p=0.9)[:3], shares[:3] / shares[:3].sum(), atol=0.03)
    assert frequency(temperature=1.0, top_p=0.45)[0] == 1.0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"temperature": -1.0}, "not a temperature"),
        ({"temperature": float("nan")}, "not a temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is below 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is not a probability"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is not a probability"),
        ({"top_p": 0.9}, "do nothing at temperature 0"),
        ({"top_k": 5}, "do nothing at temperature 0"),
    ],
)
def test_sampling_that_cannot_be(how, words):
    with pytest.raises(ConfigError, match=words):
        Sampling(**how)


def test_prompts_that_cannot_be(model):
    with pytest.raises(DataError, match="an empty prompt") as raised:
        greedy(model, [[1], []])
    assert "prompt 2" in str(raised.value)
    with pytest.raises(DataError, match="beyond the model's vocabulary") as raised:
        greedy(model, [[1, 2048]])
    assert "2048" in str(raised.value)
    with pytest.raises(ConfigError, match="max_new_tokens is below 1"):
        greedy(model, [[1]], max_new_tokens=0)


# ---- prompts and their ends


def test_a_prompt_is_what_training_rows_begin_with(model):
    encoder = Encoder(model.tokenizer, max_length=100)
    (row,) = encoder.encode([(Pair("Where is it?", "here"), "row")], Counts())
    learned = int(np.flatnonzero(row.loss_mask)[0])
    assert encode_prompt(model, "Where is it?", chat=False) == row.input_ids[:learned].tolist()
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n"
    ids = encode_prompt(model, "Where is it?", system="Be brief.")
    assert model.tokenizer.decode(ids) == text
    assert model.tokenizer.decode(encode_prompt(model, "Where is it?")) == text[text.index("<|im_start|>user") :]


def test_a_prompt_that_cannot_be(model, tiny_base):
    with pytest.raises(ConfigError, match="an empty prompt"):
        encode_prompt(model, " \n")
    with pytest.raises(ConfigError, match="needs the chat template"):
        encode_prompt(model, "a", system="b", chat=False)
    other = SimpleNamespace(tokenizer=load_tokenizer(str(tiny_base)))
    other.tokenizer.chat_template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(DataError, match="no system, please"):
        encode_prompt(other, "a", system="b")


def test_what_ends_a_turn(tiny_base, tmp_path):
    tokenizer = load_tokenizer(str(tiny_base))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model = SimpleNamespace(tokenizer=tokenizer, hf_config={}, folder=None)
    assert stop_ids(model) == [end]
    # A base whose EOS ends documents, with a chat template that ends turns otherwise.
    tokenizer.eos_token = "<|endoftext|>"
    assert stop_ids(model) == sorted([end, text])
    tokenizer.chat_template = None
    assert stop_ids(model) == [text]
    model.hf_config = {"eos_token_id": [text, 77]}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 78}))
    model.folder = tmp_path
    assert stop_ids(model) == sorted([text, 77, 78])
    # Another tokenizer than the model's own, as where the config replaces the chat template.
    assert end in stop_ids(model, load_tokenizer(str(tiny_base)))
    tokenizer.chat_template = "{{ raise_exception('not this') }}"
    assert stop_ids(model) == sorted([text, 77, 78])


def test_the_chat_template_of_the_config(tmp_path):
    assert chat_template(ModelSection()) is None
    file = tmp_path / "template.jinja"
    with pytest.raises(ConfigError, match="the chat template cannot be read") as raised:
        chat_template(ModelSection(chat_template=str(file)))
    assert f"model.chat_template={file}" in str(raised.value)
    file.write_text("{{ messages }}")
    assert chat_template(ModelSection(chat_template=str(file))) == "{{ messages }}"


def test_a_cache_in_8_bits_says_nearly_the_same(cli, tiny_base):
    """Greedy tokens of a model of random weights part sooner or later; the first ones are the same."""
    model = load(tiny_base, "float32")
    prompts = [[5, 99, 300, 12], [7, 8, 1000]]
    wide, eight = (generate(model, prompts, max_new_tokens=4, stop=[], kv_cache_dtype=d) for d in ("auto", "int8"))
    assert [tokens[:2] for tokens in eight] == [tokens[:2] for tokens in wide]
    assert cli("generate", tiny_base, "-p", "x", "--max-new-tokens", "2", "--kv-cache-dtype", "int8")[0] == 0
    code, _, err = cli("generate", tiny_base, "-p", "x", "--kv-cache-dtype", "fp8")
    assert (code, "--kv-cache-dtype is unknown" in err) == (2, True)
