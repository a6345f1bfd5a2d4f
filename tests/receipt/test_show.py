"""A receipt as people see it."""

import io

from rich.console import Console

from jaxlean.receipt.show import show

LINE = {"number": 2, "cut": "LoRA", "kind": "program", "settings": [], "without": [], "note": ""}


def shown(*lines, **total):
    out = io.StringIO()
    told = {
        "cuts": list(lines),
        "total": {"memory_bytes": 2**30, "memory_bytes_without": None, "sentence": "told"} | total,
    }
    show(told, Console(file=out, width=80))
    return out.getvalue()


def pair(ours, without, source="timed"):
    return {"with": ours, "without": without, "source": source}


def test_what_is_less_what_is_more_and_what_is_nothing():
    line = LINE | {
        "memory_bytes": pair(2**30, 3 * 2**30, "compiled"), "flops": pair(120.0, 100.0), "seconds": pair(99.99, 100.0),
        "usd": pair(1.5, 1.0), "note": "a word on it",
    }  # fmt: skip
    text = shown(line)
    row = next(text_line for text_line in text.splitlines() if text_line.lstrip().startswith("2"))
    assert row.split() == ["2", "LoRA", "2.0", "GiB", "67%", "+20%", "0", "timed", "+$0.50"]
    assert "LoRA: a word on it" in text


def test_what_was_not_measured_has_no_number():
    text = shown(LINE | dict.fromkeys(("memory_bytes", "flops", "seconds", "usd")))
    row = next(line for line in text.splitlines() if line.lstrip().startswith("2"))
    assert row.split() == ["2", "LoRA", "-", "-", "-", "-"]
    assert text.rstrip().endswith("told")


def test_the_step_without_all_of_them():
    assert "a step: 1.0 GiB on each device, 4.0 GiB without them" in shown(memory_bytes_without=2**32)
    assert max(map(len, shown(memory_bytes_without=2**32).splitlines())) <= 80
