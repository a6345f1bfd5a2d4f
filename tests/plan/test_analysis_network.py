"""What the arithmetic estimate makes of several machines: which axes of a mesh cross them, and what that costs."""

import json

import jax
import pytest

from jaxlean.config import build
from jaxlean.plan.analysis import Analysis
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.target import parse
from jaxlean.xla.mesh import AXES

LENGTH, ROWS, LAYERS = 64, 16, 2
SHAPE = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": True,
    "num_hidden_layers": LAYERS, "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 256,
}  # fmt: skip
# Of a layer: query, key, value, out; gate, up, down.
KERNELS = LAYERS * (4 * 128 * 128 + 3 * 128 * 256)
SMALL = LAYERS * 2 * 128 + 128  # norms


@pytest.fixture
def seconds(tmp_path, monkeypatch):
    """(network in GB/s, axes) -> of a step on two machines of eight."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPE))
    config = build({
        "model": {"path": str(model), "dtype": "bfloat16", "attention": "plain"}, "lora": None,
        "data": {"train": "unread"}, "train": {"remat": "full"},
    })  # fmt: skip

    def find(network, **axes):
        table = tmp_path / f"{network}.yaml"
        entry = {"match": "x", "target": "h100-80gb", "network_microseconds": 0, "network_gb_per_second": network}
        table.write_text(json.dumps({"devices": [entry]}))  # YAML too
        mesh = tuple(axes.get(axis, 1) for axis in AXES)
        shards = axes.get("data", 1) * axes.get("fsdp", 1)
        analysis = Analysis(config, parse("h100-80gb:16", str(table)), jax.devices()[0], rows=ROWS, length=LENGTH)
        (guess,) = analysis.guesses(Candidate(mesh, ROWS // shards, 1, "bfloat16", "none"))
        return guess.seconds

    return find


def crossed(seconds, **axes):
    """Bytes that one device sends over the network, from how long it takes at two slow rates; half is hidden."""
    return (seconds(1e-3, **axes) - seconds(2e-3, **axes)) * 0.8 * 1e6 / 0.5 / (1 - 1 / 2)


def test_copies_on_each_machine_add_up_their_gradients_over_the_network(seconds):
    """Each card of a machine its eighth, in float32, to one other; what is not split in a ring of all."""
    split, embedding = KERNELS * 4 / 8, 512 * 128 * 4 / 8
    by_hand = 2 * (split + embedding) / 2 + 2 * SMALL * 4 * 15 / 16 / 8
    assert crossed(seconds, data=2, fsdp=8) == pytest.approx(by_hand, rel=1e-3)


def test_parameters_split_over_both_machines_are_gathered_over_the_network(seconds):
    """Eight rings at once: an eighth of what a ring of sixteen sends. Kernels thrice, gradients in float32."""
    gathers, scatters = 3 * KERNELS * 2, (KERNELS + 512 * 128) * 4
    by_hand = ((gathers + scatters) * 15 / 16 + 2 * SMALL * 4 * 15 / 16) / 8
    assert crossed(seconds, fsdp=16) == pytest.approx(by_hand, rel=1e-3)


def test_matrices_split_within_a_machine_stay_off_the_network(seconds):
    inside, over = crossed(seconds, data=2, tensor=8), crossed(seconds, tensor=16)
    # sums of hidden states, forward, again and backward, two a layer: a ring of sixteen leaves by eight doors
    hidden = ROWS * LENGTH * 128 * 2
    assert over == pytest.approx(2 * 3 * LAYERS * 2 * hidden * 15 / 16 / 8, rel=1e-3)
    copies = 2 * ((KERNELS + 512 * 128) * 4 / 8 + SMALL * 4) / 2
    assert inside == pytest.approx(copies, rel=1e-3)
