"""Encoders of text: what AutoModel gives, and heads that classify a row and that tag each token. Rows may be padded."""

from typing import Any

from cases.case import Case, rope, two_ropes

HIDDEN, CLASSIFY, TAG = "AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
LABELS = {"num_labels": 3}

BERT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "layer_norm_eps": 1e-12,
}
# A bias of the keys adds the same to all scores of a query.
KEY = ("key.bias",)
BERT_CASES = [
    # Names without `bert.`, as sentence encoders are saved; position numbers are in old files.
    Case(
        "bert_sentence",
        {"layer_norm_eps": 0.1, "num_hidden_layers": 3},
        matters=[{"layer_norm_eps": 1e-12}, {"hidden_act": "relu"}],
        base=BERT,
        head=HIDDEN,
        leftovers=True,
        mute=(*KEY, "pooler.dense.weight", "pooler.dense.bias"),
        lengths=(24, 15),
        segments=True,
    ),
    # google-bert/bert-base-uncased: the heads of its pretraining, and norms with gamma and beta.
    Case(
        "bert_old",
        base=BERT,
        head=HIDDEN,
        leftovers=True,
        old_names=[
            ("^(?!cls)", "bert."),
            (r"LayerNorm\.weight$", "LayerNorm.gamma"),
            (r"LayerNorm\.bias$", "LayerNorm.beta"),
        ],
        mute=(*KEY, "pooler.dense.weight", "pooler.dense.bias"),
        on_file={"tie_word_embeddings": None, "dtype": None},
    ),
    Case(
        "bert_classify",
        LABELS,
        matters=[{"hidden_act": "relu"}],
        base=BERT,
        head=CLASSIFY,
        mute=KEY,
        gradients=(
            "bert.embeddings.position_embeddings.weight",
            "bert.embeddings.token_type_embeddings.weight",
            "bert.embeddings.LayerNorm.bias",
            "bert.encoder.layer.0.attention.self.value.bias",
            "bert.encoder.layer.1.attention.output.LayerNorm.weight",
            "bert.encoder.layer.1.output.dense.weight",
            "bert.pooler.dense.weight",
            "classifier.bias",
        ),
        lengths=(11, 24),
        segments=True,
    ),
    Case("bert_tag", {**LABELS, "num_attention_heads": 3, "hidden_act": "gelu_new"}, base=BERT, head=TAG, mute=KEY),
]

DISTILBERT: dict[str, Any] = {
    "vocab_size": 40,
    "dim": 24,
    "hidden_dim": 20,
    "n_layers": 2,
    "n_heads": 2,
    "max_position_embeddings": 32,
}
DISTIL_KEY = ("k_lin.bias",)
DISTILBERT_CASES = [
    Case(
        "distilbert_hidden",
        {"n_layers": 3},
        matters=[{"activation": "relu"}],
        base=DISTILBERT,
        head=HIDDEN,
        mute=DISTIL_KEY,
        lengths=(15, 24),
    ),
    Case(
        "distilbert_classify",
        LABELS,
        base=DISTILBERT,
        head=CLASSIFY,
        mute=DISTIL_KEY,
        gradients=(
            "distilbert.embeddings.position_embeddings.weight",
            "distilbert.embeddings.LayerNorm.weight",
            "distilbert.transformer.layer.0.attention.v_lin.bias",
            "distilbert.transformer.layer.0.sa_layer_norm.bias",
            "distilbert.transformer.layer.1.ffn.lin1.weight",
            "distilbert.transformer.layer.1.output_layer_norm.weight",
            "pre_classifier.weight",
        ),
        lengths=(24, 9),
    ),
    Case("distilbert_tag", {**LABELS, "n_heads": 3, "activation": "relu"}, base=DISTILBERT, head=TAG, mute=DISTIL_KEY),
]

# Positions begin behind the number of the padding token.
ROBERTA = {**BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
ROBERTA_CASES = [
    Case(
        "roberta_hidden",
        {"layer_norm_eps": 0.1},
        matters=[{"layer_norm_eps": 1e-5}, {"pad_token_id": 0}, {"hidden_act": "relu"}],
        base=ROBERTA,
        head=HIDDEN,
        mute=(*KEY, "pooler.dense.weight", "pooler.dense.bias"),
        lengths=(24, 15),
    ),
    Case(
        "roberta_classify",
        LABELS,
        base=ROBERTA,
        head=CLASSIFY,
        mute=KEY,
        gradients=(
            "roberta.embeddings.position_embeddings.weight",
            "roberta.embeddings.token_type_embeddings.weight",
            "roberta.encoder.layer.0.intermediate.dense.bias",
            "roberta.encoder.layer.1.attention.self.query.weight",
            "classifier.dense.weight",
            "classifier.out_proj.bias",
        ),
        lengths=(9, 24),
    ),
    Case("roberta_tag", {**LABELS, "num_hidden_layers": 3}, base=ROBERTA, head=TAG, mute=KEY, lengths=(24, 12)),
]

MODERNBERT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
ROPES = two_ropes(rope(theta=160000.0), rope())
# A token of padding must see a real one through its window: with nothing to see, transformers gives NaN in float64.
MODERNBERT_CASES = [
    # One layer that sees everything, two that see 4 tokens to either side, and one left over.
    Case(
        "modernbert_hidden",
        {"norm_eps": 1e-2, **ROPES},
        matters=[
            {"norm_eps": 1e-5},
            {"local_attention": 10},
            {"local_attention": 6},
            {"layer_types": ["full_attention"] * 4},
            {"layer_types": ["sliding_attention"] * 4},
            {"hidden_activation": "relu"},
            two_ropes(rope(theta=160000.0), rope(theta=160000.0)),
            two_ropes(rope(), rope()),
        ],
        base=MODERNBERT,
        head=HIDDEN,
        length=32,
        lengths=(32, 28),
    ),
    Case(
        "modernbert_classify",
        {**LABELS, **ROPES, "classifier_pooling": "cls"},
        matters=[{"classifier_pooling": "mean"}, {"classifier_activation": "relu"}],
        base=MODERNBERT,
        head=CLASSIFY,
        gradients=(
            "model.embeddings.norm.weight",
            "model.layers.0.attn.Wqkv.weight",
            "model.layers.1.attn_norm.weight",
            "model.layers.2.mlp.Wi.weight",
            "model.layers.3.mlp.Wo.weight",
            "model.final_norm.weight",
            "head.dense.weight",
            "head.norm.weight",
        ),
        lengths=(24, 21),
    ),
    Case(
        "modernbert_mean",
        {
            **LABELS,
            **ROPES,
            "classifier_pooling": "mean",
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "num_hidden_layers": 2,
        },
        matters=[{"classifier_pooling": "cls"}],
        base=MODERNBERT,
        head=CLASSIFY,
        lengths=(21, 24),
    ),
    # As answerdotai/ModernBERT-base has it: thetas and the pattern under names of their own.
    Case(
        "modernbert_tag",
        {
            **LABELS,
            **two_ropes(rope(theta=1000.0), rope(theta=100.0)),
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        matters=[two_ropes(rope(), rope(theta=100.0)), two_ropes(rope(theta=1000.0), rope()), {"layer_types": None}],
        base=MODERNBERT,
        head=TAG,
        on_file={
            "rope_parameters": None,
            "layer_types": None,
            "global_rope_theta": 1000.0,
            "local_rope_theta": 100.0,
            "global_attn_every_n_layers": 2,
            "torch_dtype": "float32",
            "dtype": None,
        },
    ),
]

CASES = [*BERT_CASES, *DISTILBERT_CASES, *ROBERTA_CASES, *MODERNBERT_CASES]
