"""The report: one file that needs nothing else, true to the run's files, whole whatever is missing."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch

from masking.mask import Grid
from masking.strategies.uniform import Uniform
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config, to_json
from pretrain.data.settings import DataConfig
from pretrain.errors import ConfigError
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.tracking.charts import Scale
from pretrain.tracking.metrics import Tracker
from pretrain.tracking.panels import panel
from pretrain.tracking.report import write_report
from pretrain.tracking.settings import TrackingConfig

CONFIG = Config(
    name="<first> & best",
    data=DataConfig(train="embedded", image_size=(32, 64), batch_size=8),
    backbone=ViTConfig(size="tiny", patch_size=8),
    objective=PixelMAEConfig(decoder_width=64),
    mask=Uniform(),
    steps=60,
    tracking=TrackingConfig(wandb="off"),
)


def write_run(run_dir, config=CONFIG, *, num_steps=60, evaluations=True, panels=(0, 30, 60)):
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps(to_json(config)))
    run = Tracker(run_dir, to_json(config), config.tracking)
    run.event("started", step=0, world_size=2, attempt=1)
    run.log(
        [
            {"step": s, "loss": 1 / s, "lr": 1e-3, "grad_norm": 0.5, "skipped": int(s == 3), "images_per_s": 80.0,
             "data_wait": 0.02, "samples": 8 * s, "epoch": s / 10, "memory_gb": 0.0, "bad": int(s == 5)}
            for s in range(1, num_steps + 1)
        ]
    )  # fmt: skip
    if evaluations:
        for step, knn in ((0, 0.25), (30, 0.5), (60, 0.75)):
            run.evaluation(
                {"step": step, "knn": knn, "chance": 0.1, "effective_rank": 9.0, "warnings": ["few <images>"]}
            )
    run.ledger([{"step": 5, "position": 33, "shard": "a.tar", "key": "b&b", "reason": "crc32 differs"}])
    for step in panels:
        images = torch.randint(0, 256, (2, 3, 32, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        hidden = torch.arange(32).expand(2, -1) % 2 == 0
        path = run_dir / "panels" / f"step-{step:07d}.png"
        panel(images, hidden, images / 255, path, grid=Grid(4, 8), title=f"step {step}")
    run.close()
    return run_dir


class Page(HTMLParser):
    """Collects addresses, visible text and unclosed tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action")]
        if tag not in ("meta", "br", "input", "img", "rect", "line", "path", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "first")).read_text()


def test_the_page_needs_no_other_file_and_no_network(html):
    page = Page(html)
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\((?!#)", html)
    assert page.open == []


def test_the_headline_says_what_was_gained_over_the_untrained_encoder(html):
    text = Page(html).text
    assert "75.0 %" in text and "untrained 25.0 %: +50.0 points" in text
    assert "Finished after 60 steps, 6 passes over the data" in text
    assert "1 bad samples in 60 steps" in text and "began at 1.000" in text


def test_words_of_the_run_are_escaped(html):
    text = Page(html).text
    assert "<first> & best" in text and "few <images>" in text and "b&b" in text
    assert "<first>" not in html


def test_every_chart_is_well_formed_and_carries_its_points(html):
    charts = re.findall(r"<svg class=\"chart\".*?</svg>", html, re.S)
    assert len(charts) >= 6
    for svg in charts:
        root = ElementTree.fromstring(svg)
        series = json.loads(root.attrib["data-hover"])
        assert all(0 <= x <= 520 for line in series for x, *_ in line["points"])
    loss = next(json.loads(ElementTree.fromstring(svg).attrib["data-hover"]) for svg in charts if 'label="Loss"' in svg)
    assert loss[0]["points"][0][2:] == [1, "1"] and loss[0]["points"][-1][2] == 60


def test_a_run_that_predicts_nothing_has_images_instead_of_reconstructions(tmp_path):
    run_dir = write_run(tmp_path / "run", panels=())
    images, hidden = torch.full((2, 3, 32, 64), 99, dtype=torch.uint8), torch.arange(32).expand(2, -1) % 2 == 0
    panel(images, hidden, None, run_dir / "panels" / "step-0000060.png", grid=Grid(4, 8), title="step 60")
    html = write_report(run_dir).read_text()
    page = Page(html)
    assert page.open == [] and "Images What the encoder sees" in page.text and "Reconstructions" not in page.text
    assert "--columns:2" in html and html.count('alt="masked"') == html.count('alt="original"') == 2


def test_reconstructions_stand_side_by_side_over_time(html):
    page = Page(html)
    assert "masked step 0 step 30 step 60 original" in page.text
    assert len(page.addresses) == 2 * 5


def test_settings_that_differ_from_their_default_stand_out(html):
    changed = re.findall(r"<tr><th>(\w+)</th><td class=\"changed\">", html)
    assert set(changed) == {"image_size", "batch_size", "size", "patch_size", "decoder_width", "wandb"}


def test_settings_of_a_part_that_this_version_has_not_are_shown_as_they_are(tmp_path):
    run_dir = write_run(tmp_path / "run", panels=())
    config = json.loads((run_dir / "config.json").read_text())
    config["objective"] = {"type": "pretrain.objectives.later:LaterConfig", "patience": 7}
    (run_dir / "config.json").write_text(json.dumps(config))
    html = write_report(run_dir).read_text()
    assert re.search(r"<tr><th>patience</th><td>7</td>", html)
    assert re.search(r'<tr><th>batch_size</th><td class="changed">8</td>', html)


def test_a_run_with_nothing_but_a_config_has_a_page_of_sentences(tmp_path):
    run_dir = write_run(tmp_path / "run", num_steps=0, evaluations=False, panels=())
    text = Page(write_report(run_dir).read_text()).text
    for sentence in ("No step has been logged yet", "No evaluation has been made", "no pictures of reconstructions"):
        assert sentence in text


@pytest.mark.parametrize("num_steps", [1, 2, 25])
def test_a_run_that_is_going_on_says_so(tmp_path, num_steps):
    run_dir = write_run(tmp_path / "run", num_steps=num_steps, evaluations=False, panels=())
    assert f"Going on, or interrupted, at step {num_steps} of 60" in Page(write_report(run_dir).read_text()).text


def test_pictures_of_steps_that_were_undone_are_left_out(tmp_path):
    run_dir = write_run(tmp_path / "run", num_steps=30, evaluations=False)
    assert "step 60" not in Page(write_report(run_dir).read_text()).text


def test_attempts_that_vanished_are_told_from_those_that_stopped(tmp_path):
    run_dir = write_run(tmp_path / "run", num_steps=30, panels=())
    run = Tracker(run_dir, {}, CONFIG.tracking, resume_step=20)
    run.event("started", step=20, world_size=4)
    run.event("stopped", step=25, reason="asked to stop", exit_code=75)
    run.close()
    text = Page(write_report(run_dir).read_text()).text
    assert "ended without a word" in text and "Stopped at step 20 of 60" in text
    assert text.count("ended without a word") == 1


def test_losses_that_are_not_finite_leave_a_gap_and_no_trouble(tmp_path):
    run_dir = write_run(tmp_path / "run", num_steps=10, evaluations=False, panels=())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [line | {"loss": None, "grad_norm": None} if line["step"] < 3 else line for line in lines]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "began at 0.333" in Page(write_report(run_dir).read_text()).text


def test_a_config_of_another_version_is_shown_without_its_masks(tmp_path):
    run_dir = write_run(tmp_path / "run", panels=())
    config = to_json(dataclasses.replace(CONFIG, seed=5))
    config["mask"]["type"] = "masking.strategies.future:Future"
    (run_dir / "config.json").write_text(json.dumps(config))
    assert "cannot be drawn by this version" in Page(write_report(run_dir).read_text()).text


@pytest.mark.parametrize("missing", ["directory", "config.json", "metrics.jsonl"])
def test_what_is_not_a_run_is_refused_by_what_it_lacks(tmp_path, missing):
    run_dir = tmp_path / "run"
    if missing != "directory":
        write_run(run_dir, panels=())
        (run_dir / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        write_report(run_dir)


def test_the_report_marks_where_a_soft_mask_fell_and_says_what_the_loss_did(tmp_path):
    config = dataclasses.replace(CONFIG, backbone=IllamaConfig("tiny", patch_size=8), steps=200)
    run_dir = write_run(tmp_path / "run", config, num_steps=1, panels=())
    lines = [
        {"step": s, "loss": 0.5 + 0.1 * (101 <= s <= 120) - 0.01 * (s > 120), "alpha": float(s <= 100), "lr": 1e-3}
        for s in range(1, 201)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(run_dir).read_text()
    text = Page(html).text
    assert "At step 101 the soft mask fell from 1 to 0, and the loss jumped: 0.5 just before, 0.6 at its" in text
    assert "+20.0 % (means of 10 steps). It was back after" in text
    found = re.findall(r'<svg class="chart"[^>]*aria-label="([^"]*)".*?(<line class="event".*?)?</svg>', html, re.S)
    charts = dict(found)
    assert [name for name, event in charts.items() if event] == ["Loss", "Soft mask"]
    assert text.index("Loss") < text.index("Soft mask") < text.index("Learning rate")
    place = Scale(0, 200, 54, 506).at(101)
    assert f'<line class="event" x1="{place:.1f}"' in html and "alpha 0 from step 101 on" in text
    assert "soft mask fell" not in Page(write_report(write_run(tmp_path / "other")).read_text()).text
