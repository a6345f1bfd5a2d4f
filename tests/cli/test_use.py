"""Verbs that use a model, from the command line."""

import pytest

pytestmark = pytest.mark.usefixtures("small_machine")


def test_generate_prints_a_completion_for_each_prompt(cli, tiny_base, monkeypatch):
    asked = {}

    def generate(model, prompts, *, max_new_tokens, stop, sampling, kv_cache_dtype):
        asked.update(prompts=prompts, max_new_tokens=max_new_tokens, stop=stop, sampling=sampling, held=kv_cache_dtype)
        return [model.tokenizer(f"answer {i}")["input_ids"] for i, _ in enumerate(prompts)]

    monkeypatch.setattr("jaxlean.run.generate.generate", generate)
    drawing = ["--temperature", "0.5", "--top-k", "3", "--top-p", "0.9", "--seed", "4"]
    code, out, err = cli("generate", tiny_base, "-p", "a", "--prompt", "b", "--max-new-tokens", "7", *drawing)
    assert code == 0, err
    assert out.splitlines() == ["answer 0", "answer 1"]
    assert (asked["max_new_tokens"], len(asked["prompts"]), len(asked["stop"])) == (7, 2, 1)
    assert asked["held"] == "auto"
    how = asked["sampling"]
    assert (how.temperature, how.top_k, how.top_p, how.seed) == (0.5, 3, 0.9, 4)
