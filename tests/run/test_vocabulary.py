"""New tokens in a run: found or named, their rows trained alone or beside LoRA, resumed, read back, merged."""

import json
from io import StringIO

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxlean import tree
from jaxlean.adapt import vocabulary
from jaxlean.data.terms import Term
from jaxlean.errors import UserError
from jaxlean.hub.load import initial, load, load_tokenizer
from jaxlean.hub.write import write_model
from jaxlean.run import vocabulary as module
from jaxlean.run.evaluate import evaluate
from jaxlean.run.finetune import finetune
from jaxlean.run.generate import encode_prompt, generate
from jaxlean.run.job import outline
from jaxlean.run.merge import load_adapted, merge
from jaxlean.run.vocabulary import Found, grown, with_new_tokens
from jaxlean.xla.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("small_machine")
TERMS, FEW = "model.new_tokens=[chargeback, estoppel]", "model.new_tokens_vectors=few.vec"


@pytest.fixture
def with_terms(tiny_rows, tmp_path, tiny_run):
    """`tiny_run` over rows that say `chargeback` and `estoppel`."""
    rows = [json.loads(line) for line in tiny_rows.read_text().splitlines()]
    words = ["chargeback", "estoppel"]
    for i, row in enumerate(rows):
        row["completion"] += f" {words[i % 2]}"
    file = tmp_path / "terms.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lambda *more: tiny_run(f"data.train={file}", f"data.eval={file}", *more)


def test_terms_are_found_in_the_data(with_terms):
    config, found = with_new_tokens(with_terms("model.new_tokens=auto", "model.new_tokens_min_length=8"))
    assert sorted(config.model.new_tokens) == ["chargeback", "estoppel"]
    assert [term.times for term in found.terms] == [12, 12]
    saved = sum(term.saved for term in found.terms)
    assert found.saving.before - found.saving.after == saved
    again, known = with_new_tokens(config)  # as a resumed run and a plan do
    assert again.model.new_tokens == config.model.new_tokens
    assert known.num == 2


def test_terms_are_named_in_a_file_and_what_is_known_is_told(with_terms, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("estoppel\n\nhouse\nred\n")
    config, found = with_new_tokens(with_terms(f"model.new_tokens={file}"))
    assert config.model.new_tokens == ["estoppel"]
    assert found.known == ["house", "red"]


def shown(found):
    console = Console(width=200, record=True, file=StringIO())
    console.print(found)
    return console.export_text()


def test_terms_that_are_named_are_counted_in_the_data(with_terms):
    config = with_terms("model.new_tokens=[reversal, chargeback]")
    assert with_new_tokens(config)[1].saving is None
    found = with_new_tokens(config, counted=True)[1]
    assert [(term.text, term.times) for term in found.terms] == [("chargeback", 12), ("reversal", 0)]
    assert found.saving.before - found.saving.after == found.terms[0].saved > 0
    assert found.unseen == ["reversal"]
    assert "never in the training texts as they are cut, so that nothing of them is learned: reversal" in shown(found)


def test_no_new_token_stands_in_the_chat_template_of_the_config(with_terms, tiny_base, tmp_path):
    template = load_tokenizer(str(tiny_base)).chat_template
    (tmp_path / "own.jinja").write_text(template.replace("'<|im_start|>' +", "'<|im_start|>estoppel: ' +"))
    config = with_terms(TERMS, f"model.chat_template={tmp_path / 'own.jinja'}")
    model = load(tiny_base, "float32")
    for attempt in (with_new_tokens, lambda config: grown(config, model)):
        with pytest.raises(UserError, match="stands in the chat template"):
            attempt(config)
    # the tokenizer's own counts for nothing where the config has another one
    other = load(tiny_base, "float32")
    other.tokenizer.chat_template = (tmp_path / "own.jinja").read_text()
    (tmp_path / "own.jinja").write_text(template)
    assert len(grown(config, other).tokenizer) == 2050


def test_a_term_that_is_not_known_starts_at_the_mean_of_all(with_terms, tiny_base):
    words = {word: i for i, word in enumerate(["[UNK]", "the", "charge", "##back"])}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model, said = load(tiny_base, "float32"), []
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    config = with_terms("model.new_tokens=[straße, chargeback, charge-x]")
    rows = np.asarray(grown(config, model, say=said.append).params["new_tokens"]["embed"])
    table = np.asarray(model.params["embed"]["embedding"])
    np.testing.assert_allclose(rows, [table[:4].mean(axis=0), table[2:4].mean(axis=0), table[2]], rtol=1e-5, atol=1e-7)
    assert said == ["new tokens: no piece of 1 is known; they start at the mean of all: straße"]


def test_a_term_may_look_like_markup():
    console = Console(file=StringIO(), width=80)
    console.print(Found(2, [Term("[/SQL]", 5, 3), Term("[bold]", 4, 3)], [], [], None))
    assert "[/SQL]" in console.file.getvalue()
    assert "[bold]" in console.file.getvalue()


def test_without_new_tokens_nothing_is_read(tiny_run):
    config = tiny_run("model.path=/nowhere")
    assert with_new_tokens(config) == (config, None)


def test_a_model_starts_with_the_mean_of_the_pieces(with_terms, tiny_base):
    config = with_terms(TERMS)
    model = grown(config, load(tiny_base, "float32"))
    old = load(tiny_base, "float32")
    leaves, table = tree.flatten(model.params), np.asarray(old.params["embed"]["embedding"])
    assert leaves["new_tokens.ids"].tolist() == [2048, 2049]
    assert model.config.vocab_size == model.hf_config["vocab_size"] == 2050
    pieces = old.tokenizer("chargeback", add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(leaves["new_tokens.embed"][0], table[pieces].mean(axis=0), rtol=1e-6)
    assert model.tokenizer.convert_ids_to_tokens([2048, 2049]) == ["chargeback", "estoppel"]
    assert len(old.tokenizer) == 2048
    # what says nothing new is said as before
    tokens = np.array([[5, 9, 700, 3]])
    np.testing.assert_allclose(model(tokens)[..., :2048], old(tokens), atol=1e-5)


def test_a_table_that_is_no_longer_split_is_told(with_terms, tiny_base, monkeypatch):
    said, model = [], load(tiny_base, "float32")
    monkeypatch.setattr(vocabulary, "split_by", lambda params: {"tensor": 8, "fsdp": 2})
    grown(with_terms(TERMS), model, say=said.append)
    assert said == [
        "new tokens: tensor=8 does not divide a table of 2,050 tokens, which will be whole on each device; "
        "6 new tokens more, or 2 fewer, would keep it split"
    ]


def test_every_start_is_another_one(with_terms, tiny_base, tmp_path):
    rng, base = np.random.default_rng(0), load(tiny_base, "float32")
    from jaxlean.data.terms import words_of

    words = [*words_of(base.tokenizer).values(), "chargeback", "estoppel"]
    table = rng.normal(size=(len(words), 8))
    table[-1] = 0  # as some files have words that they do not know
    np.savez(tmp_path / "v.npz", words=np.array(words), vectors=table)
    vectors = f"model.new_tokens_vectors={tmp_path / 'v.npz'}"
    found, said = {}, []
    for start in (["mean"], ["random"], ["focus"], ["focus", vectors], ["procrustes", vectors]):
        config = with_terms(TERMS, f"model.new_tokens_init={start[0]}", *start[1:])
        found[" ".join(start)] = np.asarray(grown(config, base, say=said.append).params["new_tokens"]["embed"])
    firsts = [rows[0] for rows in found.values()]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(firsts) for b in firsts[:i])
    # the second one has no vector in the file, and starts at the mean
    np.testing.assert_array_equal(found[f"procrustes {vectors}"][1], found["mean"][1])
    assert said == [
        f"new tokens: {how} starts 1 of 2; 1 have no vector, and start at the mean of their pieces: estoppel"
        for how in ("focus", "procrustes")
    ]
    assert all(np.isfinite(rows).all() for rows in found.values())


def test_an_encoder_gives_the_vectors(with_terms, tiny_base, monkeypatch):
    class Encoder:
        def encode(self, texts, batch_size):
            return np.stack([np.full(4, len(text), np.float32) for text in texts]) + np.eye(4)[:1]

    asked = []
    monkeypatch.setattr(module, "load", lambda source, task: asked.append((source, task)) or Encoder())
    config = with_terms(TERMS, "model.new_tokens_init=focus", "model.new_tokens_vectors=org/encoder")
    grown(config, load(tiny_base, "float32"))
    assert asked == [("org/encoder", "embed")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.new_tokens=[red, house]"], "all new tokens are tokens already"),
        (["model.new_tokens=[]"], "there are no new tokens"),
        (["model.new_tokens=nowhere.txt"], "the file of new tokens cannot be read"),
        ([TERMS, "model.new_tokens_init=procrustes"], "procrustes needs vectors of words"),
        ([TERMS, "model.new_tokens_init=procrustes", FEW], "too few tokens have a vector"),
        ([TERMS, "model.new_tokens_init=focus", FEW], "too few old tokens have a vector"),
        (["model.new_tokens=auto", "model.new_tokens_min_count=999"], "found no word that would save a token"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_training(with_terms, tiny_base, tmp_path, monkeypatch, overrides, message):
    (tmp_path / "few.vec").write_text("red 1 2 3\nhouse 2 3 4\nchargeback 3 4 9\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        config, _ = with_new_tokens(with_terms(*overrides))
        grown(config, load(tiny_base, "float32"))
    assert message in str(raised.value)


def test_images_have_no_tokens(golden, with_terms):
    folder = next(golden.glob("vit_*"))
    with pytest.raises(UserError, match="new tokens need a model of text, and this one sees images"):
        with_new_tokens(with_terms(TERMS, f"model.path={folder}"))


def test_what_learns_from_zero_has_a_tokenizer_of_its_own(with_terms):
    with pytest.raises(UserError, match="are for a trained model"):
        with_new_tokens(with_terms(TERMS, "model.path=null", "model.architecture={model_type: llama}"))


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_rows_train_beside_lora_and_everything_reads_them_back(with_terms, tiny_base, tmp_path, capsys):
    config = with_terms(TERMS, "train.max_steps=6")
    summary = finetune(config)
    adapter = tmp_path / "run" / "adapter"
    assert "new tokens: 2" in capsys.readouterr().out
    stated = json.loads((adapter / "adapter_config.json").read_text())
    assert stated["trainable_token_indices"] == {"model.embed_tokens": [2048, 2049]}
    rows = load_file(adapter / "adapter_model.safetensors")[
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    ]
    start = np.asarray(grown(config, load(tiny_base, "float32")).params["new_tokens"]["embed"])
    assert np.abs(rows - start).max() > 0.01
    # LoRA's parameters, and 2 x 32 of the rows: nothing of the table
    plain = outline(with_terms(), make_mesh(), length=64)
    lora_alone = sum(x.size for x in jax.tree.leaves(plain.state.trainable)) - sum(
        x.size for path, x in tree.flatten(plain.state.trainable).items() if path.endswith("lora_scale")
    )
    assert summary["num_trainable"] == lora_alone + 2 * 32
    # the evaluation reads adapter and tokenizer from the folder
    found = evaluate(with_terms(), adapter=adapter)
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-5)
    adapted = load_adapted(load(tiny_base, "float32"), adapter)
    prompt = encode_prompt(adapted, "a chargeback")
    assert 2048 in prompt
    merge(adapter, tmp_path / "merged")
    merged = load(tmp_path / "merged", "float32")
    assert merged.config.vocab_size == 2050
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == 2050
    np.testing.assert_allclose(merged(np.array([prompt])), adapted(np.array([prompt])), atol=2e-4)
    words = [generate(model, [prompt], max_new_tokens=4, stop=[]) for model in (adapted, merged)]
    assert words[0] == words[1]


def test_rows_alone_are_an_adapter_also_over_a_quantized_base(with_terms, tiny_base, tmp_path):
    config = with_terms(TERMS, "lora=null", "train.trainable=[^new_tokens]", "model.quantization=int8")
    summary = finetune(config)
    assert summary["num_trainable"] == 2 * 32
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "TRAINABLE_TOKENS"
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]
    found = evaluate(with_terms("model.quantization=int8"), adapter=adapter)
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-4)


def test_a_whole_model_that_trained_has_them_in_its_tables(with_terms, tmp_path):
    summary = finetune(with_terms(TERMS, "lora=null", "train.max_steps=2", "train.remat=full"))
    model = load(tmp_path / "run" / "model", "float32")
    assert not vocabulary.has_rows(model.params)
    assert (model.config.vocab_size, len(load_tokenizer(str(tmp_path / "run" / "model")))) == (2050, 2050)
    found = evaluate(with_terms(f"model.path={tmp_path / 'run' / 'model'}"))
    assert found["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-4)


def test_a_run_that_is_resumed_goes_on_where_it_was(with_terms, tmp_path, monkeypatch):
    more = (TERMS, "train.save_steps=3", "eval.before=false", "train.logging_steps=1", "data.shuffle=false")
    finetune(with_terms(*more))
    wanted = losses(tmp_path / "run")
    from jaxlean.run.rounds import Rounds

    stopped = with_terms(*more, f"output_dir={tmp_path / 'again'}")

    def stop(self, state, done):
        if done == 5:
            raise KeyboardInterrupt
        return state

    with monkeypatch.context() as patched:
        patched.setattr(Rounds, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped)
    finetune(stopped, resume=True)
    found = losses(tmp_path / "again")
    assert found.keys() == wanted.keys()
    assert found[6] == pytest.approx(wanted[6], rel=1e-5)


def test_rows_train_whatever_else_does(with_terms, tmp_path):
    made = outline(with_terms(TERMS, "lora=null", "train.trainable=[^layers]"), make_mesh(), length=64)
    assert "new_tokens.embed" in tree.flatten(made.state.trainable)
    assert {"embed.embedding", "new_tokens.ids"} <= tree.flatten(made.frozen).keys()


def test_lora_on_the_head_and_new_tokens_are_refused_before_training(with_terms, golden, tiny_base, tmp_path):
    untied = json.loads((tiny_base / "config.json").read_text()) | {"tie_word_embeddings": False}
    write_model(initial(untied, "float32", tokenizer=str(tiny_base)), tmp_path / "untied")
    more = (TERMS, f"model.path={tmp_path / 'untied'}", "lora.target_modules=[q_proj, lm_head]")
    for attempt in (finetune, lambda config: outline(config, make_mesh(), length=64)):
        with pytest.raises(UserError) as raised:
            attempt(with_terms(*more))
        assert "which can have no LoRA adapter beside them" in str(raised.value)
    assert not (tmp_path / "run").exists()
    outline(with_terms(*more[1:]), make_mesh(), length=64)  # without new tokens there is nothing to refuse


def test_a_plan_s_shapes_are_those_of_the_run(with_terms):
    made = outline(with_terms(TERMS), make_mesh(), length=64)
    shapes = {path: leaf.shape for path, leaf in tree.flatten(made.state.trainable).items()}
    assert shapes["new_tokens.embed"] == (2, 32)
    assert not any(path.startswith("embed.") for path in shapes)
    frozen = tree.flatten(made.frozen)
    assert frozen["embed.embedding"].shape == (2050, 32)
    assert made.build("none").trace(*made.arguments) is not None
