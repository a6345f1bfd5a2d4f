"""What a run that distils does beside training: it asks the teacher, or reads what the teacher said before.

The student's step is the same either way: its batch holds, beside the tokens, what the teacher expects at each place.
Asked while it trains, the teacher is a second program, which a batch goes through first. With `distill.cache` it is
asked about each row once, before the first step, and then let go of (`run/teacher_cache.py`).
"""

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxlean import fingerprint, tree
from jaxlean.config import RunConfig
from jaxlean.data.batches import Batches, sequence_length
from jaxlean.data.epochs import Batch, Mix, Steps, assemble
from jaxlean.data.tokenize import Ragged, Tokens
from jaxlean.errors import ConfigError, DataError
from jaxlean.hub.load import Model
from jaxlean.run.evaluate import Evaluator, evaluator_of
from jaxlean.run.generate import Sampling, generate, stop_ids
from jaxlean.run.peers import Peers
from jaxlean.run.quality import TaskEvaluator
from jaxlean.run.rows import OwnRows
from jaxlean.run.summary import Evaluation
from jaxlean.run.teacher import Teacher
from jaxlean.run.teacher_cache import Said, TeacherCache, places, shards
from jaxlean.train.distill import IDS, LOGS
from jaxlean.xla.mesh import batch_sharding, num_batch_shards


class Lessons:
    """The teacher's part in a run.

    Args:
        config: resolved, with a `distill` section.
        student: the model that trains; its tokenizer cuts the texts.
        mesh: the student's.
        own: puts batches onto it.
        peers: of the run.
        batches: of the run.
        say: prints a line.

    Raises:
        UserError: as of `Teacher` and `TeacherCache`; several processes. Nothing has been written.
    """

    def __init__(
        self,
        config: RunConfig,
        student: Model,
        mesh: jax.sharding.Mesh,
        own: OwnRows,
        peers: Peers,
        batches: Batches,
        *,
        say: Callable[[str], None],
    ):
        assert config.distill is not None
        self._config, self._distill, self._tokenizer = config, config.distill, student.tokenizer
        self._mesh, self._own, self._say = mesh, own, say
        if peers.num > 1:
            raise ConfigError("distill runs in one process", got=f"{peers.num}", fix="distributed.enabled=false")
        self._batches, self._student = batches, student
        if self._distill.on_policy:
            check_prompts(batches)
        self.teacher = Teacher(config, student, mesh)
        self.cache = self._cache() if self._distill.cache is not None else None
        own_mesh = "" if self.teacher.mesh is mesh else f" on {self.teacher.mesh.size} devices of its own"
        how = f", kept in {self._distill.cache}" if self.cache is not None else ", asked at every step"
        told = "all labels" if config.task != "generate" else f"the {self.teacher.teaching.k} likeliest tokens"
        say(f"teacher: {self._distill.teacher.path}{own_mesh}; {told} of each place{how}")

    def _cache(self) -> TeacherCache:
        assert self._distill.cache is not None
        section, teaching = self._distill.teacher, self.teacher.teaching
        labels = self._config.data.labels if self._config.task != "generate" else None
        whose = {
            "teacher": fingerprint.of_model(self.teacher.folder),
            "adapter": None if section.adapter is None else fingerprint.of_model(Path(section.adapter)),
            "dtype": np.dtype(self.teacher.dtype).name,
            "quantization": section.quantization,
            "tokens": teaching.vocab_size,
            "task": self._config.task,
            "labels": labels,
            "temperature": teaching.temperature,
            "top_k": None if labels is not None else teaching.k,
            "precision": self._distill.precision,
        }
        ids, logs = (0, teaching.k) if labels is not None else (teaching.k, teaching.k + 1)
        folder = Path(self._distill.cache)
        return TeacherCache(
            folder, whose, num_ids=ids, num_logs=logs, vocab_size=teaching.vocab_size, dtype=teaching.dtype
        )

    def prepare(self, evaluator: Evaluator | TaskEvaluator | None) -> Evaluation | None:
        """Have the teacher say what is to be kept, which batches hold from now on, and how good it is itself.

        Args:
            evaluator: of the run, if it has held-out rows.

        Returns:
            the teacher's quality on them.
        """
        if self.cache is not None:
            steps = self._batches.steps
            assert steps is not None, "the config has no stream beside a cache"
            self._fill(self.cache, steps)
            cache, length = self.cache, steps.length
            steps.beside = lambda rows: cache.beside(rows, length)
        found = self._quality(evaluator) if evaluator is not None else None
        if self.cache is not None and not self._distill.on_policy:
            self.teacher.forget()
        return found

    def on_devices(self, batch: Batch, step: int, trainable: tree.Tree, frozen: tree.Tree) -> dict[str, jax.Array]:
        """A step's batch where the student has it, with what the teacher says of it.

        Args:
            batch: as the run's batches are.
            step: how many are done, which decides whether the student writes this one itself, and what it draws.
            trainable, frozen: the student as it is now.
        """
        draw = np.random.default_rng([self._config.seed, step, 0x0E])
        if draw.random() < self._distill.on_policy:
            batch = self._written(batch, int(draw.integers(2**31)), tree.merge(trainable, frozen))
        elif self.cache is not None:
            return self._own.on_devices(batch)
        placed = self._own.on_devices(batch)
        parts = self._config.train.gradient_accumulation_steps
        said = self.teacher.says({name: x.reshape(parts, -1, x.shape[-1]) for name, x in batch.items()})
        where = batch_sharding(self._mesh, leading=1)
        return placed | {name: jax.device_put(x, where) for name, x in said.items()}

    def _written(self, batch: Batch, seed: int, params: tree.Tree) -> Batch:
        """The first prompt of each row, with what the student makes of it (GKD, arXiv 2306.13649)."""
        prompts, ends = prompts_of(batch)
        model = self._student.with_params(params)
        most = self._distill.on_policy_max_new_tokens
        new = generate(
            model, [prompt for prompt in prompts if len(prompt)], max_new_tokens=most,
            stop=stop_ids(model, self._tokenizer), batch_size=len(prompts),
            sampling=Sampling(self._distill.on_policy_temperature, seed=seed),
        )  # fmt: skip
        every = iter(new)
        said = [next(every) if len(prompt) else [] for prompt in prompts]
        # what was ended is learned to end, as in the rows
        completions = [c if len(c) == most or not len(p) else [*c, end]
                       for p, c, end in zip(prompts, said, ends, strict=True)]  # fmt: skip
        return laid_out(prompts, completions, batch["tokens"].shape[1])

    # ---- once a row

    def _fill(self, cache: TeacherCache, steps: Steps) -> None:
        examples = steps.examples
        # a run of few steps does not come to all rows
        used = np.unique(np.concatenate([steps.row(i) for i in range(len(steps) * steps.rows)]))
        missing = cache.of(examples, used)
        if not len(missing):
            self._say(f"teacher: all {len(used):,} rows are in {cache.folder}")
            return
        needed = cache.missing_bytes(missing)
        self._say(
            f"teacher: to be asked about {len(missing):,} of {len(used):,} rows; {needed / 1e6:,.1f} MB on disk, "
            f"{cache.place_bytes} bytes a place"
        )
        cache.check_space(needed)
        start = time.perf_counter()
        for rows in shards(missing, self._distill.cache_shard):
            cache.add(rows, self._asked(examples, rows))
        self._say(f"teacher: asked in {time.perf_counter() - start:.1f} s")

    def _asked(self, examples: Ragged, chosen: np.ndarray) -> Iterator[Said]:
        """What the teacher says of each of these rows, in order."""
        part = Ragged.join([_one(examples, int(i)) for i in chosen])
        mesh, data = self.teacher.mesh, self._config.data
        rows = self._config.train.per_device_train_batch_size * num_batch_shards(mesh)
        length = sequence_length(examples, data.packing, max(data.max_length, int(examples.lengths.max())))
        mix = Mix([len(part)], None, 0, shuffle=False)
        steps = Steps(part, mix, rows=rows, length=length, packing=data.packing)
        waiting: dict[int, Said] = {}
        at = 0
        for number in range(len(steps)):
            said = self.teacher.says({name: x[None] for name, x in steps[number].items()})
            found = {name: np.asarray(x)[0] for name, x in said.items()}
            for row in range(rows):
                start = 0
                for i in steps.row(number * rows + row):
                    here = start + places(part, int(i))
                    waiting[int(i)] = {name: found[name][row, here] for name in (IDS, LOGS) if name in found}
                    start += int(part.lengths[int(i)])
            while at in waiting:  # packing keeps the order only nearly
                yield waiting.pop(at)
                at += 1

    # ---- how good it is

    def _quality(self, evaluator: Evaluator | TaskEvaluator) -> Evaluation:
        examples = evaluator.examples
        key = json.dumps(self._config.eval.model_dump(mode="json"), sort_keys=True).encode()
        if examples is not None:
            key += np.asarray([zlib.crc32(x.tobytes()) for x in (examples.input_ids, examples.loss_mask)]).tobytes()
            key += b"".join(value.tobytes() for value in examples.more.values())
        name = f"{zlib.crc32(key):08x}"
        if self.cache is not None and (known := self.cache.quality(name)) is not None:
            return known
        model = self.teacher.model
        whole = evaluator_of(self._config, model, self._tokenizer, self.teacher.mesh)
        found = whole(model, {}, model.params)
        if self.cache is not None:
            self.cache.keep_quality(name, found)
        return found


def prompts_of(batch: Batch) -> tuple[list[list[int]], list[int]]:
    """(what stands before the first learned token of each row's first example, the token that ends that example)."""
    prompts, ends = [], []
    for tokens, mask, segments in zip(batch["tokens"], batch["loss_mask"], batch["segments"], strict=True):
        learned = np.flatnonzero(mask & (segments == 1))
        prompts.append(tokens[: learned[0]].tolist() if len(learned) else [])
        ends.append(int(tokens[learned[-1]]) if len(learned) else 0)
    return prompts, ends


def laid_out(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], length: int) -> Batch:
    """A batch of one example a row, as of `data.epochs.assemble`; what is longer than a row is cut off."""
    made = [
        Tokens(np.asarray([*p, *c], np.int32)[:length], (np.arange(len(p) + len(c)) >= len(p))[:length])
        for p, c in zip(prompts, completions, strict=True)
    ]
    return assemble(Ragged.of(made), [np.asarray([i] if len(one.input_ids) else [], int) for i, one in enumerate(made)],
                    length)  # fmt: skip


def check_prompts(batches: Batches) -> None:
    """Refuse rows that the student could not complete.

    Raises:
        DataError: a row's first learned token has nothing, or a single token, before it.
    """
    assert batches.steps is not None, "the config has no stream beside this"
    examples = batches.steps.examples
    for i in range(len(examples)):
        if np.flatnonzero(examples[i][1])[0] < 2:
            raise DataError(
                "distill.on_policy completes prompts, and a row has none", where=f"row {i + 1} of those that train",
                wanted="rows of prompt and completion, or conversations", fix="distill.on_policy=0",
            )  # fmt: skip


def _one(examples: Ragged, i: int) -> Ragged:
    tokens, mask = examples[i]
    return Ragged(tokens, mask, np.asarray([0, len(tokens)], np.int64), examples.more_of(i))
