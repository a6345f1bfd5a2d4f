"""Batches of images: a pure function of seed and step, each image once an epoch, with its own label."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxlean.config import RunConfig
from jaxlean.data.columns import resolve
from jaxlean.data.image_batches import image_batches, image_eval_batches
from jaxlean.data.images import Preprocess
from jaxlean.errors import ConfigError, DataError

PREPROCESS = Preprocess(size=(4, 4), crop=None)
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
PER_CLASS = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose channels tell their class, and whose brightness tells them apart."""
    for name, colour in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            shade = tuple(channel * (100 + 10 * i) // 255 for channel in colour)
            image = Image.new("RGB", (8, 6), shade)
            image.putpixel((0, 0), (9, 9, 9))
            image.save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def config(train, **data):
    train_section = data.pop("train_section", {})
    values = {"task": "classify", "seed": 3, "data": {"train": str(train), **data}, "train": train_section}
    return resolve(RunConfig.model_validate(values), images=True)


def batches(settings, rows=4, held=None):
    return image_batches(settings, PREPROCESS, rows_per_step=rows, length=5, held=held)


def colour_of(pixels):
    """The label that the pixels themselves tell."""
    return [sorted(COLOURS).index("blue green red".split()[2 - int(np.argmax(p))]) for p in pixels]


def test_each_image_is_there_once_an_epoch_with_its_label(folder):
    settings = config(folder)
    assert settings.data.labels == ["blue", "green", "red"]
    assert settings.data.image_column == "image"
    found = list(batches(settings))
    assert [batch["pixels"].shape for batch in found] == [(4, 48)] * 4
    labels = np.concatenate([batch["labels"][:, 0] for batch in found])
    pixels = np.concatenate([batch["pixels"] for batch in found]).reshape(-1, 16, 3)
    assert labels[-1] == -100  # 15 images in rows of 4
    assert not pixels[-1].any()
    assert labels[:-1].tolist() == colour_of(pixels[:-1].mean(axis=1))
    shades = {(int(label), round(float(p.max()), 3)) for label, p in zip(labels[:-1], pixels[:-1], strict=True)}
    assert len(shades) == 15


def test_a_step_does_not_depend_on_the_steps_before(folder):
    settings = config(folder, augment=True, train_section={"num_train_epochs": 2})
    whole = list(batches(settings))
    run = batches(settings)
    for _ in range(3):
        next(run)
    other = batches(settings)
    other.restore(json.loads(json.dumps(run.state())))
    for got, wanted in zip(other, whole[3:], strict=True):
        np.testing.assert_array_equal(got["pixels"], wanted["pixels"])
        np.testing.assert_array_equal(got["labels"], wanted["labels"])


def test_augmented_an_image_is_another_in_each_epoch(folder):
    def by_image(settings):
        found = {}
        for number, batch in enumerate(batches(settings, rows=15)):
            for label, pixels in zip(batch["labels"][:, 0], batch["pixels"], strict=True):
                found.setdefault(number, set()).add((int(label), pixels.tobytes()))
        return found

    plain = by_image(config(folder, train_section={"num_train_epochs": 2}))
    assert plain[0] == plain[1]
    drawn = by_image(config(folder, augment=True, train_section={"num_train_epochs": 2}))
    assert not drawn[0] <= drawn[1]
    assert drawn == by_image(config(folder, augment=True, train_section={"num_train_epochs": 2}))


def test_a_process_lays_out_its_own_rows(folder):
    settings = config(folder, augment=True)
    for whole, part in zip(batches(settings), batches(settings, held=[1, 3]), strict=True):
        np.testing.assert_array_equal(part["pixels"], whole["pixels"][[1, 3]])
        np.testing.assert_array_equal(part["labels"], whole["labels"][[1, 3]])


def test_held_out_images_are_others_and_are_left_as_they_are(folder):
    settings = config(folder, eval_fraction=0.2, augment=True, train_section={"num_train_epochs": 1})
    held = image_eval_batches(settings, PREPROCESS, rows=2, length=5)
    kept = np.concatenate([held[i]["pixels"][held[i]["labels"][:, 0] >= 0] for i in range(len(held))])
    assert len(kept) == held.stats.examples == 3
    plain = config(folder, eval_fraction=0.2)
    trained = np.concatenate([batch["pixels"] for batch in batches(plain)])[:12]
    assert not {x.tobytes() for x in kept} & {x.tobytes() for x in trained}
    assert len({x.tobytes() for x in [*kept, *trained]}) == 15


def test_a_file_names_images_beside_it_and_sources_join(folder, tmp_path):
    rows = [{"img": f"images/{name}/0.png", "class": name} for name in COLOURS]
    listed = tmp_path / "rows.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(listed, shuffle=False)
    assert (settings.data.image_column, settings.data.label_column) == ("img", "class")
    two = settings.data.model_copy(update={"train": settings.data.train * 2})
    found = list(batches(settings.model_copy(update={"data": two}), rows=6))
    assert len(found) == 1
    assert found[0]["labels"][:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(found[0]["pixels"][:3], found[0]["pixels"][3:])


def test_what_is_wrong_is_named(folder, tmp_path):
    settings = config(folder)
    strange = settings.data.model_copy(update={"labels": ["blue", "red"]})
    with pytest.raises(DataError, match=r"(?s)green.*0\.png|0\.png.*green"):
        batches(settings.model_copy(update={"data": strange}))
    with pytest.raises(ConfigError, match="the rows are images"):
        batches(config(folder, curriculum="length"))
    (folder / "red" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"red.2\.png"):
        list(batches(settings))
    unnamed = tmp_path / "rows.jsonl"
    unnamed.write_text('{"picture": "a.png", "label": "x"}\n')
    with pytest.raises(DataError, match=r"data\.image_column"):
        config(unnamed)


def test_images_that_changed_since_are_told_apart(folder, tmp_path):
    settings = config(str(folder))
    before = batches(settings).fingerprint
    assert batches(settings).fingerprint == before
    image = sorted(folder.rglob("*.png"))[0]
    content = image.read_bytes()
    image.write_bytes(content + b"more")
    assert batches(settings).fingerprint != before
    image.write_bytes(content)
    assert batches(settings).fingerprint == before
    image.rename(image.with_name("another.png"))
    assert batches(settings).fingerprint != before
