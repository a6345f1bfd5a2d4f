"""Tables of vectors."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.models.embedding import Embedding


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_row_for_each_token_in_the_compute_dtype(dtype):
    table = Embedding(5, 3, std=0.5, dtype=dtype, rngs=nnx.Rngs(0))
    assert table.embedding[...].dtype == jnp.float32
    found = table(jnp.asarray([[4, 0], [2, 4]]))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, table.embedding[...].astype(dtype)[np.asarray([[4, 0], [2, 4]])])
    assert 0.2 < float(table.embedding[...].std()) < 0.9
