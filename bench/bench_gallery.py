"""The gallery of a million samples: from opening it in Chromium until 60 thumbnails are on the screen.

Needs `apt-get install chromium chromium-driver` and `pip install "wdstools[serve,images]" selenium`.
"""

from __future__ import annotations

import io
import os
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browsing import Browser, browsing
from tests.serving import serving
from wdstools.writer import ShardWriter

COUNT = int(os.environ.get("BENCH_GALLERY", "1000000"))
FIRST = 600  # samples with pictures as large as those of ImageNet: they are on the pages that are opened
THUMBNAILS, ROUNDS = 60, 7
COLD, WARM = 1.0, 0.2  # seconds

# When the 60th picture of the page was there, by the page's own clock, which starts at the navigation.
WATCH = f"""
let many = 0;
document.addEventListener("load", (event) => {{
  if (event.target.closest?.("#grid") && ++many === {THUMBNAILS}) window.allThere = performance.now();
}}, true);
"""


def picture(rng: np.random.Generator, wide: int, high: int) -> bytes:
    base = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((wide, high))
    out = io.BytesIO()
    noisy = np.asarray(base, np.int64) + rng.integers(0, 24, (high, wide, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and index, and beside them losses.csv."""
    folder = tmp_path_factory.mktemp("gallery") / "data"
    folder.mkdir()
    rng = np.random.default_rng(1)
    large, small = ([picture(rng, *shape) for _ in range(100)] for shape in ((500, 375), (64, 64)))
    with ShardWriter(f"{folder}/train-%06d.tar", maxcount=10_000, lift=["cls"]) as sink:
        for row in range(COUNT):
            sink.write(
                {"__key__": f"{row:08d}", "jpg": (large if row < FIRST else small)[row % 100], "cls": row % 1000}
            )
    numbers = random.Random(2)
    with open(folder.parent / "losses.csv", "w") as file:
        file.write("key,loss,label,prediction\n")
        for row in range(COUNT):  # the highest are among the large pictures
            loss = numbers.expovariate(1) + (30 if 2 * THUMBNAILS < row < FIRST else 0)
            file.write(f"{row:08d},{loss:.5f},{row % 1000},{row % 1000 if row % 4 else row % 7}\n")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found


def first_screen(browser: Browser, url: str = "") -> float:
    """Seconds from the navigation to the 60th thumbnail; without a URL, of the same page once more."""
    if url:
        browser.open("about:blank")
        browser.open(url)
    else:
        browser.driver.refresh()
    return float(browser.wait(lambda: browser.run("window.allThere"), "60 thumbnails", 60)) / 1000


def bench_gallery_first_screen(benchmark: Any, data: Path, browser: Browser) -> None:
    """Cold: a server that was just started and a browser without a cache, over shards in the page cache. Again: from
    another page, with what the browser kept. Warm: the same page once more."""
    times: dict[str, list[float]] = {}

    def once() -> None:
        losses = ["--annotations", data.parent / "losses.csv"]
        for name, page, options in (
            ("", "/", []),
            ("a million losses joined, by loss, ", "/#sort=loss&desc=1", losses),
        ):
            browser.clear(1920, 1600)
            with serving(data.parent, data, *options) as live:
                browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
                for when, url in (("cold", live.url + page), ("again", live.url + page), ("warm", "")):
                    times.setdefault(name + when, []).append(first_screen(browser, url))

    benchmark.pedantic(once, rounds=ROUNDS)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    told = ", ".join(f"{name} {median[name]:.2f} ({min(s):.2f} to {max(s):.2f})" for name, s in times.items())
    cold = times["cold"]
    benchmark.extra_info.update(
        work=f"60 thumbnails of {COUNT:,} samples, seconds: {told}",
        unit="screens/s", rate=1 / median["cold"], spread=[1 / max(cold), 1 / min(cold)], peers={},
    )  # fmt: skip
    assert median["cold"] < COLD, told
    assert median["warm"] < WARM, told
