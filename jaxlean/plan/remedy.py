"""What to change in a config that does not fit: one setting, the one that costs least time.

A plan chooses freely what the config leaves open. The config as it is written may still be too large for a target, and
its owner wants to know by how much, and the cut that mends it with everything else as it was.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from jaxlean.config import RunConfig
from jaxlean.plan.analysis import Analysis, Guess
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.compiled import Compiled
from jaxlean.plan.target import Target
from jaxlean.run.job import is_base_quantized
from jaxlean.xla.remat_auto import say_bytes

# Compilations that a remedy may cost.
_TRIES = 2


def remedy(
    config: RunConfig,
    target: Target,
    device: Any,
    written: Candidate,
    *,
    rows: int,
    length: int,
    compile_as: Callable[[RunConfig, Candidate], Compiled],
) -> str:
    """The setting that makes a config fit, compiled to be sure; in words, empty where no one setting does.

    Args:
        config: of the job.
        target: that it does not fit on.
        device: of the target.
        written: the config's own candidate.
        rows: sequences of a step.
        length: tokens of a sequence.
        compile_as: compiles a candidate of a config.
    """
    assert target.capacity is not None
    found = list(_changes(config, target, device, written, rows=rows, length=length))
    fitting = sorted((c for c in found if c[2].memory <= target.capacity), key=lambda c: c[2].seconds)
    # by estimate nothing fits: the smallest has the last word
    for setting, changed, guess in (fitting or sorted(found, key=lambda c: c[2].memory))[:_TRIES]:
        made = compile_as(changed, guess.candidate)
        if made.fits and made.memory <= target.capacity:
            return f"{setting} does: {say_bytes(made.memory)}, {made.step_seconds:.3g} s a step"
    return ""


def _changes(
    config: RunConfig, target: Target, device: Any, written: Candidate, *, rows: int, length: int
) -> Iterator[tuple[str, RunConfig, Guess]]:
    """(the setting as it is typed, the config with it, what it is guessed to take), each with one thing changed."""

    def open_to_remat(config: RunConfig) -> RunConfig:
        changed = config.model_copy(deep=True)
        changed.train.remat = "auto"
        return changed

    def guesses(config: RunConfig, candidate: Candidate) -> list[Guess]:
        return Analysis(config, target, device, rows=rows, length=length).guesses(candidate)

    own = Analysis(config, target, device, rows=rows, length=length)
    for guess in guesses(open_to_remat(config), replace(written, remat=None)):
        if isinstance(guess.candidate.remat, str) and guess.candidate.remat != written.remat:
            yield f"train.remat={guess.candidate.remat}", config, guess
    for microbatch in (n for n in range(written.microbatch - 1, 0, -1) if written.microbatch % n == 0):
        parts = written.accumulation * (written.microbatch // microbatch)
        smaller = replace(written, microbatch=microbatch, accumulation=parts)
        name = f"train.per_device_train_batch_size={microbatch} train.gradient_accumulation_steps={parts}"
        yield from ((name, config, guess) for guess in own.guesses(smaller) if guess.candidate == smaller)
    if config.model.attention == "plain":
        changed = config.model_copy(deep=True)
        changed.model.attention = "block"
        yield from (
            ("model.attention=auto", changed, guess)
            for guess in guesses(changed, written)
            if guess.candidate == written
        )
    plain = written.quantization == "none" and not is_base_quantized(config)
    if config.lora is not None and config.model.architecture is None and plain:
        for form in ("int8", "nf4"):
            changed = config.model_copy(deep=True)
            changed.model.quantization = form
            smaller = replace(written, quantization=form)
            yield from (
                (f"model.quantization={form}", changed, guess)
                for guess in guesses(changed, smaller)
                if guess.candidate == smaller
            )
