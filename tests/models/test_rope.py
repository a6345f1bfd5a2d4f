"""Angles: the frequencies that transformers computes for every rope type, and what a rotation must keep."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.models.rope import Rope, rotate

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())


def rope_of(row):
    """The settings of a golden row as they are meant, nothing derived (tests/hub/test_family.py derives it)."""
    given = {k: v for k, v in row["rope_parameters"].items() if k in Rope.__dataclass_fields__}
    given |= {k: tuple(given[k]) for k in ("short_factor", "long_factor") if k in given}
    given["attention_factor"] = row["attention_factor"]
    if given["rope_type"] == "dynamic":
        given["original_max_position_embeddings"] = row["max_position_embeddings"]
    return Rope(**given)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['rope_parameters']['rope_type']}-{row['length']}")
def test_frequencies_are_those_of_transformers(row):
    # the angle at position 1 is the frequency itself; the other row makes the batch as long as the golden one
    positions = jnp.asarray([[min(1, row["length"] - 1)], [row["length"] - 1]], jnp.int32)
    if row["length"] == 1:
        positions = jnp.asarray([[1]], jnp.int32)  # far below every context: no longer than 1 as far as rope cares
    cos, sin = rope_of(row).cos_sin(positions, row["head_dim"])
    assert cos.shape == sin.shape == (*positions.shape, row["head_dim"] // 2)
    assert cos.dtype == sin.dtype == jnp.float32
    # each to float32's last digits: the smallest frequency is 1e-6, which an absolute tolerance would not see
    np.testing.assert_allclose(np.arctan2(sin[0, 0], cos[0, 0]), row["inv_freq"], rtol=2e-6)
    np.testing.assert_allclose(np.hypot(sin, cos), row["attention_factor"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_length_see_the_longest_position_only(kind):
    rope = Rope(
        kind, factor=2.0, original_max_position_embeddings=16, short_factor=(1.0,) * 4, long_factor=(2.0, 3.0, 4.0, 5.0)
    )
    at = jnp.asarray([[3, 7, 15]], jnp.int32)
    short = rope.cos_sin(at, 8)
    long = rope.cos_sin(jnp.concatenate([at, at + 1], axis=1), 8)
    plain = Rope().cos_sin(at, 8)
    np.testing.assert_allclose(short[0], plain[0], atol=1e-6)  # within the context nothing is stretched
    assert np.abs(np.asarray(long[0][:, :3] - plain[0])).max() > 0.05


def test_jit_takes_lengths_as_they_come():
    rope = Rope("dynamic", factor=2.0, original_max_position_embeddings=8)
    fast = jax.jit(lambda positions: rope.cos_sin(positions, 8))
    for start in (0, 20):
        positions = jnp.arange(start, start + 6, dtype=jnp.int32)[None]
        np.testing.assert_allclose(fast(positions)[1], rope.cos_sin(positions, 8)[1], atol=1e-6)
    assert fast._cache_size() == 1


def test_a_rotation_turns_pairs_in_the_plane():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = jnp.asarray([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]], jnp.int32)
    got = np.asarray(rotate(jnp.asarray(x), *Rope().cos_sin(positions, 8)))
    # i and i + head_dim/2 are the real and the imaginary part of one number
    angles = np.asarray(positions)[..., None] * 10_000.0 ** (-np.arange(0, 8, 2) / 8)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, :, None]
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=2e-6)


def test_scores_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(q_at, k_at):
        turn = [
            rotate(x, *Rope().cos_sin(jnp.asarray([[at]], jnp.int32), 16)) for x, at in ((query, q_at), (key, k_at))
        ]
        return float(jnp.vdot(*turn))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-2


def test_the_dtype_stays_but_the_turning_is_float32():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 4, 1, 8)), jnp.bfloat16)
    angles = Rope().cos_sin(jnp.arange(1000, 1004, dtype=jnp.int32)[None], 8)
    y = rotate(x, *angles)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), rotate(x.astype(jnp.float32), *angles), rtol=2**-8, atol=1e-6)
