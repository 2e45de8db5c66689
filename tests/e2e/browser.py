"""A headless Chromium that drives the page of `vitp serve`, at the width of a desk or of a phone."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 90.0
"""Seconds that something may take on a slow machine with others on it."""
WIDTHS = {"desk": (1280, 900, 1, False), "phone": (400, 850, 2, True)}
"""Width, height, device pixels a pixel, whether it is touched."""

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """Yield a driver whose profile and downloads lie in a folder; skip the tests where there is no Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium isn't installed")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    browser, driver = next(filter(None, found), None), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium and its chromedriver aren't installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*_FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        opened.set_script_timeout(PATIENCE)
        opened.set_page_load_timeout(PATIENCE)
        yield opened
    finally:
        opened.quit()


class Page:
    """The page, as a user meets it.

    Args:
        driver: Of the browser.
        address: Of the server.
        size: One of `WIDTHS`.
        downloads: Where files are saved.
    """

    def __init__(self, driver: Any, address: str, size: str, downloads: Path) -> None:
        self.driver, self.address, self.size, self.downloads = driver, address, size, downloads
        width, height, density, touched = WIDTHS[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": density, "mobile": touched}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
        self.devtools(
            "Emulation.setTouchEmulationEnabled", enabled=touched, maxTouchPoints=2 if touched else 1
        )
        self.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        driver.get_log("browser")

    def devtools(self, command: str, **values: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self.driver.execute_cdp_cmd(command, values)

    def open(self, token: str = "") -> None:
        """Load the page anew; a token is what an earlier visit has left."""
        self.driver.get(self.address + "style.css")
        self.js(
            "sessionStorage.clear(); if (arguments[0]) sessionStorage.setItem('vitp-token', arguments[0])",
            token,
        )
        self.driver.get(self.address)
        if token:
            self.wait(lambda: "model" in self.text("#served"))

    def js(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Return the first true value of a condition; fails when it doesn't come."""
        until = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < until, f"{self.state()} while waiting"
            time.sleep(0.03)
        return value

    def state(self) -> str:
        """Return what the page complains of."""
        return json.dumps([self.text("#error-text"), self.text("#status"), self.driver.get_log("browser")])

    def find(self, selector: str) -> Any:
        """Return an element."""
        return self.driver.find_element("css selector", selector)

    def every(self, selector: str) -> list[Any]:
        """Return elements that are seen."""
        return [one for one in self.driver.find_elements("css selector", selector) if one.is_displayed()]

    def text(self, selector: str) -> str:
        """Return an element's text, seen or not."""
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        """Return the texts of elements, seen or not."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return list(self.js(script, selector))

    def shown(self, selector: str) -> bool:
        """Return whether an element is seen."""
        return bool(self.find(selector).is_displayed())

    def click(self, selector: str) -> None:
        """Click an element, brought into sight."""
        element = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", element)
        element.click()

    def pick(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        self.js(
            "const one = document.querySelector(arguments[0]); one.value = arguments[1];"
            "if (one.value !== arguments[1]) throw new Error('no option ' + arguments[1]);"
            "one.dispatchEvent(new Event('change', {bubbles: true}))",
            selector,
            value,
        )

    def slide(self, name: str, value: int) -> None:
        """Move a slider."""
        self.js(
            "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
            "one.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )

    def sample(self, name: str) -> None:
        """Choose a sample, and wait until it is seen."""
        element = next(
            one
            for one in self.driver.find_elements("css selector", "#samples button")
            if one.get_property("title") == name
        )
        self.js("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", element)
        element.click()
        self.wait(lambda: element.get_attribute("aria-pressed") == "true" or name in self.text("#slots"))
        self.settled()

    def settled(self) -> None:
        """Wait until all tiles that were asked for are drawn."""
        self.js("window.tilesSeen = -1")
        self.wait(
            lambda: self.js(
                "const count = performance.getEntriesByType('resource').filter(({name, responseEnd}) => "
                "name.includes('/tiles/') && responseEnd).length;"
                "const same = count > 0 && count === window.tilesSeen; window.tilesSeen = count; return same"
            )
        )
        self.wait(lambda: self.ink() > 1)

    def ink(self, figure: str = "#view-a") -> int:
        """Return how many colours a viewer shows, of a grid of its pixels."""
        return len(set(self.pixels(figure)))

    def pixels(self, figure: str = "#view-a") -> list[int]:
        """Return colours of a viewer at the points of a grid of 40 × 40."""
        return list(
            self.js(
                "const canvas = document.querySelector(arguments[0] + ' canvas'), context = canvas.getContext('2d');"
                "const {data} = context.getImageData(0, 0, canvas.width, canvas.height), found = [];"
                "for (let y = 0; y < 40; y++) for (let x = 0; x < 40; x++) {"
                "  const at = 4 * (Math.floor((y + .5) / 40 * canvas.height) * canvas.width + Math.floor((x + .5) / 40 * canvas.width));"
                "  found.push((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]); }"
                "return found",
                figure,
            )
        )

    def painted(self, figure: str = "#view-a") -> list[int]:
        """Return colours of a viewer once what was done before is painted, which takes a frame."""
        wait = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        self.driver.execute_async_script(wait)
        return self.pixels(figure)

    def changes(self, act: Callable[[], None], figure: str = "#view-a") -> None:
        """Do something that changes what a viewer shows; fails when it doesn't."""
        # Without the wait, the frame of a step before could still come, and count as this one's, or undo it.
        before = self.painted(figure)
        act()
        self.wait(lambda: self.pixels(figure) != before)

    def requests(self, part: str = "") -> list[str]:
        """Return the addresses that were asked for since the page was loaded, tiles apart."""
        script = "return performance.getEntriesByType('resource').map(({name}) => name)"
        return [name for name in self.js(script) if part in name and (part or "/tiles/" not in name)]

    def saved(self, act: Callable[[], None]) -> Path:
        """Return the file that is saved when something is done."""
        before = set(self.downloads.iterdir())
        act()

        def new() -> Path | None:
            found = [path for path in set(self.downloads.iterdir()) - before if path.suffix != ".crdownload"]
            return found[0] if found and found[0].stat().st_size else None

        path: Path = self.wait(new)
        return path

    def picture(self, name: str) -> None:
        """Check that nothing sticks out to the right; save a picture where VITP_PICTURES names a folder."""
        wide, room = self.js(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= room, f"{name} at {self.size}: {wide} pixels wide in {room}"
        if folder := os.environ.get("VITP_PICTURES"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.js("scrollTo(0, 0)")
            height = (
                self.js("return document.documentElement.scrollHeight")
                if self.size == "phone"
                else WIDTHS[self.size][1]
            )
            width, _, density, touched = WIDTHS[self.size]
            metrics = {"width": width, "deviceScaleFactor": density, "mobile": touched}
            self.devtools("Emulation.setDeviceMetricsOverride", height=height, **metrics)
            time.sleep(0.4)
            self.driver.save_screenshot(str(Path(folder) / f"{name}-{self.size}.png"))
            self.devtools("Emulation.setDeviceMetricsOverride", height=WIDTHS[self.size][1], **metrics)

    def complaints(self) -> list[str]:
        """Return what the browser complains of: errors of scripts, what its policy forbids, answers that failed."""
        lines = [line for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]
        # The style sheet that `open` loads alone names no icon, so that the browser looks for one.
        return [str(line["message"]) for line in lines if "favicon.ico" not in line["message"]]
