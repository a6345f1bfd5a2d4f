"""What a job minimises, and what its evaluation says: the loss of a task, by the config and the model."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlean.config import RunConfig
from jaxlean.errors import ConfigError
from jaxlean.hub.load import Model
from jaxlean.models.layout import layout_on, layout_within
from jaxlean.run.image import image_of
from jaxlean.run.match import match_of
from jaxlean.train.classify import Judge, image_logits, judge_labels, label_logits, label_objective
from jaxlean.train.contrast import contrast_objective, judge_vectors, text_vectors
from jaxlean.train.distill import IDS, LOGS, Distilled
from jaxlean.train.loss import CROSS_ENTROPY, Criterion, Terms, chunk_budget
from jaxlean.train.match import matched_labels
from jaxlean.train.objective import Loss, objective
from jaxlean.xla.remat import Policy, scan_layers


def loss_of(
    config: RunConfig,
    model: Model,
    mesh: jax.sharding.Mesh,
    remat: Policy | None = None,
    *,
    dropout_rate: jax.Array | None = None,
) -> Loss:
    """The model's summed loss as a function of its parameters and a batch.

    With no policy it is the cross entropy alone, of rows on the whole mesh; with one it is what is trained on, of rows
    of one replica where replicas train by themselves.

    Args:
        dropout_rate: float32 [], takes the place of `lora.lora_dropout` while it trains.
    """
    rate = dropout_rate if dropout_rate is not None else config.lora.lora_dropout if config.lora is not None else 0.0
    if config.task != "generate":
        return _task_loss(config, model, mesh, remat, rate)
    if remat is None:
        budget = chunk_budget(config.train.loss_chunk_bytes, mesh.size, model.config.vocab_size)
        return objective(model.graph, model.config, logits_bytes=budget, layout=layout_on(mesh))
    alone = config.train.sync == "diloco"
    devices = mesh.size // mesh.shape["data"] if alone else mesh.size
    return objective(
        model.graph,
        model.config,
        logits_bytes=chunk_budget(config.train.loss_chunk_bytes, devices, model.config.vocab_size),
        criterion=criterion_of(config),
        beside=list(said_by_teacher(config)),
        dropout_rate=rate,
        scan=scan_layers(remat, model.config.activations),
        layout=layout_within(mesh, "data") if alone else layout_on(mesh),
        balance=_balance(config, model),
        match=match_of(config, model),
    )


def criterion_of(config: RunConfig) -> Criterion:
    """What a position costs while it is trained on: by the task alone, or by what a teacher says of it as well."""
    terms, distill = Terms(config.train.z_loss, config.train.label_smoothing_factor), config.distill
    if distill is None:
        return terms
    return Distilled(distill.divergence, distill.alpha, distill.temperature, distill.beta, terms)


def said_by_teacher(config: RunConfig) -> dict[str, tuple[int, Any]]:
    """What a batch has of the teacher: name -> (numbers of each position, dtype); nothing where there is none."""
    if config.distill is None:
        return {}
    held = jnp.dtype(config.distill.precision)
    if config.task != "generate":
        return {LOGS: (len(config.data.labels or ()), held)}
    return {IDS: (config.distill.top_k, jnp.dtype(jnp.int32)), LOGS: (config.distill.top_k + 1, held)}


def _balance(config: RunConfig, model: Model) -> float:
    """Weight of the loss that balances experts: where the config says none, as transformers would train the model."""
    wanted, experts = config.train.router_aux_loss_coef, getattr(model.config, "experts", None)
    if experts is None:
        if wanted is not None:
            raise ConfigError(
                f"{model.family.model_type} has no experts to balance", where="train.router_aux_loss_coef", got=wanted,
                fix="leave it out",
            )  # fmt: skip
        return 0.0
    if wanted is not None:
        return wanted
    return experts.aux_coef if model.hf_config.get("output_router_logits") else 0.0


def _task_loss(
    config: RunConfig, model: Model, mesh: jax.sharding.Mesh, remat: Policy | None, dropout_rate: float | jax.Array
) -> Loss:
    """`loss_of` an encoder with a head."""
    train, trains = config.train, remat is not None
    layout = layout_within(mesh, "data") if trains and train.sync == "diloco" else layout_on(mesh)
    scan = scan_layers(remat, model.config.activations) if remat is not None else jax.lax.scan
    rate = dropout_rate if trains else 0.0
    if config.task == "embed":
        vectors, contrast = text_vectors(model.graph, scan=scan, layout=layout), train.contrast
        return contrast_objective(vectors, scale=contrast.scale, symmetric=contrast.symmetric, dropout_rate=rate)
    image = image_of(model)
    if image is not None:
        logits = image_logits(model.graph, image, scan=scan, layout=layout)
    else:
        logits = label_logits(model.graph, config.task, scan=scan, layout=layout)
    match = match_of(config, model) if trains else None
    if match is not None:
        return matched_labels(
            model.graph, config.task, match, criterion=criterion_of(config), beside=list(said_by_teacher(config)),
            dropout_rate=rate, scan=scan, layout=layout,
        )  # fmt: skip
    criterion, beside = (criterion_of(config), list(said_by_teacher(config))) if trains else (CROSS_ENTROPY, [])
    return label_objective(logits, criterion=criterion, beside=beside, dropout_rate=rate)


def judge_of(config: RunConfig, model: Model, mesh: jax.sharding.Mesh) -> Judge:
    """The evaluation's loss of an encoder with a head, and what it says of each row."""
    layout = layout_on(mesh)
    if config.task == "embed":
        contrast = config.train.contrast
        vectors = text_vectors(model.graph, layout=layout)
        return judge_vectors(vectors, scale=contrast.scale, symmetric=contrast.symmetric)
    image = image_of(model)
    if image is not None:
        return judge_labels(image_logits(model.graph, image, layout=layout))
    return judge_labels(label_logits(model.graph, config.task, layout=layout))
