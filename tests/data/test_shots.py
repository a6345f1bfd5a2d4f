"""Few-shot prompts: what stands in them, what is learned of them, and that nothing held out stands in them."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxlean.config import build
from jaxlean.data import shots as module
from jaxlean.data.format import Chat, Pair
from jaxlean.data.shots import choose, lay_out, prompt_of, shot_rows
from jaxlean.errors import ConfigError, DataError

THINGS = ["card", "fee", "loan", "parcel", "phone", "bill"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    train = [{"prompt": f"Where is my {thing}?", "completion": f"about {thing}"} for thing in THINGS]
    held = [{"prompt": f"where is  my {thing}?", "completion": "held out"} for thing in ("card", "dog")]
    found = {}
    for name, rows in (("train", train), ("eval", held)):
        found[name] = str(tmp_path / f"{name}.jsonl")
        Path(found[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def made(make_tokenizer: Any, files: dict[str, str], shots: int = 2, template: str | None = None, **more: Any) -> Any:
    longest, data = more.pop("longest", 4096), more.pop("data", {})
    config = build({"data": files | {"max_length": 512} | data, "eval": {"shots": shots} | more})
    tokenizer = make_tokenizer(template)
    return shot_rows(config, tokenizer, longest=longest), tokenizer


def text_of(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_earlier_turns_of_a_conversation(make_tokenizer, files):
    found, tokenizer = made(make_tokenizer, files, template="chatml", shots_by="nearest")
    tokens = found.tokens[0]
    whole, learned = text_of(tokenizer, tokens.input_ids), text_of(tokenizer, tokens.input_ids[tokens.loss_mask])
    assert learned == "held out<|im_end|>"
    assert whole.count("<|im_start|>user\n") == 3
    turns = [part.split("<|im_end|>")[0] for part in whole.split("<|im_start|>assistant\n")[1:]]
    assert [turn[:5] for turn in turns] == ["about", "about", "held "]
    prompt, wanted, origin = found.prompts[0]
    assert text_of(tokenizer, prompt).endswith("<|im_start|>assistant\n")
    assert tokens.input_ids[: len(prompt)].tolist() == prompt
    assert (wanted, found.end) == ("held out", None)
    assert origin.endswith("eval.jsonl:1")


def test_blocks_of_text(make_tokenizer, files):
    found, tokenizer = made(make_tokenizer, files, shots=1)
    tokens = found.tokens[1]
    block, own = text_of(tokenizer, tokens.input_ids).split("\n\n")
    prompt, completion = block.split("\n")
    assert prompt == f"Where is my {completion.removeprefix('about ')}?"
    assert own == "where is  my dog?\nheld out</s>"
    # the end of text is not what follows a block, so nobody is judged by it
    assert text_of(tokenizer, tokens.input_ids[tokens.loss_mask]) == "held out"
    assert found.cut("\nheld out\n\nWhere is my fee?") == "held out"


def test_nothing_held_out_is_an_example(make_tokenizer, files):
    """A training row with the prompt of a held-out one (in other letters, with other blanks) would tell its answer."""
    for by in ("random", "nearest"):
        found, tokenizer = made(make_tokenizer, files, shots=5, shots_by=by)
        assert found.leaked == 1
        assert all("about card" not in text_of(tokenizer, tokens.input_ids) for tokens in found.tokens)
        assert all("about bill" in text_of(tokenizer, tokens.input_ids) for tokens in found.tokens)
        assert "1 training rows are not used" in str(found)
    for asked in (
        "WHERE is my card",
        "Where is my card?!",
        "\u201cWhere is my ca\uff52d?\u201d",
        "Where... is my card",
    ):
        Path(files["eval"]).write_text(json.dumps({"prompt": asked, "completion": "held out"}))
        found, tokenizer = made(make_tokenizer, files, shots=5)
        assert found.leaked == 1, asked
        assert "about card" not in text_of(tokenizer, found.tokens[0].input_ids)
    with pytest.raises(DataError, match="no training row can stand as an example"):
        made(make_tokenizer, {"train": files["eval"], "eval": files["eval"]})


def test_rows_too_long_have_fewer_examples(make_tokenizer, files):
    whole, _ = made(make_tokenizer, files, shots=3)
    longest = min(len(tokens.input_ids) for tokens in whole.tokens) - 1
    found, tokenizer = made(make_tokenizer, files, shots=3, longest=longest)
    assert (found.shots < 3).all()
    assert (found.shots > 0).all()
    assert all(len(tokens.input_ids) <= longest for tokens in found.tokens)
    assert f"2 rows have fewer ({found.shots.mean():.1f} on average) to fit {longest} tokens" in str(found)
    # what is left out is what stands first
    assert text_of(tokenizer, whole.tokens[0].input_ids).endswith(text_of(tokenizer, found.tokens[0].input_ids))
    # what is generated needs room too
    tight, _ = made(make_tokenizer, files, shots=3, longest=longest, exact_match=True, max_new_tokens=longest - 20)
    assert all(len(prompt) + longest - 20 <= longest or shots == 0
               for (prompt, _, _), shots in zip(tight.prompts, tight.shots, strict=True))  # fmt: skip
    assert (tight.shots < found.shots).all()


@pytest.mark.parametrize("template", [None, "chatml"])
def test_as_many_examples_as_fit_in_few_tries(make_tokenizer, files, template, monkeypatch):
    """As many as leaving out one after the other would keep, for each row on its own."""
    rows = [{"prompt": f"word {n} " * (n % 7 + 1), "completion": "so " * (n % 5 + 1)} for n in range(60)]
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    every = [made(make_tokenizer, files, shots, template, shots_by="nearest")[0] for shots in range(1, 40)]
    longest = 170
    tried = []
    monkeypatch.setattr(module, "lay_out", lambda *args: tried.append(1) or lay_out(*args))
    found, _ = made(make_tokenizer, files, 39, template, shots_by="nearest", longest=longest)
    assert len(tried) <= 2 * 7
    for i, shots in enumerate(found.shots):
        assert 0 < shots < 38
        assert found.tokens[i].input_ids.tolist() == every[shots - 1].tokens[i].input_ids.tolist()
        assert found.prompts[i] == every[shots - 1].prompts[i]
        assert len(every[shots - 1].tokens[i].input_ids) <= longest < len(every[shots].tokens[i].input_ids)


def test_more_than_there_are_is_said(make_tokenizer, files):
    found, _ = made(make_tokenizer, files, shots=9)
    assert found.shots.tolist() == [5, 5], "of six, one is held out"
    assert str(found).startswith("few-shot: 5 examples before each of 2 held-out rows; 9 were asked for, and the")
    assert "fewer" not in str(found)


def test_without_room_for_any_the_row_is_as_the_evaluation_has_it(make_tokenizer, files):
    bare, _ = made(make_tokenizer, files, longest=1)
    assert (bare.shots == 0).all()
    longest = max(len(tokens.input_ids) for tokens in bare.tokens)
    assert bare.batches(rows=2, seed=0).length >= longest
    with pytest.raises(DataError, match=r"longer than data.max_length"):
        made(make_tokenizer, files, data={"max_length": 5})
    with pytest.raises(DataError, match="no held-out row is left"):
        made(make_tokenizer, files, data={"max_length": 5, "on_long": "drop"})


def test_what_the_loss_is_of_is_said(make_tokenizer, files):
    found, _ = made(make_tokenizer, files)
    assert "comparable" not in str(found)
    every, _ = made(make_tokenizer, files, data={"train_on": "all"})
    assert "loss on their completions alone, not comparable with one under data.train_on: all" in str(every)
    assert [t.loss_mask.sum() for t in every.tokens] == [t.loss_mask.sum() for t in found.tokens]


def test_batches_hold_each_row_once(make_tokenizer, files):
    found, _ = made(make_tokenizer, files, shots=2)
    batches = found.batches(rows=4, seed=0)
    assert sum(int(batch["loss_mask"].sum()) for batch in batches) == sum(int(t.loss_mask.sum()) for t in found.tokens)
    assert batches.stats.examples == 2


def test_the_same_seed_draws_the_same_examples():
    pool = [f"text {i}" for i in range(40)]
    asked = ["a"] * 30
    first = choose(asked, pool, 4, "random", 7)
    assert first == choose(asked, pool, 4, "random", 7)
    assert first != choose(asked, pool, 4, "random", 8)
    assert len({tuple(one) for one in first}) > 20, "each row has examples of its own"
    assert all(len(set(one)) == 4 for one in first)
    assert sorted(choose(asked[:1], pool[:3], 9, "random", 0)[0]) == [0, 1, 2]


def test_the_most_alike_stands_last():
    pool = ["my lost card", "the fee", "card lost in my post", "lost card"]
    assert choose(["lost card"], pool, 2, "nearest", 0) == [[0, 3]]


def test_system_messages_and_what_is_learned():
    def chat(*roles: str, learn_from: int = 0) -> Chat:
        return Chat([{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)], learn_from=learn_from)

    row = chat("system", "user", "assistant", "user", "assistant", learn_from=3)
    found = lay_out(row, [chat("system", "user", "assistant"), chat("user", "assistant")])
    assert [m["role"] for m in found.messages] == ["system", *["user", "assistant"] * 4]
    assert found.messages[0] == row.messages[0]
    assert found.messages[5:] == row.messages[1:]
    assert found.learn_from == 7
    assert lay_out(chat("user", "assistant"), [chat("user", "assistant")]).learn_from == 2
    assert prompt_of(row, "") == "user 1\nassistant 2\nuser 3"


def test_a_blank_line_in_a_completion_parts_blocks_otherwise(make_tokenizer, files):
    rows = [{"prompt": f"p {i}", "completion": "one\n\ntwo"} for i in range(3)]
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = made(make_tokenizer, files, shots=1)
    assert found.end == "\n\n\n"
    assert found.cut("one\n\ntwo\n\n\nq") == "one\n\ntwo"


def test_blanks_that_are_there_stay():
    assert lay_out(Pair("a\n", "b"), [Pair("c:", " d\n")]) == Pair("c: d\n\na\n", "b")


def test_plain_text_and_no_training_data_are_errors(make_tokenizer, files, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a b c"}\n')
    with pytest.raises(DataError, match="plain text"):
        made(make_tokenizer, {"train": files["train"], "eval": str(text)})
    with pytest.raises(ConfigError, match="no training data"):
        made(make_tokenizer, {"eval": files["eval"]})
