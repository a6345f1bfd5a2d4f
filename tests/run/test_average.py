"""`jaxlean average`: folders in, one adapter out that the base loads; what it says; what it refuses leaves nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.adapt.average import average
from jaxlean.errors import ConfigError, ModelError, RunError
from jaxlean.hub.adapter import read_adapter
from jaxlean.hub.adapter_file import PREFIX, SETTINGS, TENSORS
from jaxlean.hub.load import load
from jaxlean.run.average import REPORT, average_adapters
from jaxlean.run.merge import load_adapted

pytestmark = pytest.mark.usefixtures("small_machine")

TOKENIZER = Path(__file__).parents[2] / "configs" / "quickstart" / "base" / "tokenizer.json"
# Of one base: other ranks and alphas by layer, rsLoRA, one layer alone, some modules.
LLAMAS = [f"llama_gqa__{variant}" for variant in ("plain", "patterns", "rslora", "one_layer", "subset")]
WEIGHTS = [3.0, 1.0, 2.0, 5.0, 0.5]


@pytest.fixture(scope="module")
def llama(small_machine, golden):
    return load(golden / "llama_gqa", "float32")


@pytest.fixture
def parties(golden, tmp_path):
    """`parties("llama_gqa__plain", ...)`: copies of golden adapters, whose files may be changed."""

    def copy(*cases):
        folders = []
        for i, case in enumerate(cases):
            folders.append(tmp_path / f"party{i}")
            shutil.copytree(golden / "adapters" / case, folders[-1])
        return folders

    return copy


def changed(folder, **settings):
    file = folder / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def moved(folder, seed=1):
    """The adapter with other numbers."""
    rng, file = np.random.default_rng(seed), folder / TENSORS
    tensors = load_file(file)
    save_file({n: x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for n, x in tensors.items()}, file)
    return folder


def adds(leaves):
    """Module -> float64 [.., in, out] that an adapter adds."""
    found = {}
    for path in leaves:
        if path.endswith(".lora_a"):
            module = path.removesuffix(".lora_a")
            a, b, s = (
                np.asarray(leaves[f"{module}.{name}"], np.float64) for name in ("lora_a", "lora_b", "lora_scale")
            )
            found[module] = s[..., None, None] * (a @ b)
    return found


def mean(parties, weights):
    """Of what adapters add, in float64, whole."""
    found = {}
    for one, weight in zip(parties, weights, strict=True):
        for module, update in adds(one).items():
            found[module] = found.get(module, 0) + weight / sum(weights) * update
    return found


def read(folder, model):
    return tree.flatten(read_adapter(folder, model.names, model.params))


def close(got, wanted):
    assert got.keys() == wanted.keys()
    for module, update in wanted.items():
        np.testing.assert_allclose(got[module], update, atol=3e-6 * abs(update).max(), err_msg=module)


def test_what_it_adds_is_the_mean_of_what_they_add(llama, parties, tmp_path):
    folders, out = parties(*LLAMAS), tmp_path / "out"
    found = average_adapters(folders, out, weights="3,1,2,5,0.5")
    leaves = [read(folder, llama) for folder in folders]
    close(adds(read(out, llama)), mean(leaves, WEIGHTS))
    assert found.lost < 1e-12
    # and the model says what one with that mean in its kernels says
    tokens = np.random.default_rng(0).integers(0, 64, (2, 9))
    whole = tree.flatten(llama.params)
    for module, update in mean(leaves, WEIGHTS).items():
        whole[f"{module}.kernel"] = np.asarray(whole[f"{module}.kernel"] + update, np.float32)
    wanted = llama.with_params(tree.unflatten(whole))(tokens)
    assert abs(wanted - llama(tokens)).max() > 0.1
    np.testing.assert_allclose(load_adapted(llama, out)(tokens), wanted, atol=1e-4)
    # over the base's own names, stacks and padded ranks it is the same mean
    close(adds(tree.flatten(average([tree.unflatten(x) for x in leaves], WEIGHTS).adapter)), mean(leaves, WEIGHTS))


def test_plain_is_the_mean_of_each_matrix(llama, parties, tmp_path, capsys):
    folders, out = parties("llama_gqa__plain", "llama_gqa__plain"), tmp_path / "out"
    moved(folders[1])
    found = average_adapters(folders, out, weights="3,1", method="plain")
    one, other, got = (load_file(folder / TENSORS) for folder in (*folders, out))
    assert got.keys() == one.keys()
    for name in got:
        np.testing.assert_allclose(got[name], 0.75 * one[name] + 0.25 * other[name], rtol=1e-5, atol=1e-6, err_msg=name)
    # which adds something else than the mean, by as much as it says
    leaves = [read(folder, llama) for folder in folders]
    wanted, updates = mean(leaves, [3, 1]), adds(read(out, llama))
    off = sum(((updates[module] - update) ** 2).sum() for module, update in wanted.items())
    energy = sum((update**2).sum() for update in wanted.values())
    assert found.lost == pytest.approx(off / energy, rel=1e-3)
    assert off / energy > 0.001
    assert "what that adds is off the mean of the updates by" in capsys.readouterr().out


def test_cut_to_a_rank_it_says_what_is_lost(llama, parties, tmp_path, capsys):
    folders, out = parties("llama_gqa__plain", "llama_gqa__patterns"), tmp_path / "out"
    found = average_adapters(folders, out, rank=3)
    wanted, got = mean([read(folder, llama) for folder in folders], [1, 1]), adds(read(out, llama))
    off = {m: ((got[m] - update) ** 2).sum(axis=(-2, -1)) for m, update in wanted.items()}
    energy = {m: (update**2).sum(axis=(-2, -1)) for m, update in wanted.items()}
    assert found.lost == pytest.approx(
        sum(x.sum() for x in off.values()) / sum(x.sum() for x in energy.values()), rel=1e-4
    )
    assert found.worst[1] == pytest.approx(max((off[m] / energy[m]).max() for m in wanted), rel=1e-4)
    stated = json.loads((out / SETTINGS).read_text())
    assert (stated["r"], stated["rank_pattern"], stated["alpha_pattern"]) == (3, {}, {})
    report = json.loads((out / REPORT).read_text())
    assert (report["method"], report["rank"]) == ("exact", 3)
    assert report["worst"] == {"module": found.worst[0], "lost": found.worst[1]}
    assert found.worst[0] in capsys.readouterr().out.replace("\n", " ")
    assert [row["weight"] for row in report["adapters"]] == [0.5, 0.5]
    assert report["adapters"][0]["norm"] == pytest.approx(
        np.sqrt(sum((x**2).sum() for x in adds(read(folders[0], llama)).values()))
    )


def test_a_scale_that_all_have_stays(parties, tmp_path):
    folders = parties("llama_gqa__plain", "llama_gqa__plain")
    moved(folders[1])
    average_adapters(folders, tmp_path / "out")
    stated = json.loads((tmp_path / "out" / SETTINGS).read_text())
    assert (stated["r"], stated["lora_alpha"], stated["use_rslora"]) == (8, 16.0, False)  # of r 4, alpha 8


def test_experts_are_averaged_one_by_one(golden, parties, tmp_path):
    folders, out = parties("mixtral_two__experts", "mixtral_two__plain", "mixtral_two__experts"), tmp_path / "out"
    moved(folders[2])
    average_adapters(folders, out, weights="1,2,3")
    mixtral = load(golden / "mixtral_two", "float32")
    close(adds(read(out, mixtral)), mean([read(folder, mixtral) for folder in folders], [1, 2, 3]))


@pytest.mark.parametrize("method", ["exact", "plain"])
def test_a_head_is_averaged_and_its_labels_stay(parties, tmp_path, method):
    folders, out = parties("bert_classify__plain", "bert_classify__plain"), tmp_path / "out"
    moved(folders[1])
    (folders[1] / "config.json").write_text(json.dumps({"id2label": {"0": "no", "1": "yes"}}))
    average_adapters(folders, out, weights="1,3", method=method)
    one, other, got = (load_file(folder / TENSORS) for folder in (*folders, out))
    heads = [name for name in got if ".lora_" not in name]
    assert heads
    for name in heads:
        np.testing.assert_allclose(got[name], 0.25 * one[name] + 0.75 * other[name], rtol=1e-5, atol=1e-6)
    assert json.loads((out / SETTINGS).read_text())["modules_to_save"] == ["classifier", "score"]
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
    (folders[0] / "config.json").write_text(json.dumps({"id2label": {"0": "yes", "1": "no"}}))
    with pytest.raises(
        ModelError, match=r"(?s)for other labels, or for another order.*got:    no, yes.*wanted: yes, no"
    ):
        average_adapters(folders, tmp_path / "again")


def test_magnitudes_have_a_plain_mean_only(golden, parties, tmp_path, capsys):
    folders, out = parties("llama_gqa__dora", "llama_gqa__dora"), tmp_path / "out"
    moved(folders[1])
    with pytest.raises(ModelError, match=r"\(DoRA\) have no exact mean"):
        average_adapters(folders, out)
    assert not out.exists()
    average_adapters(folders, out, method="plain")
    one, other, got = (load_file(folder / TENSORS) for folder in (*folders, out))
    name = next(name for name in got if "magnitude" in name)
    np.testing.assert_allclose(got[name], (one[name] + other[name]) / 2, rtol=1e-6)
    assert json.loads((out / SETTINGS).read_text())["use_dora"] is True
    assert "plain: the mean of each array by itself" in capsys.readouterr().out
    assert "lost" not in json.loads((out / REPORT).read_text())


def with_rows(folder):
    """An adapter that trains rows of tokens too, and their tokenizer."""
    tensors = load_file(folder / TENSORS)
    tensors[f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"] = np.ones((2, 32), np.float32)
    save_file(tensors, folder / TENSORS)
    (folder / "tokenizer.json").write_text(TOKENIZER.read_text())
    (folder / "tokenizer_config.json").write_text("{}")
    return changed(folder, trainable_token_indices={"embed_tokens": [300, 301]})


def test_rows_of_new_tokens_are_of_the_same_words(parties, tmp_path):
    folders = parties("llama_gqa__plain", "llama_gqa__plain", "llama_gqa__plain")
    for folder in folders:
        with_rows(folder)
    average_adapters(folders[:2], tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == TOKENIZER.read_text()
    assert (tmp_path / "out" / "tokenizer_config.json").exists()
    vocabulary = json.loads(TOKENIZER.read_text())
    words = vocabulary["model"]["vocab"]
    by_id = {number: word for word, number in words.items()}
    words[by_id[301]], words[by_id[302]] = 302, 301
    (folders[2] / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ModelError) as caught:
        average_adapters(folders, tmp_path / "again")
    for text in (
        "whose new tokens are other words",
        f"got:    301: {by_id[302]!r}",
        f"{by_id[301]!r}, as in {folders[0]}",
    ):
        assert text in str(caught.value)
    changed(folders[2], trainable_token_indices={"embed_tokens": [300, 302]})
    with pytest.raises(ModelError, match="rows of different tokens"):
        average_adapters(folders, tmp_path / "again")


@pytest.fixture
def runs(golden, tmp_path):
    """Two output_dirs of finished runs, as far as they are looked at."""
    folders = []
    for i, tokens in enumerate((300, 100)):
        folders.append(tmp_path / f"run{i}")
        shutil.copytree(golden / "adapters" / "llama_gqa__plain", folders[-1] / "adapter")
        (folders[-1] / "summary.json").write_text(json.dumps({"tokens": tokens}))
        (folders[-1] / "config.yaml").write_text("seed: 0\n")
    moved(folders[1] / "adapter")
    return folders


def test_runs_count_as_many_tokens_as_they_trained_on(runs, llama, tmp_path):
    out = tmp_path / "out"
    # a run, and the adapter in it: of both its summary is found
    average_adapters([runs[0], runs[1] / "adapter"], out, weights="tokens")
    close(adds(read(out, llama)), mean([read(run / "adapter", llama) for run in runs], [3, 1]))
    (runs[1] / "summary.json").write_text(json.dumps({"tokens": None}))
    with pytest.raises(RunError, match=r"(?s)--weights tokens: the run says of none.*tokens None"):
        average_adapters(runs, tmp_path / "again", weights="tokens")
    (runs[1] / "summary.json").unlink()
    with pytest.raises(RunError, match=r"(?s)no summary.json of a run.*run1/summary.json.*--weights 3,1,2"):
        average_adapters(runs, tmp_path / "again", weights="tokens")


def test_a_run_that_is_going_on_has_no_adapter_yet(runs, tmp_path):
    from jaxlean.run.lock import FolderLock

    with FolderLock(runs[0]) as lock:
        lock.acquire()
        with pytest.raises(RunError, match="another process"):
            average_adapters(runs, tmp_path / "out")


def test_a_run_of_a_whole_model_is_no_adapter(runs, tmp_path):
    (runs[1] / "adapter").rename(runs[1] / "model")
    (runs[1] / "model" / SETTINGS).unlink()
    with pytest.raises(RunError, match="the run trained a whole model, and no adapter"):
        average_adapters(runs, tmp_path / "out")
    with pytest.raises(ModelError, match="no such adapter folder"):
        average_adapters([runs[0], tmp_path / "nowhere"], tmp_path / "out")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("3,x", "--weights are numbers with commas between them"),
        ("1,2,3", "not one number for each adapter"),
        ("1,0", "a weight is a positive number"),
    ],
)
def test_weights_that_are_none(runs, tmp_path, weights, words):
    with pytest.raises(ConfigError, match=words):
        average_adapters(runs, tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_an_adapter_counts_once(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)an adapter is given twice.*run0/adapter.*it is .*run0\n"):
        average_adapters([runs[0], runs[1], runs[0] / "adapter"], tmp_path / "out")


def test_bases_of_other_names_and_other_modules_are_noted(parties, tmp_path, capsys):
    folders, out = parties("llama_gqa__rslora", "llama_gqa__one_layer"), tmp_path / "out"
    changed(folders[1], base_model_name_or_path="/theirs/llama")
    average_adapters(folders, out)
    said = capsys.readouterr().out
    assert "name their base differently (llama_gqa, /theirs/llama); the result names llama_gqa" in said
    assert f"note: {folders[0]} shares no module with the others" in said
    assert json.loads((out / SETTINGS).read_text())["base_model_name_or_path"] == "llama_gqa"
    average_adapters(folders, tmp_path / "ours", base="/ours/llama")
    assert json.loads((tmp_path / "ours" / SETTINGS).read_text())["base_model_name_or_path"] == "/ours/llama"


def test_what_cannot_be_averaged_leaves_nothing(parties, tmp_path):
    folders = parties("llama_gqa__plain", "gemma_mqa__plain", "llama_gqa__plain")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ModelError, match="adapters over different bases: model"):
        average_adapters(folders[:2], tmp_path / "out")
    tensors = load_file(folders[2] / TENSORS)
    name = sorted(tensors)[0]
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, folders[2] / TENSORS)
    with pytest.raises(ModelError, match="an adapter holds what is not a number"):
        average_adapters(folders[::2], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(RunError, match="the output folder is not empty"):
        average_adapters(folders[:1], folders[1])


def test_one_alone_is_cut_to_a_lower_rank(llama, parties, tmp_path):
    (folder,) = parties("llama_gqa__plain")
    found = average_adapters([folder], tmp_path / "out", rank=2)
    one, got = adds(read(folder, llama)), adds(read(tmp_path / "out", llama))
    for module, update in one.items():
        u, s, vt = np.linalg.svd(update)
        wanted = (u[..., :2] * s[..., None, :2]) @ vt[..., :2, :]
        np.testing.assert_allclose(got[module], wanted, atol=3e-6 * abs(update).max())
    assert 0 < found.lost < 1


def test_merged_it_is_the_mean_of_the_merged(llama, parties, tmp_path):
    folders = parties("llama_gqa__plain", "llama_gqa__subset")
    average_adapters(folders, tmp_path / "out")
    merged = [tree.flatten(lora.merge(load_adapted(llama, folder).params)) for folder in (*folders, tmp_path / "out")]
    for path, leaf in merged[2].items():
        np.testing.assert_allclose(leaf, (merged[0][path] + merged[1][path]) / 2, atol=2e-6, err_msg=path)
