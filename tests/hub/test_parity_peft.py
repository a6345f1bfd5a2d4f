"""The other direction: what is written here loads in PEFT and transformers, with the same logits.

Needs the [parity] extra (torch and peft); without it these tests are skipped. That adapters and models of theirs load
here is tested without torch, with the golden files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import codec, tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection
from jaxlean.hub.adapter import write_adapter
from jaxlean.hub.write import write_model

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
