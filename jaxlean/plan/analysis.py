"""What can be said of a candidate before it is compiled: bytes and seconds from one trace of the step.

The step of a single sequence on a single device is traced once for each form of the base. What a mesh, a microbatch and
a policy make of it is arithmetic. Bytes come as a bound that no program can go below, which prunes, and as an estimate,
which orders; the compiler has the last word.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxlean import tree
from jaxlean.config import RunConfig
from jaxlean.plan.candidate import Candidate, is_set
from jaxlean.plan.target import Target
from jaxlean.run import predict
from jaxlean.run.job import Outline, outline
from jaxlean.train.loss import chunk_budget
from jaxlean.train.step import UPDATE
from jaxlean.xla import remat_auto
from jaxlean.xla.groups import along, ring_bytes, split
from jaxlean.xla.mesh import make_mesh, num_parts
from jaxlean.xla.precision import compute_dtype
from jaxlean.xla.remat_auto import candidates
from jaxlean.xla.work import Recomputation, count, kept_bytes, repeated

_TRACED = ("full", "none", "dots", "dots_no_batch")


@dataclass(frozen=True)
class Guess:
    """A candidate with a policy, before it is compiled.

    Args:
        candidate: with its policy.
        bound: bytes of one device that it takes at least.
        memory: bytes of one device that it should take.
        seconds: of a step, estimated.
    """

    candidate: Candidate
    bound: float
    memory: float
    seconds: float


class Analysis:
    """One form of a job's base, traced for a single sequence.

    Args:
        config: of the job, its dtype and form set.
        target: whose rates order the policies.
        rows: sequences of a step.
        length: tokens of a sequence.
    """

    def __init__(self, config: RunConfig, target: Target, device: Any, *, rows: int, length: int):
        self._config, self._target, self._rows, self._length = config, target, rows, length
        one = config.model_copy(deep=True)
        one.train.per_device_train_batch_size = one.train.gradient_accumulation_steps = 1
        one.train.sync = "step"
        for axis in ("data", "fsdp", "expert", "context", "tensor"):
            setattr(one.mesh, axis, 1)
        self.outline: Outline = outline(one, make_mesh(one.mesh, [device]), length=length)
        arguments = self.outline.arguments
        self._rates = predict.rates_of(target.machine)
        wanted = config.train.remat
        free = not is_set(config.train, "remat")
        traced = _TRACED if free else _TRACED[:1]
        traces = {policy: self.outline.build(policy).trace(*arguments).jaxpr.jaxpr for policy in traced}
        if free:
            self._policies: list[remat_auto.PolicyCost] = candidates(
                traces, self.outline.model.config.activations, self._rates
            )
        else:
            policy = tuple(wanted) if isinstance(wanted, list) else wanted
            own = self.outline.build(policy).trace(*arguments).jaxpr.jaxpr
            work, kept = count(own), kept_bytes(own)
            self._policies = [remat_auto.PolicyCost(policy, kept, self._rates.seconds(work, kept), work.total_flops)]
        # what is done once a step, however many sequences it has
        alone = traces["full"]
        with repeated(UPDATE, 0.0):
            without = count(alone)
        self._update = self._rates.seconds(count(alone), 0) - self._rates.seconds(without, 0)
        # of one layer: what a backward pass that computes everything again holds while it is in it
        sizes = Recomputation(traces["full"]).without(())[1]
        self._layer = sum(sizes.values()) / self.outline.model.config.num_layers
        self._width = compute_dtype(config.model.dtype).itemsize
        self._trainable = _sizes(self.outline.state.trainable)
        self._frozen = _sizes(self.outline.frozen)
        self._optimizer = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.outline.state.optimizer))

    def guesses(self, candidate: Candidate) -> list[Guess]:
        """The candidate with each policy that is worth a thought, fastest first; none where its mesh divides badly."""
        axes = candidate.axes
        parts = {path: num_parts(path, shape, axes) for path, (shape, _) in (self._trainable | self._frozen).items()}
        sizes = {path: size for path, (_, size) in (self._trainable | self._frozen).items()}
        local = {path: sizes[path] / number for path, number in parts.items() if number is not None}
        if len(local) < len(parts):
            return []
        if any(
            size > 1 and axis in ("fsdp", "expert", "tensor") and not self._works(axis, axes)
            for axis, size in axes.items()
        ):
            return []
        trainable = sum(local[path] for path in self._trainable)
        frozen = sum(local[path] for path in self._frozen)
        whole = sum(size for _, size in self._trainable.values()) or 1.0
        held = trainable + frozen + self._optimizer * trainable / whole
        if self._config.train.sync == "diloco":
            held += 2 * trainable  # where the replicas began, and the outer momentum
        gradients = trainable * (2 if candidate.accumulation > 1 else 1)
        tokens = candidate.microbatch * self._length / axes["context"]
        share = candidate.microbatch / axes["context"]
        narrow = 0.5 + 0.5 / axes["tensor"]  # what lies along the hidden size is not split by tensor
        budget = None
        if self._config.task == "generate":
            vocab_size = self.outline.model.config.vocab_size
            logits = tokens * vocab_size * 4 / axes["tensor"]
            budget = chunk_budget(self._config.train.loss_chunk_bytes, 1, vocab_size)
        else:  # of labels: few, and those of all positions at once
            logits = tokens * len(self._config.data.labels or []) * 4
        chunk = 2 * (logits if budget is None else min(logits, budget))
        hidden = self.outline.model.config.hidden_size
        chunk += predict.workspace(self._target.platform, hidden, tokens=round(tokens))
        gathered = self._gathered(axes)
        found = []
        for policy in self._policies:
            kept = policy.kept * share
            bound = held + gradients + kept / axes["tensor"]
            memory = (
                held + gradients + policy.spread * kept * narrow + 1.5 * self._layer * share * narrow + chunk + gathered
            )
            found.append(
                Guess(replace(candidate, remat=policy.policy), bound, memory, self._seconds(candidate, policy))
            )
        return sorted(found, key=lambda guess: guess.seconds)

    def _works(self, axis: str, axes: dict[str, int]) -> bool:
        """Whether an axis cuts anything."""
        alone = {**dict.fromkeys(axes, 1), axis: axes[axis]}
        return any((num_parts(p, shape, alone) or 1) > 1 for p, (shape, _) in (self._trainable | self._frozen).items())

    def _gathered(self, axes: dict[str, int]) -> float:
        """Bytes of parameters that a device puts together from all of `fsdp`: two layers, the largest of the rest."""
        if axes["fsdp"] == 1:
            return 0.0
        layers, rest = 0.0, 0.0
        for path, (shape, _) in (self._trainable | self._frozen).items():
            split = num_parts(path, shape, {**axes, "fsdp": 1}) or 1
            size = math.prod(shape) * self._width / split
            if path.startswith("layers.") and ".kernel" in path:
                layers += size / shape[0]
            elif path.endswith((".kernel", ".embedding")):
                rest = max(rest, size)
        return 2 * layers + rest

    def _seconds(self, candidate: Candidate, policy: remat_auto.PolicyCost) -> float:
        axes, rates, model = candidate.axes, self._rates, self.outline.model.config
        rows = self._rows
        tokens = candidate.microbatch * self._length / axes["context"]
        matrices = (self._trainable | self._frozen).items()
        kernels = sum(math.prod(shape) * self._width for path, (shape, _) in matrices if ".kernel" in path)
        weights = 3 * kernels / rates.product_bytes  # read forward, backward, and once more for the gradient
        parts = candidate.accumulation
        num = self._target.num_devices
        of_rows = policy.seconds - self._update
        computing = max(of_rows - weights, 0.2 * of_rows) * rows
        trained = sum(size for _, size in self._trainable.values()) or 1.0
        held = sum(size / (num_parts(p, shape, axes) or 1) for p, (shape, size) in self._trainable.items())
        update = self._update * held / trained  # on each device
        if self._target.platform == "cpu":  # whose devices share its cores
            computing += (weights * parts + update) * num
        else:
            computing = computing / num + weights * parts / axes["tensor"] + update
        machine, each = self._target.machine, []

        def exchange(kind: str, names: tuple[str, ...], size: float, times: float) -> None:
            group = math.prod(axes[axis] for axis in names)
            if group > 1:
                sent = split(kind, ring_bytes(kind, size, group), along(axes, names), machine.per_machine)
                each.append((sent, times))

        layers = parts * model.num_layers
        # between replicas that step by themselves next to nothing is sent
        copies = ("expert", "context") if self._config.train.sync == "diloco" else ("data", "expert", "context")
        # gradients: to the device of `fsdp` that holds the parameter, then to its copies; of small ones all are copies
        split_up, whole = 0.0, 0.0
        for path, (shape, size) in self._trainable.items():
            local = size / (num_parts(path, shape, axes) or 1)
            gathered = size / (num_parts(path, shape, {**axes, "fsdp": 1}) or 1)
            split_up, whole = (split_up + local, whole) if local < gathered else (split_up, whole + local)
        exchange("reduce-scatter", ("fsdp",), split_up / model.num_layers, layers)
        exchange("all-reduce", copies, split_up / model.num_layers, layers)
        exchange("all-reduce", ("fsdp", *copies), whole / model.num_layers, layers)
        again = 3 if policy.policy in ("full", "nested", "mlp") else 2
        exchange("all-gather", ("fsdp",), kernels / axes["tensor"] / model.num_layers / 7, 7 * again * layers)
        exchange("all-reduce", ("tensor",), tokens * model.hidden_size * self._width, 2 * again * layers)
        keys = tokens * axes["context"] * model.num_kv_heads * model.head_dim * self._width
        exchange("all-gather", ("context",), keys, 2 * (again + 1) * layers)
        return computing + predict.exchange(machine, **predict.exchanges(machine, each))


def _sizes(part: tree.Tree) -> dict[str, tuple[tuple[int, ...], float]]:
    """{path: (shape, bytes)}."""
    return {path: (tuple(x.shape), float(x.size * x.dtype.itemsize)) for path, x in tree.flatten(part).items()}
