"""Pictures of the page of `vitp serve` for the documentation: a detector and a model of change, on a desk and a phone.

`python -m tools.page_pictures OUT [TASK…]` serves the models that `tools/task_pictures.py OUT detection change` has trained, on
test images that they have not seen, drives the page in a headless Chromium as the tests do, and writes
`docs/pictures/page/NAME.webp`. A minute of one CPU core. `python -m tools.page_pictures DEMO starts` takes what the page
of a demo leads with instead (`vitp demo --out DEMO`) and writes `docs/pictures/starts.webp`.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from tests.e2e.browser import PATIENCE, WIDTHS, Page, chromium
from tools.task_pictures import JOBS, ROOT

PICTURES = ROOT / "docs" / "pictures" / "page"
STARTS = PICTURES.parent / "starts.webp"
EDGE = 10
TALL = {"desk": 900, "phone": 1500}


def samples(work: Path) -> Path:
    """Return a folder with two test images of the detector, and two dates of a place."""
    out = work / "samples"
    for task, names in (("detection", ("cells-1", "cells-2")), ("change", ("place",))):
        job = JOBS[task]
        for name, paths in zip(names, job.images(job.data(work)), strict=False):
            for number, path in enumerate(paths):
                (out / task).mkdir(parents=True, exist_ok=True)
                date = f"-{number + 1}" if len(paths) > 1 else ""
                shutil.copy(path, out / task / f"{name}{date}{path.suffix}")
    return out


def detection(page: Page) -> None:
    """Boxes over the image, and one of them chosen in the list."""
    predicted(page, "detection", "cells-1")
    page.slide("threshold", 50)
    page.click("#objects button")


def change(page: Page) -> None:
    """What changed, and the divider between the dates."""
    predicted(page, "change", "place-1", "place-2")
    page.slide("swipe", 50)


def predicted(page: Page, model: str, *names: str) -> None:
    """Choose images and a model, and let it predict."""
    page.pick("#predict-model", model)
    shown = [
        one.get_property("title") for one in page.driver.find_elements("css selector", "#samples button")
    ]
    for name in names:
        page.sample(next(one for one in shown if name in str(one)))
    page.click("#predict-run")
    page.wait(lambda: page.shown("#predict-result"))
    page.wait(lambda: page.find("#predict-run").is_enabled())


def take(page: Page, name: str) -> None:
    """Write what is seen, of a phone the whole page down to some height."""
    width, low, density, touched = WIDTHS[page.size]
    page.js("scrollTo(0, 0)")
    whole = int(page.js("return document.documentElement.scrollHeight"))
    height = max(low, min(whole, TALL[page.size]))
    metrics = {"width": width, "height": height, "deviceScaleFactor": density, "mobile": touched}
    page.devtools("Emulation.setDeviceMetricsOverride", **metrics)
    time.sleep(1.0)
    raw = page.downloads / f"{name}-{page.size}.png"
    page.driver.save_screenshot(str(raw))
    target = PICTURES / f"{name}{'-phone' if page.size == 'phone' else ''}.webp"
    with Image.open(raw) as image:
        image.convert("RGB").save(target, quality=82, method=6)
    print(f"{target}: {target.stat().st_size // 1000} kB")


def starts(demo: Path, target: Path, width: int = 1280) -> None:
    """Write the rows of scenes of a demo's page, as a desk of so many pixels shows them."""
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as driver:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get((demo / "report.html").resolve().as_uri())
        box = driver.execute_script(
            "const all = [...document.querySelectorAll('section')][0].querySelectorAll('figure.images');"
            "const [first, last] = [all[0], [...all].at(-1)].map((one) => one.getBoundingClientRect());"
            "return [first.x, first.y + scrollY, first.width, last.bottom - first.y]"
        )
        x, y, wide, high = box
        clip = {"x": x - EDGE, "y": y - EDGE, "width": wide + 2 * EDGE, "height": high + 2 * EDGE, "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as image:
        image.convert("RGB").save(target, quality=82, method=6)
    print(f"{target}: {target.stat().st_size // 1000} kB")


STEPS: dict[str, Callable[[Page], None]] = {"detection": detection, "change": change}


def main(work: Path, tasks: Sequence[str]) -> None:
    """Serve, drive and write."""
    models = [f"{task}={work / f'{task}-run'}" for task in tasks]
    command = [sys.executable, "-m", "vitp", "serve", *models, "--root", str(samples(work)), "--port", "0"]
    log = work / "served.txt"
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            address, until = None, time.monotonic() + 2 * PATIENCE
            while not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(log.read_text())
                time.sleep(0.2)
            with chromium(work / "browser") as driver:
                for size in WIDTHS:
                    for task in tasks:
                        page = Page(driver, address[0] + "/", size, work)
                        page.open()
                        page.wait(lambda page=page: page.texts("#predict-model option"))
                        page.wait(lambda page=page: page.texts("#samples button"))
                        STEPS[task](page)
                        take(page, task)
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    if sys.argv[2:] == ["starts"]:
        starts(Path(sys.argv[1]), STARTS)
    else:
        main(Path(sys.argv[1]), sys.argv[2:] or list(STEPS))
