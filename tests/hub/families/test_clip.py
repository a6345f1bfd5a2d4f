"""CLIP checkpoints: both towers, the end of a text in old files and in new ones, and the images' tower with labels."""

import re
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxlean.errors import ModelError
from jaxlean.hub.load import load

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("clip_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, image_parity):
    image_parity(case)


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, image_round_trip):
    image_round_trip(case, lambda name: re.search(r"\.position_ids$", name) is not None)


def test_all_cases_are_there():
    assert len(CASES) == 3


@pytest.mark.parametrize("case", ["clip_both", "clip_old"])
def test_the_vectors_are_those_of_transformers(case, loaded, expected):
    model, wanted = loaded(case), expected(case)
    module = nnx.merge(model.graph, model.params)
    found = {
        "text_embeds": module.embed_text(wanted["tokens"]),
        "image_embeds": module.embed_images(wanted["pixels"]),
    }
    for name, vectors in found.items():
        np.testing.assert_allclose(vectors, wanted[name], atol=1e-4 * np.abs(wanted[name]).max(), rtol=0, err_msg=name)


def test_what_no_clip_has_is_refused(checkpoint):
    copy = checkpoint("clip_both")
    copy.configure(architectures=["CLIPTextModelWithProjection"])
    with pytest.raises(ModelError, match="CLIPModel, CLIPForImageClassification"):
        load(copy.folder)
