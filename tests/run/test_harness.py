"""What lm-evaluation-harness asks of a model, against one token after the other; and a task of it where it is there."""

import json
import math

import jax
import numpy as np
import pytest

from jaxlean.errors import ConfigError
from jaxlean.hub.load import load
from jaxlean.run import harness as module
from jaxlean.run.generate import Sampling
from jaxlean.run.harness import Continuations, evaluate_tasks, laid_out
from jaxlean.xla.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("small_machine")


@pytest.fixture(scope="module")
def model(small_machine, tiny_base):
    return load(tiny_base, "float32", make_mesh(devices=jax.devices()))


@pytest.fixture
def installed() -> None:
    pytest.importorskip("lm_eval", reason="an extra: pip install 'jaxlean[harness]'")


def likely(model, context, continuation) -> tuple[float, bool]:
    """By a forward pass for each token."""
    total, greedy = 0.0, True
    row = list(context)
    for token in continuation:
        logits = np.asarray(model(np.asarray([row], np.int32)), np.float64)[0, -1]
        total += logits[token] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
        greedy &= int(logits.argmax()) == token
        row.append(token)
    return total, greedy


def test_continuations_are_as_likely_as_their_tokens(model):
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(4, 2000, n).tolist(), rng.integers(4, 2000, m).tolist()) for n, m in ((3, 2), (5, 1), (4, 3))
    ]
    best = int(np.asarray(model(np.asarray([[7, 8, 9]], np.int32)))[0, -1].argmax())
    pairs += [([7, 8, 9], [best]), ([7, 8, 9], [])]
    found = Continuations(model, make_mesh(devices=jax.devices()), rows=3)(pairs)
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        wanted = likely(model, context, continuation)
        assert total == pytest.approx(wanted[0], rel=1e-5, abs=1e-6)
        assert greedy == wanted[1]
    assert [greedy for _, greedy in found] == [False, False, False, True, True]
    assert Continuations(model, make_mesh(devices=jax.devices()), rows=3)([]) == []


def test_what_is_too_long_loses_its_left_end(model):
    longest = model.config.max_position_embeddings
    context = np.random.default_rng(1).integers(4, 2000, longest + 50).tolist()
    long, short = Continuations(model, make_mesh(devices=jax.devices()), rows=2)(
        [(context, [5, 6]), (context[-longest + 1 :], [5, 6])]
    )
    assert long == short


def test_a_batch_marks_the_ends_of_its_rows():
    batch = laid_out([[1, 2, 3, 4], [5, 6]], [2, 9], 3, 8)
    assert batch["tokens"].tolist()[:2] == [[1, 2, 3, 4, 0, 0, 0, 0], [5, 6, 0, 0, 0, 0, 0, 0]]
    assert batch["loss_mask"].tolist()[0] == [False, False, True, True, False, False, False, False]
    assert batch["loss_mask"][1].sum() == 2
    assert batch["segments"].sum(axis=1).tolist() == [4, 2, 0]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, (256, Sampling())),
        ({"until": ["\n"], "max_gen_toks": 5, "do_sample": False, "temperature": 0.7}, (5, Sampling())),
        ({"max_new_tokens": 9, "temperature": 0.5, "top_k": 3}, (9, Sampling(0.5, top_k=3))),
        ({"do_sample": True, "temperature": 0.8, "top_p": 0.9}, (256, Sampling(0.8, top_p=0.9))),
    ],
)
def test_how_a_task_wants_text(asked, wanted):
    assert module._how(asked) == wanted


def test_a_way_to_write_that_is_not_here():
    with pytest.raises(ConfigError, match="a way to generate that is not here") as error:
        module._how({"num_beams": 4, "until": []})
    assert "num_beams" in str(error.value)
    assert module._until({"until": "\n"}) == ["\n"]
    assert module._until({}) == []


def test_what_does_not_go_together_is_said(tiny_yaml, tiny_run, cli, monkeypatch):
    for arguments, words in (
        (("--tasks", "a", "--answers", "out.jsonl"), "--tasks writes no answers"),
        (("--limit", "3"), "--limit and --include-path are for --tasks"),
    ):
        code, _, err = cli("evaluate", tiny_yaml, *arguments)
        assert code == 2
        assert words in err
    with pytest.raises(ConfigError, match="--tasks is for task: generate"):
        evaluate_tasks(tiny_run("task=embed"), ["a"])
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    code, _, err = cli("evaluate", tiny_yaml, "--tasks", "arc_easy")
    assert code == 2
    assert "--tasks needs lm-evaluation-harness" in err
    assert "pip install 'jaxlean[harness]'" in err


def write_tasks(folder) -> None:
    """One of each kind: choices, perplexity, text."""
    rows = [
        {"question": f"What follows {n}?", "choices": [str(n + 1), str(n + 7), "nothing"], "answer": 0}
        for n in range(6)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'rows.jsonl'}\ntest_split: test\n"
    (folder / "choices.yaml").write_text(
        f"task: own_choices\n{data}output_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    (folder / "text.yaml").write_text(
        f"task: own_text\n{data}output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{question}}'\nmetric_list:\n  - metric: word_perplexity\n"
    )
    (folder / "written.yaml").write_text(
        f"task: own_written\n{data}output_type: generate_until\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_target: '{{choices[0]}}'\ngeneration_kwargs:\n  until: ['.']\n  max_gen_toks: 4\n"
        "metric_list:\n  - metric: exact_match\n"
    )


@pytest.mark.slow
def test_tasks_of_the_harness(installed, model, tiny_run, tmp_path, capsys):
    write_tasks(tmp_path)
    found = evaluate_tasks(tiny_run(), ["own_choices", "own_text", "own_written"], include=tmp_path, limit=5)
    assert set(found) == {"own_choices", "own_text", "own_written"}
    encode = model.tokenizer.encode
    right = 0
    for n in range(5):
        context = encode(f"What follows {n}?", add_special_tokens=False)
        scores = [
            likely(model, context, encode(f"What follows {n}? {c}", add_special_tokens=False)[len(context) :])[0]
            for c in (str(n + 1), str(n + 7), "nothing")
        ]
        right += int(np.argmax(scores)) == 0
    assert found["own_choices"]["acc,none"] == pytest.approx(right / 5)
    assert "own_choices" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="knows no such task"):
        evaluate_tasks(tiny_run(), ["no_such_task_at_all"])
