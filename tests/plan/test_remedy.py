"""The one setting that makes a config fit."""

import jax

from jaxlean.config import build
from jaxlean.config.read import told
from jaxlean.plan.candidate import as_written
from jaxlean.plan.compiled import compile_candidate
from jaxlean.plan.remedy import remedy
from jaxlean.plan.target import parse

LENGTH = 128


def compiled(config, candidate, target):
    return compile_candidate(config, target, jax.devices()[:1], candidate, length=LENGTH, cache=False)


def mended(config, share, hardware):
    """(what the remedy says, bytes there are), on a device that has this share of what the config needs."""
    written = as_written(config, 1, rows=8, dtype="float32")
    needed = compiled(config, written, parse("cpu")).memory
    target = parse("cpu", hardware(share * needed))
    says = remedy(
        config, target, jax.devices()[0], written, rows=8, length=LENGTH,
        compile_as=lambda config, candidate: compiled(config, candidate, target),
    )  # fmt: skip
    return says, target.capacity


def test_typed_into_the_config_it_fits(job, hardware):
    config = job(train={"remat": "none"})
    says, capacity = mended(config, 0.6, hardware)
    settings = dict(word.split("=") for word in says.partition(" does: ")[0].split())
    values = told(config)
    for key, value in settings.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    changed = build(values)
    assert changed != config
    written = as_written(changed, 1, rows=8, dtype="float32")
    assert compiled(changed, written, parse("cpu")).memory <= capacity


def test_where_no_one_setting_is_enough_it_says_nothing(job, hardware):
    assert mended(job(lora=None, train={"remat": "none"}), 0.01, hardware)[0] == ""
