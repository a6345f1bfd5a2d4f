def test_the_first_stays(curated, texts):
    told, kept, dropped = curated([{"text": text} for text in texts], ["exact_duplicates"])
    assert [row["text"] for row in kept] == [texts[0], texts[2], texts[3], texts[4]]
    assert [row["jaxlean_duplicate_of"].rpartition(":")[2] for row in dropped] == ["1", "4"]
    assert told["steps"][1]["reasons"] == {"the same text": 2}


def test_what_is_ignored_is_a_choice(curated, texts):
    step = {"exact_duplicates": {"ignore": []}}
    _, kept, _ = curated([{"text": text} for text in texts], [step])
    assert len(kept) == 5


def test_a_question_with_two_answers_is_two_rows_or_one(curated, tmp_path):
    rows = [{"prompt": "2 + 2?", "completion": "4"}, {"prompt": "2 + 2?", "completion": "four"}]
    assert len(curated(rows, ["exact_duplicates"], output_dir=str(tmp_path / "a"))[1]) == 2
    step = {"exact_duplicates": {"over": "prompt"}}
    assert len(curated(rows, [step], output_dir=str(tmp_path / "b"))[1]) == 1


def test_a_text_with_two_labels_stays_with_both_and_is_counted(curated, tmp_path):
    rows = [{"text": "hello", "label": "a"}, {"text": "Hello!", "label": "b"}, {"text": "hello", "label": "a"}]
    told, kept, _ = curated(rows, ["exact_duplicates"], task="classify", output_dir=str(tmp_path / "a"))
    assert [row["label"] for row in kept] == ["a", "b"]
    assert told["steps"][1]["notes"] == {"texts that stand there with several labels": 1}
    own = {"text_column": "text"}
    assert len(curated(rows, ["exact_duplicates"], task="classify", curate=own, output_dir=str(tmp_path / "c"))[1]) == 2
    step = {"exact_duplicates": {"across_labels": True}}
    _, kept, _ = curated(rows, [step], task="classify", output_dir=str(tmp_path / "b"))
    assert [row["label"] for row in kept] == ["a"]


def test_texts_with_several_labels_are_counted_as_texts(curated):
    rows = [{"text": text, "label": label} for text in ("hello", "bye", "thanks") for label in "abca"]
    told, kept, _ = curated([*rows, {"text": "yes", "label": "a"}], ["exact_duplicates"], task="classify")
    assert len(kept) == 10
    assert told["steps"][1]["notes"] == {"texts that stand there with several labels": 3}
