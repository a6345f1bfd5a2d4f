import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config import RunConfig, build
from jaxlean.data.batches import Batches
from jaxlean.data.epochs import Batch
from jaxlean.data.loader import encoded, eval_batches, eval_examples, train_batches
from jaxlean.data.tokenize import Counts
from jaxlean.errors import ConfigError, DataError, RunError


def write(folder: Path, name: str = "train.jsonl", num_rows: int = 30) -> str:
    file = folder / name
    rows = [{"prompt": f"{name} {i}" + " card" * (i % 7), "completion": f"is {i}"} for i in range(num_rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def config(
    train: Any, eval_: Any = None, *, seed: int = 0, steps: int | None = None, epochs: float = 1, **data: Any
) -> RunConfig:
    return build(
        {
            "seed": seed,
            "data": {"train": train, "eval": eval_, "max_length": 64, **data},
            "train": {"max_steps": steps, "num_train_epochs": epochs},
        }
    )


def prompts(batches: Any, tokenizer: Any) -> list[str]:
    """The number of every row in the batches."""
    found = []
    for batch in batches:
        for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
            for segment in range(1, segments.max() + 1):
                text = tokenizer.decode(tokens[segments == segment].tolist())
                found.append(text.replace(" card", "").partition("is ")[0])
    return found


def assert_equal(got: list[Batch], wanted: list[Batch]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_run_sees_every_row(tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    batches = train_batches(config(write(tmp_path), epochs=2), tokenizer, rows_per_step=2, vocab_size=400)
    found = prompts(batches, tokenizer)
    assert sorted(found) == sorted([f"train.jsonl {i}" for i in range(30)] * 2)
    assert batches.length == 64
    assert batches.step == batches.num_steps == len(batches)
    assert list(batches) == [], "the run is over"
    stats = batches.stats
    assert (stats.counts.rows, stats.examples, stats.length) == (30, 30, 64)
    assert 0 < stats.padding < 0.5
    assert "rows 30: 30 used, 0 dropped, 0 truncated" in str(stats)


def test_length_without_packing_is_the_longest_row_rounded_up(tmp_path: Path, make_tokenizer) -> None:
    path = write(tmp_path)
    for max_length, length in ((1024, 64), (40, 40)):
        batches = train_batches(config(path, packing=False, max_length=max_length), make_tokenizer(), rows_per_step=4)
        assert batches.length == length
        assert next(batches)["tokens"].shape == (4, length)
        assert batches.num_steps == 8
        batches.close()


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_resume_at_every_step(tmp_path: Path, make_tokenizer, packing: bool, streaming: bool) -> None:
    run = config(write(tmp_path), steps=9, packing=packing, streaming=streaming)

    def fresh() -> Batches:
        return train_batches(run, make_tokenizer(), rows_per_step=2)

    batches, taken, states = fresh(), [], []
    states.append(json.dumps(batches.state()))
    for batch in batches:
        taken.append(batch)
        states.append(json.dumps(batches.state()))
    assert len(taken) == 9
    again = fresh()
    for step in (9, 4, 0, 1, 8):  # back and forth, also on an iterator in use
        again.restore(json.loads(states[step]))
        assert again.state() == json.loads(states[step])
        assert_equal(list(again), taken[step:])
    again.restore(json.loads(states[5]))
    next(again)
    again.restore(json.loads(states[2]))
    assert_equal([next(again)], taken[2:3])
    again.close()


def test_a_state_of_other_data_is_refused(tmp_path: Path, make_tokenizer) -> None:
    path = write(tmp_path)
    state = train_batches(config(path), make_tokenizer(), rows_per_step=2).state()
    others = [
        train_batches(config(path), make_tokenizer(), rows_per_step=3),
        train_batches(config(path, seed=1), make_tokenizer(), rows_per_step=2),
        train_batches(config(write(tmp_path, "other.jsonl")), make_tokenizer(), rows_per_step=2),
    ]
    for other in others:
        with pytest.raises(RunError, match="changed since the checkpoint"):
            other.restore(state)


def test_the_seed_decides_the_order(tmp_path: Path, make_tokenizer) -> None:
    path, tokenizer = write(tmp_path), make_tokenizer()

    def order(seed: int, **data: Any) -> list[str]:
        return prompts(
            train_batches(config(path, seed=seed, packing=False, **data), tokenizer, rows_per_step=2), tokenizer
        )

    assert order(0) == order(0) != order(1)
    assert order(1, shuffle=False) == [f"train.jsonl {i}" for i in range(30)]


def test_weights(tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    sources = [
        {"path": write(tmp_path, "a.jsonl", 30), "weight": 1.0},
        {"path": write(tmp_path, "b.jsonl", 10), "weight": 3.0},
    ]
    batches = train_batches(config(sources), tokenizer, rows_per_step=2)
    found = prompts(batches, tokenizer)
    assert sum(prompt.startswith("b") for prompt in found) == 30
    assert sum(prompt.startswith("a") for prompt in found) == 10
    assert list(batches.stats.sources.values()) == [10, 30]
    assert "b.jsonl: 30 rows an epoch" in str(batches.stats)


def test_without_weights_every_row_counts_alike(tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    run = config([write(tmp_path, "a.jsonl", 30), write(tmp_path, "b.jsonl", 10)])
    found = prompts(train_batches(run, tokenizer, rows_per_step=2), tokenizer)
    assert len(found) == len(set(found)) == 40
    assert run.data.train
    run.data.train[0].weight = 1.0
    with pytest.raises(ConfigError, match=r"without a weight(.|\n)*b\.jsonl"):
        train_batches(run, tokenizer, rows_per_step=2)


def test_held_out_rows_are_not_trained_on(tmp_path: Path, make_tokenizer) -> None:
    tokenizer, path = make_tokenizer(), write(tmp_path)
    run = config(path, eval_fraction=0.2)
    trained = prompts(train_batches(run, tokenizer, rows_per_step=2), tokenizer)
    held_out = eval_batches(run, tokenizer, rows=2)
    kept = prompts(held_out, tokenizer)
    assert len(kept) == 6
    assert sorted(trained + kept) == sorted(f"train.jsonl {i}" for i in range(30))
    assert prompts(eval_batches(run, tokenizer, rows=2), tokenizer) == kept
    other = config(path, eval_fraction=0.2, seed=1)
    assert set(prompts(eval_batches(other, tokenizer, rows=2), tokenizer)) != set(kept)


def test_eval_data(tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    run = config(write(tmp_path), write(tmp_path, "test.jsonl", 7), packing=False)
    batches = eval_batches(run, tokenizer, rows=4, vocab_size=400)
    assert len(batches) == 2
    assert [int((batch["segments"] > 0).any(1).sum()) for batch in batches] == [4, 3]
    assert batches.stats.examples == 7
    assert_equal([batches[0], batches[1]], list(batches))
    run.eval.max_examples = 5
    examples = eval_examples(run, tokenizer)
    assert [wanted for _, wanted, _ in examples] == [f"is {i}" for i in range(5)]
    assert eval_batches(run, tokenizer, rows=4).stats.counts.rows == 5
    ids, wanted, origin = examples[2]
    assert tokenizer.decode(ids) == "<|im_start|>user\ntest.jsonl 2 card card<|im_end|>\n<|im_start|>assistant\n"
    assert (wanted, origin.rpartition("/")[2]) == ("is 2", "test.jsonl:3")
    # What is generated from is what was trained on, token for token.
    row, segments = batches[0]["tokens"][2], batches[0]["segments"][2]
    assert row[: len(ids)].tolist() == ids
    assert batches[0]["loss_mask"][2][: len(ids) + 1].tolist() == [False] * len(ids) + [True]
    assert segments[len(ids)] == 1


def test_no_eval_data(tmp_path: Path, make_tokenizer) -> None:
    run = config(write(tmp_path))
    assert len(eval_batches(run, make_tokenizer(), rows=2)) == 0
    assert list(eval_batches(run, make_tokenizer(), rows=2)) == []
    assert eval_examples(run, make_tokenizer()) == []


def test_the_chat_template_is_used_unless_data_chat_is_off(tmp_path: Path, make_tokenizer) -> None:
    tokenizer, path = make_tokenizer("chatml"), write(tmp_path)
    for chat in (True, False):
        batch = next(train_batches(config(path, chat=chat, packing=False), tokenizer, rows_per_step=1))
        assert ("<|im_start|>" in tokenizer.decode(batch["tokens"][0].tolist())) == chat


def test_too_long(tmp_path: Path, make_tokenizer) -> None:
    path, tokenizer = write(tmp_path), make_tokenizer()
    with pytest.raises(DataError, match=r"train\.jsonl:\d+(.|\n)*data\.max_length"):
        train_batches(config(path, max_length=18), tokenizer, rows_per_step=2)
    stats = train_batches(config(path, max_length=18, on_long="drop"), tokenizer, rows_per_step=2).stats
    assert 0 < stats.counts.dropped == 30 - stats.examples
    assert f"{stats.counts.dropped} dropped" in str(stats)
    with pytest.raises(DataError, match=r"no row is left(.|\n)*30 dropped"):
        train_batches(config(path, max_length=2, on_long="drop"), tokenizer, rows_per_step=2)
    with pytest.raises(DataError, match="no held-out row is left"):
        eval_batches(config(path, path, max_length=2, on_long="drop"), tokenizer, rows=2)


def test_what_cannot_be(tmp_path: Path, make_tokenizer) -> None:
    with pytest.raises(ConfigError, match="no training data"):
        train_batches(config(None), make_tokenizer(), rows_per_step=2)
    run = config(write(tmp_path), streaming=True, steps=2, eval_fraction=0.5)
    for make in (
        lambda: train_batches(run, make_tokenizer(), rows_per_step=2),
        lambda: eval_batches(run, make_tokenizer(), rows=2),
    ):
        with pytest.raises(ConfigError, match="eval_fraction needs the number of rows"):
            make()
    with pytest.raises(DataError, match=r"beyond the model's vocabulary(.|\n)*train\.jsonl:1"):
        train_batches(config(write(tmp_path)), make_tokenizer(), rows_per_step=2, vocab_size=20)


@pytest.mark.parametrize("streaming", [False, True])
def test_encoded_shows_rows_at_full_length(tmp_path: Path, make_tokenizer, streaming: bool) -> None:
    run = config(write(tmp_path), max_length=4, streaming=streaming, steps=1)
    assert run.data.train
    found = list(encoded(run, run.data.train[0], make_tokenizer(), Counts(), 4))
    assert [tokens.origin.rpartition(":")[2] for tokens in found] == ["1", "2", "3", "4"]
    assert all(len(tokens.input_ids) > 4 for tokens in found)


def graded(folder: Path, grades: list[Any]) -> str:
    file = folder / "graded.jsonl"
    rows = [
        {"prompt": f"row {i}", "completion": "is" + " it" * (1 + 5 * (i == 3)), "grade": g}
        for i, g in enumerate(grades)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


COLUMN = {"difficulty": "column", "column": "grade", "floor": 0.0, "start": 0.01, "pacing": "linear", "until": 1.0}


def test_a_column_puts_rows_in_order(tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    how: dict[str, Any] = {"packing": False, "curriculum": COLUMN | {"phases": 6}}
    file = graded(tmp_path, [5, "3.5", 9, 2, 1, 4])
    found = prompts(train_batches(config(file, **how), tokenizer, rows_per_step=1), tokenizer)
    # what is available grows by a row each step, and one on top of that
    places = [[4, 3, 1, 5, 0, 2].index(int(prompt.split()[-1])) for prompt in found]
    assert sorted(places) == list(range(6))
    assert all(place <= step + 1 for step, place in enumerate(places))
    # row 3, the second in the order, is dropped; the grades of the others stay with them
    longest = max(train_batches(config(file, packing=False), tokenizer, rows_per_step=1).stats.counts.longest, 1)
    how |= {"max_length": longest - 1, "on_long": "drop"}
    kept = prompts(train_batches(config(file, **how), tokenizer, rows_per_step=1), tokenizer)
    places = [[4, 1, 5, 0, 2].index(int(prompt.split()[-1])) for prompt in kept]
    assert sorted(places) == list(range(5))
    assert all(place <= step + 1 for step, place in enumerate(places))


def test_a_curriculum_is_resumed_at_the_exact_row_and_only_as_itself(tmp_path: Path, make_tokenizer) -> None:
    tokenizer, file = make_tokenizer(), write(tmp_path)

    def fresh(**how: Any) -> Batches:
        return train_batches(config(file, epochs=2.5, curriculum={"phases": 5} | how), tokenizer, rows_per_step=2)

    whole = list(fresh())
    for at in (1, len(whole) // 2):
        part = fresh()
        for _ in range(at):
            next(part)
        state, other = part.state(), fresh()
        part.close()
        other.restore(state)
        assert_equal(list(other), whole[at:])
    with pytest.raises(RunError, match="changed since the checkpoint"):
        fresh(pacing="root").restore(state)


@pytest.mark.parametrize("grade", [None, "hard", "nan"])
def test_a_grade_that_is_no_number(tmp_path: Path, make_tokenizer, grade: Any) -> None:
    file = graded(tmp_path, [1, 2, grade])
    with pytest.raises(DataError, match=r"(?s)column 'grade'.*holds no number.*graded.jsonl:3.*larger is harder"):
        train_batches(config(file, curriculum=COLUMN), make_tokenizer(), rows_per_step=1)


def test_the_bases_loss_needs_a_base(tmp_path: Path, make_tokenizer) -> None:
    run = config(write(tmp_path), curriculum="loss")
    with pytest.raises(ConfigError, match="there is no base here"):
        train_batches(run, make_tokenizer(), rows_per_step=2)
    found = train_batches(run, make_tokenizer(), rows_per_step=2, losses=lambda rows: rows.lengths.astype(float))
    assert "curriculum: loss" in str(found.stats)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_changed_since_are_refused(tmp_path: Path, make_tokenizer, streaming: bool) -> None:
    file = Path(write(tmp_path))
    run = config(str(file), steps=3, streaming=streaming)
    state = train_batches(run, make_tokenizer(), rows_per_step=2).state()
    text = file.read_text()
    rows = text.splitlines(keepends=True)
    for changed in (text.replace("is 7", "is 6", 1), text + rows[0], "".join(rows[1:])):
        assert changed != text
        file.write_text(changed)
        with pytest.raises(RunError, match="the data or the batch size changed since the checkpoint"):
            train_batches(run, make_tokenizer(), rows_per_step=2).restore(state)
    file.write_text(text)
    train_batches(run, make_tokenizer(), rows_per_step=2).restore(state)
