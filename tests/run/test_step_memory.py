"""What a step's memory is taken by: the parts are the trees that it is handed, and all of it is what XLA says.

That those of a run add up is in test_finetune.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlean.run.step_memory import by_category, local_bytes
from jaxlean.train.step import TrainState
from jaxlean.xla.remat_auto import argument_bytes, needed_bytes

KB = 1024


def step(state, frozen, batch):
    hidden = jnp.tanh(batch["tokens"] @ frozen["kernel"])
    gradient = hidden.T @ hidden
    moved = state.optimizer["mu"] + gradient
    return state._replace(trainable={"kernel": state.trainable["kernel"] - moved}, optimizer={"mu": moved})


@pytest.fixture(params=[1, 4], ids=lambda devices: f"{devices} devices")
def arguments(request):
    """A batch that is spread over the devices; all else is on each of them."""
    mesh = Mesh(np.array(jax.devices()[: request.param]), ("data",))

    def shape(*shape, by=()):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*by)))

    kernel = {"kernel": shape(16, 16)}
    state = TrainState(kernel, {"mu": shape(16, 16)}, shape(), shape())
    return state, {"kernel": shape(64, 16)}, {"tokens": shape(128, 64, by=("data",))}


def test_the_parts_are_the_trees_of_one_device_and_what_the_compiler_needs_beside_them(arguments):
    state, frozen, batch = arguments
    compiled = jax.jit(step, donate_argnums=0, keep_unused=True).lower(*arguments).compile()
    found = by_category(needed_bytes(compiled), state, frozen, batch)
    devices = batch["tokens"].sharding.num_devices
    assert found == {
        "frozen": 4 * KB, "trained": KB, "optimizer": KB + 8, "batch": 32 * KB // devices,
        "temporaries": needed_bytes(compiled) - argument_bytes(compiled),
    }  # fmt: skip
    assert found["temporaries"] >= 4 * 128 * 16 // devices, "the hidden states at least"
    assert sum(found.values()) == needed_bytes(compiled)


def test_no_part_is_less_than_nothing(arguments):
    found = by_category(10, *arguments)
    assert found["temporaries"] == 0
    assert sum(found.values()) == local_bytes(arguments)
