"""The page: one file that asks for nothing else, in which what the files say is text and never markup."""

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxlean.report.page import NUM_COLOURS, render, run_class
from jaxlean.report.read import read

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'></script>&lt;"
MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """Tags with their attributes, whether all are closed in order, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.scripts, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def add(folder, lines):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(lines)


@pytest.fixture
def several(made, told):
    return read([
        made("a", receipt=told), made("b", config={"lora": None, "train": {"learning_rate": 0.5}}),
        made("c", summary=None),
    ])  # fmt: skip


def test_no_address_is_opened_and_only_its_own_script_runs(made, told, several):
    for text in (render(read([made("x", receipt=told)])), render(several)):
        page = Page(text)
        for _, attributes in page.tags:
            for name in ("src", "href", "action", "poster", "srcset", "data", "formaction"):
                assert attributes.get(name) in (None, "data:,")
            assert not [name for name in attributes if name.startswith("on")]
        assert "@import" not in text
        assert "url(" not in text
        assert re.findall(r"(?:https?:)?//\w[\w.-]*\.\w+", text) == []
        assert {name for name, _ in page.tags} & {"iframe", "object", "embed", "img", "audio", "video", "form"} == set()
        policy = next(each["content"] for each in page.of("meta") if "http-equiv" in each)
        assert policy.startswith("default-src 'none'")
        own = page.scripts[-1]
        assert f"'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'" in policy


def test_whatever_the_files_say_is_text(made, told):
    told["cuts"][1] |= {"cut": EVIL, "note": EVIL, "settings": [EVIL], "without": [EVIL]}
    told["cuts"][1]["usd"]["source"] = EVIL
    told["total"]["sentence"] = told["device_kind"] = told["total"]["cuts"][0] = EVIL
    config = {
        "model": {"path": EVIL}, "data": {"train": [{"path": EVIL}]}, "train": {"remat": EVIL},
        "cost": {"tags": [EVIL], "project": EVIL, EVIL: 1},
    }  # fmt: skip
    summary = {
        "status": EVIL, "device_kind": EVIL, "versions": {EVIL: EVIL}, "energy_source": EVIL, "price_source": EVIL,
        "kwh": 1.0, "gco2e_source": EVIL, "phases": {EVIL: 3.0}, "best_step": 20,
        "stopped_early": {"step": 20, "rule": EVIL, "message": EVIL}, "ended": EVIL,
    }  # fmt: skip
    folder = "<script>alert(0)<\\script>'\"&<b>"
    evil = made(folder, config=config, summary=summary, receipt=told)
    add(evil, '"<script>"\n\n')
    for runs in ([evil], [evil, made("b")]):
        page = Page(render(read(runs)))
        scripts = [each.get("type") for each in page.of("script")]
        assert scripts.count(None) == 1
        assert set(scripts) == {None, "application/json"}
        assert page.of("img") == []
        assert page.of("b") == []
        for data in page.scripts[:-1]:
            json.loads(data)
        assert folder in page.text
        assert EVIL in page.text


def test_one_run_has_all_its_sections(made, told):
    text = Page(render(read([made("a", receipt=told)]))).text
    for title in (
        "Learning", "Quality on held-out rows", "Cost, time and memory", "Memory of a step",
        "What it took, and how that is known", "What each cut saved", "Course of training",
        "Settings that are not at their default", "The same again",
    ):  # fmt: skip
        assert title in text
    assert "Settings that differ" not in text
    assert f"{MINUS}75 % 4.0 MiB → 1.0 MiB compiled" in text
    assert "jaxlean finetune" in text


def test_without_a_receipt_it_says_what_writes_one(made):
    text = Page(render(read([made("a")]))).text
    assert "What each cut saved No receipt yet: it is measured" in text
    assert re.search(r"by jaxlean receipt \S+/a \.", text)


def test_several_runs_are_overlaid_and_their_settings_compared(several):
    text = render(several)
    page = Page(text)
    assert "Settings that differ" in page.text
    assert "train.learning_rate 0.003 0.5 0.003" in page.text
    assert [each["id"] for each in page.of("input")] == ["show-0", "show-1", "show-2"]
    for place in range(3):
        assert f'class="run-{place} of-{place}' in text
        assert f"body:has(#show-{place}:not(:checked)) .of-{place} {{ display: none; }}" in text
    assert page.text.count("unfinished: nothing says how it ended") == 1
    assert "b: No receipt yet: it is measured" in page.text
    assert "c: No receipt yet: once the run has ended" in page.text


def test_a_run_that_came_to_no_end_is_gone_on_with(made):
    text = Page(render(read([made("a", summary={"status": "preempted"})]))).text
    assert "Go on, or the same again" in text
    assert "/a/config.yaml --resume" in text
    assert "--resume" not in Page(render(read([made("b")]))).text


def test_runs_that_differ_in_nothing_say_so(made):
    assert "None but the folder." in Page(render(read([made("a"), made("b")]))).text


def test_a_run_that_logged_nothing_is_still_a_page(made):
    text = Page(render(read([made("a", summary=None, lines=[])]))).text
    assert "No step was logged of it." in text
    assert "NaN" not in text


def test_what_could_not_be_read_is_said_at_the_head(made):
    folder = made("a")
    add(folder, "{{{\n")
    assert "a line of metrics.jsonl cannot be read, and is left out." in Page(render(read([folder]))).text


def test_a_page_is_read_aloud(several):
    page = Page(render(several))
    charts = page.of("svg")
    assert charts
    ids = {each["id"] for _, each in page.tags if "id" in each}
    for each in charts:
        assert each["role"] == "img"
        assert set(each["aria-labelledby"].split()) <= ids
    assert len(ids) == sum("id" in each for _, each in page.tags), "an id twice"
    assert len(page.of("details")) == len(charts), "a table for each"
    assert all(each.get("scope") in ("row", "col") for each in page.of("th"))
    for each in page.of("div"):
        if "tabindex" in each:
            assert each["aria-label"]


def test_more_runs_than_colours_are_dashed(made):
    text = render(read([made(str(place), steps=10) for place in range(NUM_COLOURS + 1)]))
    assert run_class(NUM_COLOURS) == "run-0 dashed"
    assert 'class="run-0 dashed of-5"' in text


# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as one sees it who lacks a kind of cone.
SEEN = {
    "all cones": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
# Ottosson 2020, oklab: linear RGB to cones, and cones to lightness and two colours.
CONES = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                  [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip


def linear(colour):
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2.2."""
    low, high = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (one, other))
    return (high + 0.05) / (low + 0.05)


def grounds(made):
    """Of either colour scheme: name -> colour."""
    style = re.search(r"<style>(.*?)</style>", render(read([made("a")])), re.DOTALL)[1]
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme)) for scheme in (light, dark)]


def test_text_and_lines_stand_out_in_light_and_in_dark(made):
    for colours in grounds(made):
        for name in ("ink", "muted", "good", "bad", "wait"):
            assert contrast(colours[name], colours["ground"]) >= 4.5
        for place in range(NUM_COLOURS):
            assert contrast(colours[f"run-{place}"], colours["ground"]) >= 3.0


@pytest.mark.parametrize("seen", SEEN)
def test_the_colours_of_runs_are_told_apart_by_everybody(made, seen):
    for colours in grounds(made):
        places = [LAB @ np.cbrt(CONES @ np.clip(SEEN[seen] @ linear(colours[f"run-{place}"]), 0, 1))
                  for place in range(NUM_COLOURS)]  # fmt: skip
        apart = [float(np.linalg.norm(one - other)) for one, other in itertools.combinations(places, 2)]
        assert min(apart) >= 0.1, "a difference in lightness of a tenth"
