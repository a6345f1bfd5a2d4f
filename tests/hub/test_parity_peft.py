"""The other direction: what is written here loads in PEFT and transformers, with the same logits.

Needs the [parity] extra (torch and peft); without it these tests are skipped. That adapters and models of theirs load
here is tested without torch, with the golden files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import codec, tree
from jaxlean.adapt import lora, vocabulary
from jaxlean.config import LoraSection
from jaxlean.hub.adapter import write_adapter
from jaxlean.hub.vocabulary import resized, with_rows
from jaxlean.hub.write import write_model
from jaxlean.run.average import average_adapters
from jaxlean.run.merge import load_adapted

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# PEFT 0.21 asks transformers 5.23 by a name that it deprecates. Anything else that PEFT warns of (a key it misses, say)
# stays an error.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOLERANCE = 1e-4
VARIANTS = {
    "lora": LoraSection(r=4, lora_alpha=8),
    "subset": LoraSection(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"]),
    "rslora": LoraSection(r=4, lora_alpha=4, use_rslora=True),
    "dora": LoraSection(r=4, lora_alpha=8, use_dora=True),
    "pissa": LoraSection(r=4, lora_alpha=8, init_lora_weights="pissa"),
    "pissa_rslora": LoraSection(r=4, lora_alpha=4, init_lora_weights="pissa", use_rslora=True),
}
BASES = ["llama_gqa", "mistral_window", "qwen2_tied", "qwen3_tied"]
# Names that are the end of another's (gpt2's two c_proj), and layers of some stacks only.
PARTS = {
    "attention out": LoraSection(r=4, lora_alpha=8, target_modules=r"attention\.out$"),
    "first stack": LoraSection(r=4, lora_alpha=8, target_modules=r"^layers(\.0)?\.mlp\.(up|gate_up)$"),
}
OTHERS = [
    "gemma_mqa", "gemma2_soft", "gemma3_window", "phi3_window", "olmo2_gqa", "olmo3_yarn", "smollm3_list",
    "granite_bias", "glm4_partial", "cohere_heads", "starcoder2_window", "gpt2_tied", "gptneox_parallel",
]  # fmt: skip
CHECKED = [(base, variant) for base in BASES for variant in VARIANTS]
CHECKED += [(base, variant) for base in OTHERS for variant in ("lora", *PARTS)]


def theirs(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()


def same(got, want, what):
    difference = float(np.abs(got - np.asarray(want)).max())
    print(f"{what}: {difference:.1e}")  # pytest -rP shows it
    assert difference < TOLERANCE, what


@pytest.fixture
def trained(loaded, expected):
    """(base, variant) -> (the model as after training, its adapter as it is exported, tokens)."""

    def build(base, variant):
        model, config = loaded(base), (VARIANTS | PARTS)[variant]
        modules = lora.targets(
            model.params, config.target_modules, model.names.modules(codec.kernels(tree.flatten(model.params)))
        )
        start = lora.add(model.params, modules, config, jax.random.key(0))
        rng = np.random.default_rng(0)

        def move(path, leaf):
            noise = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
            return leaf + 0.1 * noise * jnp.abs(leaf).mean() + 0.05 * noise if lora.is_adapter(path) else leaf

        params = tree.map_with_path(move, start)
        adapter, before = (tree.split(p, lambda path: ".lora_" in path)[0] for p in (params, start))
        if config.init_lora_weights == "pissa":
            adapter = lora.unprincipal(adapter, before)
        return model.with_params(params), adapter, expected(base)["tokens"]

    return build


@pytest.mark.parametrize(("base", "variant"), CHECKED)
def test_an_adapter_written_here_loads_in_peft(base, variant, golden, loaded, trained, tmp_path):
    model, adapter, tokens = trained(base, variant)
    settings = (VARIANTS | PARTS)[variant]
    write_adapter(tmp_path / "adapter", model.names, adapter, settings, base=str(golden / base))
    ours = np.asarray(model(tokens))
    assert np.abs(ours - loaded(base)(tokens)).max() > 0.1  # PEFT ignores what it does not recognise: this would show
    got = logits_of(peft.PeftModel.from_pretrained(theirs(golden / base), tmp_path / "adapter").eval(), tokens)
    same(got, ours, f"{base} {variant} in PEFT")


@pytest.mark.parametrize(
    ("base", "variant"),
    [(base, variant) for base in BASES for variant in ("lora", "dora", "pissa")] + [(base, "lora") for base in OTHERS],
)
def test_a_merged_model_loads_in_transformers(base, variant, trained, tmp_path):
    model, _, tokens = trained(base, variant)
    write_model(model.with_params(lora.merge(model.params)), tmp_path / "merged", bytes_per_file=60_000)
    got = logits_of(theirs(tmp_path / "merged"), tokens)
    same(got, model(tokens), f"{base} {variant} merged, in transformers")


# ---- rows of new tokens: an old id, and two beyond the table


@pytest.fixture
def with_tokens(loaded):
    """(base, with LoRA) -> (the model with trained rows of three tokens, the adapter, tokens with them)."""

    def build(base, lora_too):
        old = loaded(base).config.vocab_size
        model, rng = resized(loaded(base), old + 2), np.random.default_rng(1)
        leaves = tree.flatten(model.params)
        own = [leaf for leaf, (table, _) in vocabulary.TABLES.items() if table in leaves]
        scale = float(np.abs(leaves["embed.embedding"]).mean())
        hidden = model.config.hidden_size
        model = with_rows(
            model,
            np.array([5, old, old + 1], np.int32),
            {leaf: 2 * scale * rng.normal(size=(3, hidden)) for leaf in own},
        )
        params = model.params
        if lora_too:
            modules = lora.targets(
                params, ["q_proj", "down_proj"], model.names.modules(codec.kernels(tree.flatten(params)))
            )
            params = lora.add(params, modules, VARIANTS["lora"], jax.random.key(0))
            params = tree.map_with_path(lambda p, x: x + 0.05 if p.endswith("lora_b") else x, params)
        adapter = tree.split(params, lambda path: ".lora_" in path or vocabulary.is_beside(path))[0]
        tokens = np.array([[1, old, 7, old + 1, 5, 30, old, 2], [5, 5, old + 1, 11, 12, 13, old, 3]], np.int32)
        return model.with_params(params), adapter, tokens

    return build


# PEFT warns of every adapter of rows alone over a tied embedding, that the head's are copies.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning")
@pytest.mark.parametrize("lora_too", [True, False])
@pytest.mark.parametrize("base", ["llama_gqa", "qwen2_tied", "gemma_mqa", "gpt2_tied"])
def test_rows_of_tokens_load_in_peft_and_come_back(base, lora_too, golden, loaded, with_tokens, tmp_path):
    if base == "gpt2_tied" and lora_too:
        pytest.skip("its modules have other names")
    model, adapter, tokens = with_tokens(base, lora_too)
    ours = np.asarray(model(tokens))
    # the rows are read in both places, and differ from what the table holds
    assert np.abs(ours - resized(loaded(base), model.config.vocab_size)(tokens)).max() > 0.1
    settings = VARIANTS["lora"] if lora_too else None
    write_adapter(tmp_path / "adapter", model.names, adapter, settings, base=str(golden / base))
    there = theirs(golden / base)
    there.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)
    there = peft.PeftModel.from_pretrained(there, tmp_path / "adapter").eval()
    same(logits_of(there, tokens), ours, f"{base} rows{' and LoRA' * lora_too} in PEFT")
    # and what PEFT then saves is read here, whole tables beside the rows or not
    for whole in (True, False):
        there.save_pretrained(tmp_path / "theirs", save_embedding_layers=whole)
        back = load_adapted(loaded(base), tmp_path / "theirs")
        same(back(tokens), ours, f"{base} rows{' and LoRA' * lora_too} back from PEFT")


@pytest.mark.parametrize("base", ["llama_gqa", "qwen2_tied", "gemma_mqa"])
def test_a_model_with_merged_rows_loads_in_transformers(base, with_tokens, tmp_path):
    model, _, tokens = with_tokens(base, False)
    write_model(model.with_params(vocabulary.merge(model.params)), tmp_path / "merged")
    there = theirs(tmp_path / "merged")
    assert there.config.vocab_size == model.config.vocab_size
    same(logits_of(there, tokens), model(tokens), f"{base} merged rows, in transformers")


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning")
def test_peft_trains_the_embedding_alone_of_an_untied_model(golden, loaded, tmp_path):
    there = theirs(golden / "llama_gqa")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 6], task_type="CAUSAL_LM")
    there = peft.get_peft_model(there, config).eval()
    with torch.no_grad():
        for name, parameter in there.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(1.0)
    there.save_pretrained(tmp_path / "theirs")
    tokens = np.array([[1, 5, 7, 6, 8]], np.int32)
    ours = load_adapted(loaded("llama_gqa"), tmp_path / "theirs")(tokens)
    assert np.abs(np.asarray(ours) - loaded("llama_gqa")(tokens)).max() > 0.1
    same(logits_of(there, tokens), ours, "PEFT's rows of the embedding alone")


# PEFT says so of its own patterns for parameters, which it goes by all the same.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize(
    "cases", [("llama_gqa__plain", "llama_gqa__patterns"), ("mixtral_two__plain", "mixtral_two__experts")]
)
def test_an_averaged_adapter_adds_there_the_mean_of_what_they_add_there(cases, golden, tmp_path):
    """And the same as PEFT's own `add_weighted_adapter`, where that takes them (it takes no experts)."""
    folders, weights = [golden / "adapters" / case for case in cases], [0.75, 0.25]
    average_adapters(folders, tmp_path / "exact", weights="3,1")
    average_adapters(folders, tmp_path / "cut", weights="3,1", rank=3)
    updates = {}
    for name, folder in zip("abxc", (*folders, tmp_path / "exact", tmp_path / "cut"), strict=True):
        model = peft.PeftModel.from_pretrained(theirs(golden / cases[0].split("__")[0]), folder)
        updates[name] = {}
        for key, module in model.named_modules():
            if "default" in getattr(module, "lora_A", {}):
                # nested wrappers of experts are told by their parameter
                key = key.replace(".base_layer", "") + getattr(module, "parameter_name", "")
                updates[name][key] = module.get_delta_weight("default").double()
    wanted = {
        key: sum(w * updates[name][key] for w, name in zip(weights, "ab", strict=True) if key in updates[name])
        for key in updates["a"].keys() | updates["b"].keys()
    }
    assert updates["x"].keys() == wanted.keys()
    for key, update in wanted.items():
        assert float((updates["x"][key] - update).norm() / update.norm()) < 1e-6, key
    if "experts" in cases[1]:
        return
    both = peft.PeftModel.from_pretrained(theirs(golden / "llama_gqa"), folders[0], adapter_name="a")
    both.load_adapter(folders[1], adapter_name="b")
    both.add_weighted_adapter(["a", "b"], weights, "cat", combination_type="cat")
    both.add_weighted_adapter(["a", "b"], weights, "svd", combination_type="svd", svd_rank=3)
    for key, module in both.named_modules():
        if "cat" in getattr(module, "lora_A", {}):
            for name, ours in (("cat", "x"), ("svd", "c")):
                update = module.get_delta_weight(name).double()
                assert float((updates[ours][key] - update).norm() / update.norm()) < 1e-5, (name, key)
