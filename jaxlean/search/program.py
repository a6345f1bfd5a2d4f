"""The one step that trials share: compiled once, with what they differ in as its arguments.

With several members it trains so many trials side by side over one frozen base (`jax.vmap`), each with its own adapter,
optimizer state, rows and settings. A member's place is given to another trial without compiling again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import RunConfig
from jaxlean.hub.load import Model
from jaxlean.models.cpu import hold
from jaxlean.run.fit import fit
from jaxlean.run.image import image_of
from jaxlean.run.job import adapt, batch_shapes, outline, rows_of_step, tokens_at_a_time, trains_of
from jaxlean.run.losses import loss_of
from jaxlean.run.predict import workspace
from jaxlean.train.objective import Batch
from jaxlean.train.optimizer import INPUTS, optimizer
from jaxlean.train.step import StepMetrics, TrainState, init_state, make_update
from jaxlean.xla.mesh import replicated
from jaxlean.xla.remat_auto import compile_within, device_budget

_SCALE = ".lora_scale"
Inputs = Mapping[str, Any]


class Program:
    """The step of all trials with one `inputs.program_key`.

    Args:
        config: of any of these trials, resolved.
        model: the base, without adapters.
        mesh: of one device.
        names: of the arguments that `inputs.constants` gives for these trials.
        rank: of the adapters, the highest of all trials.
        length: tokens of a sequence.
        members: trials side by side.

    Attributes:
        rows: sequences of a trial's step.
        compiled: the step, where `compile` found that it fits.
        needed: bytes that it takes on the device, or would.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        mesh: jax.sharding.Mesh,
        *,
        names: Sequence[str],
        rank: int | None,
        length: int,
        members: int = 1,
    ):
        self.members, self.length, self.rows = members, length, rows_of_step(config, mesh)
        self._base, self._mesh, self._rank, self._names = model, mesh, rank, tuple(names)
        self.config = _with_rank(config, rank)
        self.needed: int | None = None
        shapes = jax.eval_shape(lambda p: adapt(self.config, model, p, shapes=True)[0], model.params)
        self.model = model.with_params(shapes)
        self._trains = trains_of(self.config, self.model)
        self._trainable, frozen = tree.split(shapes, self._trains)
        params = tree.flatten(model.params)
        # the base as it lies on the device; scales are arguments
        held = hold(tree.unflatten({path: params[path] for path in tree.flatten(frozen) if not path.endswith(_SCALE)}))
        self._scales = {path: x.shape for path, x in tree.flatten(frozen).items() if path.endswith(_SCALE)}
        self.frozen: tree.Tree = held
        self._policy: Any = config.train.remat
        # what state there is depends on which settings are arguments, not on their values
        start = self._transform(dict.fromkeys(self._names, jnp.zeros((), jnp.float32)))
        self._init = jax.jit(lambda trainable: init_state(jax.tree.map(jnp.copy, trainable), start))
        self._place = jax.jit(self._placed, donate_argnums=0)
        self._take = jax.jit(lambda trainable, member: jax.tree.map(lambda x: x[member], trainable))
        self.compiled: jax.stages.Compiled | None = None
        self._states: TrainState | None = None

    # ---- one step

    def _transform(self, inputs: Inputs) -> optax.GradientTransformation:
        settings = {name: value for name, value in inputs.items() if name in INPUTS}
        own, searched = lora.learning_rate_ratios(self.config.lora), inputs.get("loraplus_lr_ratio")

        def ratio(path: str) -> Any:
            return searched if searched is not None and path.endswith(".lora_b") else own(path)

        return optimizer(self.config.train, 1, self._trainable, ratio=ratio, inputs=settings)

    def with_scales(self, frozen: tree.Tree, scale: Any) -> tree.Tree:
        """What does not train, of a trial whose adapters count so much."""
        leaves = tree.flatten(frozen) | {path: jnp.full(shape, scale) for path, shape in self._scales.items()}
        return tree.unflatten(leaves)

    def _one(
        self, state: TrainState, frozen: tree.Tree, batch: Batch, inputs: Inputs
    ) -> tuple[TrainState, StepMetrics]:
        rate = inputs.get("lora_dropout")
        loss = loss_of(self.config, self.model, self._mesh, self._policy, dropout_rate=rate)
        whole = self.with_scales(frozen, inputs["lora_scale"]) if self._scales else frozen
        return make_update(loss, self._transform(inputs))(state, whole, batch, jax.random.key(inputs["seed"]))

    @property
    def _step(self) -> jax.stages.Wrapped:
        one = self._one if self.members == 1 else jax.vmap(self._one, in_axes=(0, None, 0, 0))
        return jax.jit(one, donate_argnums=0)

    # ---- compiling

    def trace(self) -> Any:
        """The step over shapes, traced."""
        where = replicated(self._mesh)

        def shaped(x: Any) -> jax.ShapeDtypeStruct:
            lead = () if self.members == 1 else (self.members,)
            return jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=where)

        state = jax.tree.map(shaped, jax.eval_shape(self._init, self._trainable))
        batch = batch_shapes(self.config, self.rows, self.length, self._mesh, image_of(self._base))
        inputs = {name: np.zeros((), np.uint32 if name == "seed" else np.float32) for name in self._names}
        frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.frozen)
        return self._step.trace(state, frozen, jax.tree.map(shaped, batch), jax.tree.map(shaped, inputs))

    @property
    def budget(self) -> int:
        """Bytes of the device that a step may take."""
        said = self.config.train.memory_budget
        own = said if said is not None else device_budget(self._mesh.devices.flat)
        tokens = self.members * tokens_at_a_time(self.config, self.rows, self.length, self._mesh)
        return own - workspace(self._mesh.devices.flat[0].platform, self.model.config.hidden_size, tokens=tokens)

    def compile(self) -> bool:
        """Compile the step; whether it fits on the device. Where it does not, nothing was allocated for it.

        Raises:
            RunError: with `train.remat: auto`, that it does not fit whatever is recomputed.
        """
        if self._policy == "auto":
            self._policy = self._fitting()
        self.compiled, self.needed = compile_within(self.trace(), self.budget)
        if self.needed > self.budget:
            self.compiled = None
        return self.compiled is not None

    def _fitting(self) -> Any:
        job = outline(self.config, self._mesh, length=self.length)
        return fit(
            self.config, self._mesh, job.build, job.state, job.frozen, self.rows, self.length,
            hidden=self.model.config.hidden_size, names=self.model.config.activations, image=image_of(self._base),
        ).policy  # fmt: skip

    # ---- members

    def start(self, config: RunConfig) -> tree.Tree:
        """What a trial trains, as `finetune` would start it, at its own rank."""
        return tree.split(adapt(config, self._base, self._base.params)[0], self._trains)[0]

    def place(self, member: int, trainable: tree.Tree) -> None:
        """Give a member's place to a trial that starts so."""
        wide = lora.padded(trainable, self._rank) if self._rank is not None else trainable
        if self.members == 1:
            self._states = self._init(wide)
        elif self._states is None:
            self._states = jax.jit(lambda t: jax.tree.map(lambda x: jnp.stack([x] * self.members), self._init(t)))(wide)
        else:
            self._states = self._place(self._states, jnp.int32(member), wide)

    def _placed(self, states: TrainState, member: jax.Array, trainable: tree.Tree) -> TrainState:
        return jax.tree.map(lambda all_, one: all_.at[member].set(one), states, self._init(trainable))

    def step(self, batches: Sequence[dict[str, np.ndarray]], inputs: Sequence[Inputs]) -> StepMetrics:
        """One step of every member.

        Args:
            batches: of each member, as the data gives them: [rows, length] each.
            inputs: of each member: `inputs.constants` and the `learning_rate` of its step.

        Returns:
            metrics of each member [members], or of the only one [].
        """
        assert self.compiled is not None, "compile() first"
        assert self._states is not None, "place() first"
        parts = self.config.train.gradient_accumulation_steps

        def lay(*rows: np.ndarray) -> np.ndarray:
            each = [x.reshape(parts, -1, *x.shape[1:]) for x in rows]
            return each[0] if self.members == 1 else np.stack(each)

        batch = {name: lay(*(batch[name] for batch in batches)) for name in batches[0]}
        chosen = {name: np.stack([own[name] for own in inputs]) for name in self._names}
        if self.members == 1:
            chosen = {name: value[0] for name, value in chosen.items()}
        where = replicated(self._mesh)
        self._states, measured = self.compiled(
            self._states, self.frozen, jax.device_put(batch, where), jax.device_put(chosen, where)
        )
        return measured

    def trained(self, member: int) -> tree.Tree:
        """What a member has trained so far."""
        assert self._states is not None
        if self.members == 1:
            return self._states.trainable
        return self._take(self._states.trainable, jnp.int32(member))

    def release(self) -> None:
        """Give the memory of the members' states back."""
        self._states = None


def _with_rank(config: RunConfig, rank: int | None) -> RunConfig:
    if rank is None or config.lora is None:
        return config
    return config.model_copy(update={"lora": config.lora.model_copy(update={"r": rank})})
