"""The page of `vitp serve` in a real Chromium: every function at the width of a desk and of a phone."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.e2e.browser import PATIENCE, WIDTHS, Page, chromium
from tests.e2e.conftest import ROOT, done, environment
from tests.e2e.micro_tasks import TASKS, micro_config
from vitp.runs.finetune import run_finetune

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("page"),  # one server and one browser
    pytest.mark.skipif(sys.platform == "win32", reason="the server is ended by a signal"),
]

TOKEN = "open sesame"
HOSTILE = "<script>alert(1)</script>"
FOUND = ("detection", "instance", "oriented")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one server with a model of each task, the starter and a random backbone."""
    for package in ("fastapi", "uvicorn", "python_multipart"):
        pytest.importorskip(package, reason="the extra vitp[serve] isn't installed")
    root = tmp_path_factory.mktemp("served")
    for task in TASKS:
        config = micro_config(task)
        few = config.model_copy(update={"train": config.train.model_copy(update={"steps": 1})})
        run_finetune(few, root / task, console=Console(quiet=True))
    _rename_class(root / "oriented" / "model" / "config.json")
    samples = root / "samples"
    done("data", "scenes", "port", "--layout", "pairs", "--count", 8, "--size", 64, "--out", root / "pairs")
    (samples / "dates").mkdir(parents=True)
    for name in ("A", "B"):
        first = sorted((root / "pairs").rglob(f"{name}/*.png"))[0]
        (samples / "dates" / f"{name}.png").write_bytes(first.read_bytes())
    _write_large(samples / "large.png")
    command = [sys.executable, "-m", "vitp", "serve", *(f"{task}={root / task}" for task in TASKS)]
    command += ["starter", "random", "--root", str(samples), "--port", "0", "--token", TOKEN]
    log = (root / "log").open("w+")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), cwd=ROOT)
    try:
        yield _address(process, root / "log")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            log.close()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < until:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found[0] + "/"
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _rename_class(file: Path) -> None:
    """Call the first class what a browser must not run."""
    description = json.loads(file.read_text())
    description["classes"][0] = HOSTILE
    file.write_text(json.dumps(description))


def _write_large(path: Path) -> None:
    """Write an image of several levels of tiles whose pixels differ wherever one looks."""
    y, x = np.mgrid[:900, :2500]
    shades = np.stack([x // 10, y // 4, (x + y) // 14], -1).astype(np.uint8)
    shades[::2, ::2] ^= 32
    Image.fromarray(shades).save(path)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(params=list(WIDTHS))
def page(request: pytest.FixtureRequest, driver: Any, served: str, tmp_path: Path) -> Iterator[Page]:
    """The page, loaded anew; the browser may complain of nothing."""
    opened = Page(driver, served, request.param, tmp_path)
    opened.open(TOKEN)
    yield opened
    assert opened.complaints() == []


def predicted(page: Page, model: str, *samples: str) -> None:
    """Choose images and a model, and let it predict."""
    page.pick("#predict-model", model)
    for name in samples:
        page.sample(name)
    page.click("#predict-run")
    page.wait(lambda: page.shown("#predict-result"))
    page.wait(lambda: page.find("#predict-run").is_enabled())


def test_only_what_the_server_itself_gives_may_run(served: str) -> None:
    with urllib.request.urlopen(served) as answer:
        policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"https?://", text)


def test_it_says_what_is_there(page: Page) -> None:
    assert page.text("#served") == "8 models"
    assert len(page.texts("#samples button")) == 3
    assert [text.split(" · ")[0] for text in page.texts("#predict-model option")] == list(TASKS)
    assert not page.find("#predict-run").is_enabled()
    page.wait(lambda: page.js("return document.querySelectorAll('#samples img').length") == 3)
    page.picture("start")


def test_classes_are_bars(page: Page) -> None:
    predicted(page, "classification", "dates/A.png")
    page.slide("threshold", 100)
    shown = dict(zip(page.texts("#classes b"), page.texts("#classes span"), strict=True))
    assert page.js("return document.querySelectorAll('#classes .off').length") == len(shown) > 5
    scores = json.loads(page.saved(lambda: page.click("#downloads button")).read_text())["scores"]
    assert list(shown) == [row["class"] for row in sorted(scores, key=lambda row: -row["score"])]
    assert all(abs(float(shown[row["class"]].split()[0]) - 100 * row["score"]) < 0.51 for row in scores)
    page.picture("classification")


@pytest.mark.parametrize("task", FOUND)
def test_objects_follow_threshold_and_classes_without_a_request(page: Page, task: str) -> None:
    predicted(page, task, "dates/A.png")
    page.changes(lambda: page.slide("threshold", 5))
    before, asked = int(page.text("#objects-title").split()[0]), len(page.requests())
    assert before > 1
    outlined = page.pixels()
    page.slide("threshold", 100)
    assert page.text("#objects-title") == f"0 objects, {before} below the threshold"
    page.wait(lambda: page.pixels() != outlined)
    page.slide("threshold", 5)
    name = page.text("#objects li b")
    page.changes(
        lambda: page.click(f"#classes li:nth-child({page.texts('#classes b').index(name) + 1}) input")
    )
    left = int(page.text("#objects-title").split()[0])
    assert left < before
    assert name not in page.texts("#objects b")
    assert len(page.requests()) == asked
    found = json.loads(page.saved(lambda: page.click("#downloads button")).read_text())
    assert len(found["objects"]) == left
    assert found["threshold"] == 0.05
    if left:
        page.click("#objects button")
        assert page.find("#objects button").get_attribute("aria-pressed") == "true"
    page.picture(task)


def test_names_never_become_markup(page: Page) -> None:
    predicted(page, "oriented", "dates/A.png")
    assert HOSTILE in page.texts("#classes b")
    assert page.js("return document.querySelectorAll('main script').length") == 0
    file = page.downloads / "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (40, 30), "teal").save(file)
    page.find("#file").send_keys(str(file))
    page.wait(lambda: file.name in page.text("#stage-title"))
    assert "40 × 30" in page.text("#stage-title")
    assert page.js("return document.querySelectorAll('img:not([alt=\"\"])').length") == 0


def test_a_class_map_is_seen_through(page: Page) -> None:
    predicted(page, "segmentation", "dates/A.png")
    page.changes(lambda: page.slide("opacity", 100))
    shares = [float(re.search(r"([\d.]+) %", text)[1]) for text in page.texts("#classes li")]
    assert abs(sum(shares) - 100) < 3
    largest = f"#classes li:nth-child({int(np.argmax(shares)) + 1}) input"
    page.changes(lambda: page.click(largest))
    page.changes(lambda: page.click(largest))
    page.changes(lambda: page.slide("opacity", 0))
    assert len([name for name in page.requests("predict") if name.endswith("/predict")]) == 1
    page.slide("opacity", 100)
    page.changes(lambda: page.slide("threshold", 100))
    assert set(page.texts("#classes span")) == {"0.0 %"}
    picture = page.saved(lambda: page.click("#downloads button[aria-label='Download PNG']"))
    with Image.open(picture) as image:
        assert image.size == (64, 64)
    page.picture("segmentation")


def test_two_dates_are_compared(page: Page) -> None:
    page.pick("#predict-model", "change")
    assert page.shown("#slots")
    predicted(page, "change", "dates/A.png", "dates/B.png")
    assert page.shown("#swipe-part")
    page.slide("opacity", 0)
    page.slide("swipe", 0)
    page.changes(lambda: page.slide("swipe", 100))
    page.slide("swipe", 50)
    page.slide("opacity", 100)
    assert page.texts("#classes b") == ["unchanged", "changed"]
    assert not page.find("#classes input").is_selected()
    page.changes(lambda: page.click("#classes input"))
    page.picture("change")


def test_answers_stream_and_their_places_are_drawn(page: Page) -> None:
    page.click("#tab-ask")
    page.sample("dates/A.png")
    page.find("#question").send_keys("Where are the ships?")
    page.changes(lambda: page.click("#ask-run"))
    page.wait(lambda: page.js("return document.querySelectorAll('#talk .waiting').length") == 0)
    assert page.texts("#talk .label") == ["ship"]
    assert "<" not in page.text("#talk .answer")
    page.changes(lambda: page.click("#talk .again"))
    page.click("#suggestions button")
    assert page.find("#question").get_property("value") == "What is in this image?"
    page.click("#ask-run")
    page.wait(lambda: len(page.every("#talk article")) == 2 and not page.every("#talk .waiting"))
    assert len(page.texts("#talk .answer")[1]) > 10
    saved = json.loads(page.saved(lambda: page.click("#ask-downloads button")).read_text())
    assert [turn["question"] for turn in saved["turns"]] == ["Where are the ships?", "What is in this image?"]
    assert saved["turns"][0]["boxes"][0]["label"] == "ship"
    page.picture("ask")


def test_two_backbones_stand_side_by_side(page: Page) -> None:
    page.click("#tab-look")
    page.sample("dates/A.png")
    page.pick("#look-a", "random")
    page.wait(lambda: "random" in page.text("#look-readout"))
    assert not page.shown("#view-b")
    page.pick("#look-b", "starter")
    page.wait(lambda: "starter: 12 × 12 patches" in page.text("#look-readout"))
    page.wait(lambda: page.ink("#view-b") > 8)
    assert page.pixels("#view-a") != page.pixels("#view-b")
    assert page.texts(".view figcaption") == ["random", "starter"]
    page.changes(lambda: page.slide("look-layer", 0), "#view-b")
    page.picture("features")


def test_a_patch_says_what_it_attends_to(page: Page) -> None:
    page.click("#tab-look")
    page.sample("dates/A.png")
    page.pick("#look-a", "starter")
    page.pick("#look-b", "random")
    page.click("[value=attention]")
    page.wait(lambda: "row 7, column 7 of 12 × 12" in page.text("#look-readout"))
    canvas = page.find("#view-a canvas")
    page.changes(lambda: page.click("#view-b canvas"))
    page.changes(lambda: canvas.send_keys("\ue014"))  # arrow to the right
    page.wait(lambda: "column 8 of 12 × 12" in page.text("#look-readout"))
    page.changes(lambda: page.slide("look-layer", 0))
    page.picture("attention")


def test_large_images_pan_and_zoom_from_tiles(page: Page) -> None:
    page.sample("large.png")
    levels = {int(address.split("/tiles/")[1].split("/")[0]) for address in page.requests("/tiles/")}
    assert 0 not in levels
    canvas = page.find("#view-a canvas")
    page.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
    for _ in range(6):
        page.changes(lambda: canvas.send_keys("+"))
    page.wait(lambda: page.requests("/tiles/0/"))
    page.changes(lambda: canvas.send_keys("\ue014"))
    page.changes(lambda: page.click("#zoom-out"))
    page.changes(lambda: canvas.send_keys("0"))
    box = page.js(
        "const {left, top, width, height} = arguments[0].getBoundingClientRect(); return [left, top, width, height]",
        canvas,
    )
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    if page.size == "phone":
        page.changes(lambda: _pinch(page, x, y))
    else:
        page.changes(
            lambda: page.devtools(
                "Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-300
            )
        )
    page.changes(lambda: _drag(page, x, y))
    page.picture("large")


def _pinch(page: Page, x: float, y: float) -> None:
    def points(apart: float) -> list[dict[str, float]]:
        return [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]

    page.devtools("Input.dispatchTouchEvent", type="touchStart", touchPoints=points(20))
    for apart in (40, 60, 80):
        page.devtools("Input.dispatchTouchEvent", type="touchMove", touchPoints=points(apart))
    page.devtools("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def _drag(page: Page, x: float, y: float) -> None:
    for kind, by in (("mousePressed", 0), ("mouseMoved", 30), ("mouseMoved", 60), ("mouseReleased", 60)):
        page.devtools(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x + by,
            y=y + by / 4,
            button="left",
            buttons=1,
            clickCount=1,
        )


def test_what_the_server_refuses_is_one_sentence(page: Page) -> None:
    file = page.downloads / "notes.txt"
    file.write_text("no image")
    page.find("#file").send_keys(str(file))
    page.wait(lambda: page.shown("#error"))
    assert "image" in page.text("#error-text")
    assert "\n" not in page.text("#error-text")
    page.picture("refused")
    page.click("#error-close")
    assert not page.shown("#error")
    assert any("415" in line for line in page.complaints())


def test_a_token_is_asked_for(page: Page) -> None:
    page.open()
    page.wait(lambda: page.shown("#token"))
    page.picture("token")
    page.find("#token-value").send_keys("wrong\n")
    page.wait(lambda: page.shown("#token-wrong"))
    page.find("#token-value").send_keys(TOKEN + "\n")
    page.wait(lambda: page.text("#served") == "8 models")
    assert not page.shown("#token")
    assert any("401" in line for line in page.complaints())


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    seen = []
    for _ in range(60):
        _press(page, "Tab")
        seen.append(page.js("return document.activeElement.id || document.activeElement.textContent"))
        if seen[-1] == "A.png":
            _press(page, "Enter")
            page.wait(lambda: "64 × 64" in page.text("#stage-title"))
        if seen[-1] == "predict-run":
            break
        outline = page.js("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline not in ("", "none"), seen[-1]
    assert seen.index("choose") < seen.index("A.png") < seen.index("zoom-in") < seen.index("tab-predict")
    assert seen[-1] == "predict-run"
    _press(page, "Enter")
    page.wait(lambda: page.shown("#predict-result"))
    page.wait(lambda: "%" in page.text("#status"))
    page.js("document.getElementById('tab-predict').focus()")
    _press(page, "ArrowRight")
    assert page.js("return document.activeElement.id") == "tab-ask"
    assert page.shown("#ask")


def _press(page: Page, key: str) -> None:
    codes = {"Tab": 9, "Enter": 13, "ArrowRight": 39}
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        values = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        page.devtools("Input.dispatchKeyEvent", **values, **(text if kind == "keyDown" else {}))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(page: Page, scheme: str) -> None:
    page.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        predicted(page, "detection", "dates/A.png")
        page.slide("threshold", 5)
        weak = page.js(_CONTRAST)
        page.picture(f"detection-{scheme}")
    finally:
        page.devtools("Emulation.setEmulatedMedia", features=[])
    assert weak == []


_CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const light = ([r, g, b]) => [r, g, b].map((value) => value / 255)
  .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const colour = rgba(getComputedStyle(element).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return rgba('Canvas');
};
return [...document.querySelectorAll('body *')].filter((element) => element.checkVisibility()
  && element.getBoundingClientRect().width > 1 && !element.matches(':disabled, .unseen, option, noscript')
  && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())).map((element) => {
    const [text, paper] = [light(rgba(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(text, paper) + 0.05) / (Math.min(text, paper) + 0.05);
    return [element.tagName, element.className, element.textContent.slice(0, 30), Number(ratio.toFixed(2))];
  }).filter(([, , , ratio]) => ratio < 4.5);
"""
