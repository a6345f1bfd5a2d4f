"""summary.json and the final table."""

import io
import json
import os

import pytest
from rich.console import Console

from jaxlean.errors import RunError
from jaxlean.run.summary import Summary, final_table, write_summary

KEYS = """
    status ended steps tokens total_tokens seconds train_seconds compile_seconds
    phases data_wait_share accelerator_utilization accelerator_hours flops_per_step flops mfu
    kwh energy_source gco2e gco2e_source compiled_from_cache tokens_per_second
    predicted_memory_bytes memory_by_category measured_memory_bytes
    predicted_step_seconds measured_step_seconds peak_memory_bytes
    dtype attention remat
    num_params num_trainable train_loss eval_before eval_few_shot eval_after eval_teacher best_step
    stopped_early evaluations usd usd_by_price price_source device_kind num_devices versions
""".split()

FULL = {
    "status": "completed",
    "steps": 300,
    "tokens": 90_000,
    "total_tokens": 200_000,
    "seconds": 100.0,
    "train_seconds": 75.0,
    "compile_seconds": 4.5,
    "tokens_per_second": 2000.0,
    "peak_memory_bytes": 3 * 2**30,
    "num_params": 2_000_000,
    "num_trainable": 100_000,
    "train_loss": 0.1,
    "eval_before": {"loss": 3.2, "perplexity": 24.53, "bits_per_byte": 1.25, "exact_match": 0.0},
    "eval_after": {"loss": 0.12, "perplexity": 1.13, "exact_match": 0.955},
    "usd": 0.0023,
    "device_kind": "cpu",
    "num_devices": 1,
    "versions": {"jax": "0.10.2"},
}


def table(summary, **options):
    console = Console(file=io.StringIO(), width=100, color_system=None)
    final_table(summary, console=console, **options)
    return console.file.getvalue()


def row(text, name):
    """The cells of the row that is called so."""
    rows = [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in text.splitlines()]
    (found,) = [cells for cells in rows if cells[:1] == [name]]
    return found


def test_the_documented_keys_are_those_of_the_issue():
    assert list(Summary.__annotations__) == KEYS


def test_where_the_time_went_and_what_energy_it_took():
    text = table(FULL)
    assert "energy" not in text
    assert "waiting for data" not in text
    metered = {"kwh": 0.0123, "energy_source": "measured: NVML", "gco2e": 4.5, "accelerator_utilization": 0.5}
    text = table(FULL | metered | {"phases": {"data_wait": 9.0}, "data_wait_share": 0.12})
    assert row(text, "energy")[1] == "12.3 Wh (measured), 4.5 gCO2e"
    assert row(text, "waiting for data")[1] == "9.00 s (12.0 % of the steps' time)"
    assert row(text, "devices busy")[1] == "50.0 % of the time, in steps"


def test_the_file_has_every_key_and_no_nan(tmp_path):
    file = tmp_path / "summary.json"
    write_summary(file, {"status": "failed", "train_loss": float("nan"), "more": 1})
    got = json.loads(file.read_text())
    assert list(got) == [*KEYS, "more"]
    assert got["status"] == "failed"
    assert got["train_loss"] is None
    assert got["more"] == 1
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "summary.json"
    write_summary(file, {"status": "completed"})
    before = file.read_text()
    (tmp_path / "summary.json.tmp").mkdir()
    with pytest.raises(RunError, match="summary cannot be written"):
        write_summary(file, {"status": "other"})
    with pytest.raises(TypeError):
        write_summary(file, {"status": object()})
    assert file.read_text() == before


def test_the_table_says_why_a_run_ended_and_what_was_written():
    stopped = {"step": 120, "rule": "patience", "message": "3 evaluations after step 60, whose 0.1000 is the best"}
    text = table(FULL | {"stopped_early": stopped, "best_step": 60})
    assert row(text, "stopped early")[1].startswith("patience: 3 evaluations after step 60")
    assert row(text, "best step")[1] == "60"
    assert "best step" not in table(FULL)
    assert "stopped early" not in table(FULL)


def test_the_table_says_it_all():
    text = table(FULL, adapter="runs/quick/adapter")
    assert row(text, "loss") == ["loss", "3.2000", "0.1200"]
    assert row(text, "perplexity") == ["perplexity", "24.53", "1.13"]
    assert row(text, "bits per byte") == ["bits per byte", "1.2500", "-"]
    assert row(text, "exact match") == ["exact match", "0.0 %", "95.5 %"]
    assert row(text, "tokens/s")[1] == "2,000"
    assert row(text, "peak memory")[1] == "3.0 GiB"
    assert row(text, "seconds")[1] == "1 min 40 s"
    assert row(text, "in training steps")[1] == "1 min 15 s"
    assert row(text, "compiling the step")[1] == "4.50 s"
    assert row(table(FULL | {"compiled_from_cache": False}), "compiling the step")[1] == "4.50 s"
    cached = row(table(FULL | {"compiled_from_cache": True}), "compiling the step")[1]
    assert cached == "4.50 s (read from the compilation cache)"
    assert row(text, "cost")[1] == "$0.0023"
    assert row(text, "steps")[1] == "300"
    assert row(text, "trainable")[1] == "100,000 of 2,000,000 (5.0 %)"
    assert row(text, "adapter")[1] == "runs/quick/adapter"


def test_what_is_missing_is_a_dash():
    text = table({"eval_after": {"loss": None}})
    assert row(text, "loss")[1:] == ["-", "-"]
    assert row(text, "steps")[1] == "-"
    assert row(text, "trainable")[1] == "- of - (-)"
    assert row(text, "cost")[1].startswith("- (price unknown")


def test_without_held_out_data_it_says_so_instead_of_a_table_of_dashes():
    text = table({"steps": 3})
    assert "quality was not measured" in text
    assert "perplexity" not in text
    assert row(text, "steps")[1] == "3"


def test_what_is_written_of_all_weights_is_called_a_model():
    assert row(table({}, adapter="runs/full/model"), "model")[1] == "runs/full/model"


def test_a_long_folder_name_is_not_cut():
    path = "/very/long/" * 12 + "adapter"
    cells = [line.strip("│ ").removeprefix("adapter").strip() for line in table({}, adapter=path).splitlines()]
    assert path in "".join(cells)


def test_few_shot_stands_beside_before_and_after():
    few_shot = {"loss": 2.5, "exact_match": 0.25, "shots": 4.855}
    text = table(FULL | {"eval_few_shot": few_shot})
    assert row(text, "held-out") == ["held-out", "before", "4.86-shot", "after"]
    assert row(text, "exact match") == ["exact match", "0.0 %", "25.0 %", "95.5 %"]
    assert "tokens in the loss" not in text
    # losses that are of other tokens do not compare
    counted = {"eval_before": FULL["eval_before"] | {"tokens": 5600}, "eval_few_shot": few_shot | {"tokens": 2140}}
    text = table(FULL | counted | {"eval_after": FULL["eval_after"] | {"tokens": 5600}})
    assert row(text, "tokens in the loss") == ["tokens in the loss", "5,600", "2,140", "5,600"]
    # of a classifier's frozen vectors there is no loss, of a run that measured nothing else only they are shown
    text = table({"eval_few_shot": {"accuracy": 0.62, "shots": 0.0}})
    assert row(text, "loss") == ["loss", "-", "-", "-"]
    assert row(text, "accuracy") == ["accuracy", "-", "62.0 %", "-"]


def test_a_teacher_has_a_column_of_its_own():
    text = table(FULL | {"eval_teacher": {"loss": 0.0625, "perplexity": 1.06, "exact_match": 0.97}})
    for words in ("teacher", "0.0625", "97.0 %"):
        assert words in text
    assert "teacher" not in table(FULL)
