"""The gallery: its files, and what people see and do in a real browser before a real server."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import make_tar
from PIL import Image

from tests.browsing import Browser, browsing
from tests.serving import Live, serving
from wdstools import build
from wdstools.serve import front

HTML = '<img src=x onerror="hacked=1"><b>bold</b>&amp;'  # a key, a label and a text
CAPTION = f"{HTML} on the grass"
BIG = 12345678901234567890
HTML_ROW, ODD_ROW, BAD_ROW = 7, 3, 5  # a key in HTML; a sample without an image; one whose image is none
CLASSES = ["cat", "dog", "owl"]

OPENED = "[...document.querySelectorAll('#grid .frame img')].filter((one) => one.naturalWidth).length"
KEYS = "#grid .key"


class Sample(NamedTuple):
    key: str
    cls: int
    loss: float | None
    label: str
    prediction: str


def samples(n: int) -> list[Sample]:
    """Losses come rounded, with ties and gaps."""
    rng = random.Random(5)
    made = []
    for row in range(n):
        key = HTML.replace("/", "") if row == HTML_ROW else f"pets/{row:05d}"
        label = HTML if row == HTML_ROW else CLASSES[row % 3]
        guess = label if rng.random() < 0.7 else rng.choice(CLASSES)
        loss = None if row == 11 else round(rng.expovariate(1), 4)
        made.append(Sample(key, row % 3 if row % 10 else 0, loss, label, guess))
    return made


def sound() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return out.getvalue()


def members(row: int, sample: Sample) -> Iterator[tuple[str, bytes]]:
    out = io.BytesIO()
    shape = [(320, 240), (240, 320), (28, 28)][row % 3]
    Image.new("RGB", shape, (row * 37 % 256, row * 91 % 256, 160)).save(out, "JPEG")
    fields = {"jpg": b"no image" if row == BAD_ROW else out.getvalue(), "cls": str(sample.cls).encode()}
    if row == ODD_ROW:
        del fields["jpg"]
    about = f'{{"caption": {json.dumps(CAPTION)}, "id": {BIG}, "boxes": [[1, 2.50, 3, 4]]}}'
    fields |= {"json": about.encode(), "txt": CAPTION.encode(), "wav": sound()}
    numbers = io.BytesIO()
    np.save(numbers, np.arange(6, dtype=np.float32))
    fields["npy"] = numbers.getvalue()
    yield from ((f"{sample.key}.{field}", data) for field, data in fields.items())


ALL = samples(150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets: pets, with annotations, and texts, without an image."""
    made = tmp_path_factory.mktemp("gallery") / "data"
    made.mkdir()
    shards = []
    for number in range(2):
        rows = range(number * 75, number * 75 + 75)
        path = made / f"pets-{number:06d}.tar"
        path.write_bytes(make_tar([member for row in rows for member in members(row, ALL[row])]))
        shards.append(str(path))
    build.build(shards, lift=["cls"]).save(made / "pets.wdsindex")
    texts = made / "texts-000000.tar"
    texts.write_bytes(make_tar([(f"t{i}.txt", CAPTION.encode()) for i in range(5)]))
    build.build([str(texts)]).save(made / "texts.wdsindex")
    return made


@pytest.fixture(scope="module")
def annotations(folder: Path) -> Path:
    path = folder.parent / "losses.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "loss", "label", "prediction"])
        for one in ALL:
            rows.writerow([one.key, "" if one.loss is None else one.loss, one.label, one.prediction])
        rows.writerow(["t0", 1.5, "cat", "dog"])
    return path


@pytest.fixture(scope="module")
def live(folder: Path, annotations: Path) -> Iterator[Live]:
    with serving(folder.parent, folder, "--annotations", annotations) as server:
        yield server


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def browser(chromium: Browser, live: Live, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A fresh page. After each test: no other host was asked, no complaint on the console, no markup out of data."""
    chromium.clear(**getattr(request, "param", {}))
    yield chromium
    hosts = chromium.hosts()
    assert hosts
    assert {host.rpartition(":")[0] for host in hosts} == {"127.0.0.1"}
    marker = request.node.get_closest_marker("may_complain")
    allowed = rf"thumbnails/{BAD_ROW}\?.* 415 |" + (rf"status of {marker.args[0]} " if marker else "nothing else")
    assert [text for text in chromium.said if not re.search(allowed, text)] == []
    assert not chromium.run("window.hacked")
    assert not chromium.all("#grid b img, [onerror]")
    chromium.run("localStorage.clear()")
    chromium.run("sessionStorage.clear()")


def show(browser: Browser, live: Live, state: str = "") -> None:
    browser.open(f"{live.url}/{state}")
    browser.wait(lambda: browser.all(".tile, .sample-head"), "tiles")


def keys(browser: Browser, expected: list[Sample]) -> None:
    """Wait until the page shows these samples, and no others, in this order."""
    wanted = [one.key for one in expected][:60]
    browser.wait(lambda: browser.texts(KEYS) == wanted, f"{len(wanted)} samples from {wanted[:2]}")


def by_loss() -> list[Sample]:
    return sorted(ALL, key=lambda one: (one.loss is None, -(one.loss or 0)))


def brief(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def go(browser: Browser, selector: str, text: str, *then: str) -> None:
    field = browser.one(selector)
    browser.run("arguments[0].select()", field)
    field.send_keys(text, *then)


ENTER, ESCAPE, RIGHT, LEFT, DOWN, TAB = "\ue007", "\ue00c", "\ue014", "\ue012", "\ue015", "\ue004"

# files


def test_the_files_are_small_and_ask_nobody_else() -> None:
    paths = sorted(front.FOLDER.iterdir())
    assert {path.name for path in paths} == set(front.files())
    assert sum(path.stat().st_size for path in paths) < 60_000
    for path in paths:
        text = path.read_text()
        # the name of the namespace of SVG, in the icon, is no address
        outside = re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s'\"]*", text.replace("http://www.w3.org/2000/svg", ""))
        assert [found for found in outside if "://" in found or path.suffix == ".html"] == []
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


def test_every_file_that_is_named_is_there() -> None:
    files = front.files()
    for name, file in files.items():
        text = file.data.decode()
        for found in re.findall(r'-/gallery/[0-9a-f]{24}/([\w.]+)"', text) + re.findall(r'from "\./([\w.]+)"', text):
            assert found in files, (name, found)


def test_browsers_get_the_page_and_programs_the_list(live: Live) -> None:
    page = live.ask("/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.body == front.files()["index.html"].data
    assert page.headers["cache-control"] == "no-cache"
    policy = page.headers["content-security-policy"]
    for part in ("default-src 'self'", "img-src 'self' blob: data:", "object-src 'none'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    for listing in (live.ask("/"), live.ask("/?files", Accept="text/html")):
        assert b"pets-000000.tar" in listing.body
    assert b"ListAllMyBuckets" in live.ask("/", Accept="text/html", x_amz_date="20260101T000000Z").body


@pytest.mark.parametrize("name", sorted(front.files()))
def test_a_file(live: Live, name: str) -> None:
    path = f"/-/gallery/{name}"
    reply = live.ask(path)
    assert reply.headers["cache-control"] == "no-cache"
    kept = live.ask(f"/-/gallery/{front.version()}/{name}")
    assert (kept.status, kept.body) == (200, reply.body)
    assert "immutable" in kept.headers["cache-control"]
    assert (reply.status, reply.body) == (200, front.files()[name].data)
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-type"].partition(";")[0] == front.KINDS[Path(name).suffix]
    etag = reply.headers["etag"]
    for given in (etag, f'"x", W/{etag}'):
        again = live.ask(path, If_None_Match=given)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert live.ask(path, If_None_Match='"x"').status == 200
    assert live.ask(path, "HEAD").headers["content-length"] == str(len(reply.body))
    assert live.ask(path, "POST", b"").status == 405


def test_no_other_file(live: Live) -> None:
    for name in (
        "",
        "..",
        "../front.py",
        "..%2ffront.py",
        "%2e%2e/front.py",
        "gallery.js/",
        "index",
        "gallery%2ejs",
        f"{front.version()}/",
        "0" * 24 + "/api.js",
    ):
        assert live.ask(f"/-/gallery/{name}").status in (400, 404), name
    assert live.ask("/-/gallery").status == 404


def test_the_page_is_open_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, folder, env={"WDS_TOKEN": "s3cret"}) as live:
        html = {"Accept": "text/html"}
        for path in ("/", "/-/gallery/gallery.js"):
            assert live.ask(path, **html).status == 200
            assert live.ask(path, "POST", b"", **html).status == 401
        for path in ("/?files", "/-/galleryx", "/-/info", "/-/samples", "/-/gallery/../info", "/data/", "//"):
            assert live.ask(path, **html).status in (400, 401, 404), path
            assert b"pets" not in live.ask(path, **html).body
        for headers in ({"X-Amz-Date": "20260101T000000Z"}, {"Authorization": "AWS4-HMAC-SHA256 x"}):
            assert live.ask("/", **html, **headers).status == 403
        assert live.ask("/").status == 401


# what people do


def test_the_first_page(browser: Browser, live: Live) -> None:
    show(browser, live)
    keys(browser, ALL)
    browser.wait(lambda: browser.run(OPENED) >= 18, "thumbnails")
    assert browser.text("#range") == "1\u201360 of 150"
    assert browser.text("#about").startswith("150 samples · 2 shards · ")
    seen = len(browser.requests("/-/thumbnails/"))
    assert 18 <= seen < 45  # what is on the screen, and a little more
    assert browser.texts("#grid .none")[0] == "cls json txt wav npy"
    browser.wait(lambda: "jpg: cannot be shown" in browser.texts("#grid .none"), "the placeholder")
    browser.shoot("light")
    for step in range(1, 6):
        browser.run(f"scrollTo(0, {step} * 600)")
        browser.wait(lambda step=step: browser.run(OPENED) >= min(58, 18 + 6 * step), "more of them")
    browser.wait(lambda: browser.run(OPENED) == 58, "all of them")
    asked = browser.requests("/-/thumbnails/")
    assert len(asked) == len(set(asked)) == 59


def test_pages(browser: Browser, live: Live) -> None:
    show(browser, live)
    keys(browser, ALL)
    browser.click("#samples .bar:not(.end) .pager button:last-child")
    keys(browser, ALL[60:])
    assert browser.text("#range") == "61\u2013120 of 150"
    go(browser, ".pager input", "150", ENTER)
    keys(browser, ALL[120:])
    browser.driver.back()
    keys(browser, ALL[60:])
    browser.driver.back()
    keys(browser, ALL)
    browser.press("]")
    keys(browser, ALL[60:])
    browser.wait(lambda: browser.run("document.activeElement.classList.contains('tile')"), "focus")
    browser.press("[")
    keys(browser, ALL)


def test_the_highest_loss_is_one_click(browser: Browser, live: Live) -> None:
    show(browser, live)
    keys(browser, ALL)
    [button] = [one for one in browser.all("#quick button") if one.text == "Highest loss"]
    button.click()
    keys(browser, by_loss())
    assert button.get_attribute("aria-pressed") == "true"
    worst = by_loss()[0]
    first = browser.one("#grid .facts").text
    assert f"label {worst.label[:23]}" in first.replace("\n", " ")
    assert f"prediction {worst.prediction}" in first.replace("\n", " ")
    assert f"loss {worst.loss:.4g}" in first.replace("\n", " ")
    browser.wait(lambda: browser.run(OPENED) >= 18, "thumbnails")
    browser.shoot("highest-loss")
    wrong = browser.texts("#grid .fact.wrong")
    assert wrong == [f"prediction {brief(one.prediction)}" for one in by_loss()[:60] if one.label != one.prediction]
    browser.click("#desc")
    keys(browser, sorted(ALL, key=lambda one: (one.loss is None, one.loss or 0)))
    browser.driver.back()
    keys(browser, by_loss())
    [button] = [one for one in browser.all("#quick button") if one.text == "label ≠ prediction"]
    button.click()
    keys(browser, [one for one in by_loss() if one.label != one.prediction])


@pytest.mark.may_complain("400")
def test_filter(browser: Browser, live: Live) -> None:
    show(browser, live)
    keys(browser, ALL)
    go(browser, "#where", "loss > 1 AND label = 'cat'", ENTER)
    expected = [one for one in ALL if (one.loss or 0) > 1 and one.label == "cat"]
    keys(browser, expected)
    assert browser.text("#range") == f"1\u2013{len(expected)} of {len(expected)}"
    go(browser, "#where", "nonsense > (", ENTER)
    assert len(browser.text("#wrong")) > 10
    assert browser.all(".tile") == []  # rather nothing than what is not asked for
    assert browser.one("#where").get_attribute("aria-invalid") == "true"
    browser.shoot("wrong-filter")
    go(browser, "#where", "loss > 1e9", ENTER)
    assert browser.text("#empty") == "No sample is like this."
    assert not browser.all("#wrong")[0].is_displayed()
    browser.driver.back()
    assert browser.one("#wrong")
    browser.driver.back()
    keys(browser, expected)
    assert browser.one("#where").get_attribute("value") == "loss > 1 AND label = 'cat'"


def test_search_by_key_from_the_keyboard(browser: Browser, live: Live) -> None:
    show(browser, live)
    keys(browser, ALL)
    browser.press("/", "0014")
    keys(browser, [one for one in ALL if "0014" in one.key])
    browser.press(ESCAPE)
    browser.driver.back()  # what was typed is one step
    keys(browser, ALL)
    browser.press("/", "<img")
    keys(browser, [ALL[HTML_ROW]])
    facts = browser.run("[...document.querySelectorAll('#grid .fact')].map((one) => one.title)")
    assert f"label: {HTML}" in facts


def test_other_annotations_are_another_answer(folder: Path, annotations: Path, tmp_path: Path) -> None:
    """Who has the answer of a server with the losses of yesterday does not keep it today."""
    path = "/-/samples?sort=loss&desc=1&limit=1&set=pets"
    mine = tmp_path / "losses.csv"
    found = []
    for factor in (1, -1):
        rows = list(csv.reader(annotations.read_text().splitlines()))
        with open(mine, "w", newline="") as file:
            csv.writer(file).writerows(
                [rows[0], *([key, loss and factor * float(loss), *more] for key, loss, *more in rows[1:])]
            )
        with serving(tmp_path, folder, "--annotations", mine) as live:
            reply = live.ask(path, If_None_Match=found[-1][1] if found else '"x"')
            assert reply.status == 200
            found.append((json.loads(reply.body)["samples"][0]["key"], reply.headers["etag"]))
            assert live.ask(path, If_None_Match=found[-1][1]).status == 304
    assert [key for key, _ in found] == [
        by_loss()[0].key,
        min(ALL, key=lambda one: one.loss if one.loss is not None else 9).key,
    ]


def pick(browser: Browser, wanted: Callable[[str], bool]) -> None:
    """Press the one class whose text is wanted; the page may make all of them anew meanwhile."""

    def press() -> bool:
        for one in browser.all(".class"):
            if wanted(one.text):
                one.click()
                return True
        return False

    browser.wait(press, "a class")


def test_counts_filter(browser: Browser, live: Live) -> None:
    show(browser, live)
    keys(browser, ALL)
    count = {cls: sum(one.cls == cls for one in ALL) for cls in range(3)}

    def counts() -> dict[str, str]:
        return dict(zip(browser.texts(".class-name"), browser.texts(".class-count"), strict=False))

    browser.wait(lambda: counts() == {str(cls): str(many) for cls, many in count.items()}, "counts")
    pick(browser, lambda text: text.startswith("2"))
    keys(browser, [one for one in ALL if one.cls == 2])
    browser.wait(lambda: browser.text("#picked") == "cls is 2 \u00d7", "what is picked")
    browser.wait(lambda: browser.texts(".class[aria-pressed=true] .class-name") == ["2"], "the class that is picked")
    go(browser, "#where", "loss > 1 -- a remark", ENTER)
    keys(browser, [one for one in ALL if one.cls == 2 and (one.loss or 0) > 1])
    browser.click("#picked button")
    keys(browser, [one for one in ALL if (one.loss or 0) > 1])
    go(browser, "#where", " ", ENTER)
    browser.run("void (document.querySelector('#by').value = 'label')")
    browser.run("document.querySelector('#by').dispatchEvent(new Event('change'))")
    browser.wait(lambda: HTML in " ".join(browser.texts(".class-name")), "labels")
    pick(browser, lambda text: "onerror" in text)
    keys(browser, [ALL[HTML_ROW]])


def at(browser: Browser, sample: Sample) -> None:
    browser.wait(lambda: browser.texts(".sample-key") == [sample.key], sample.key)


def test_from_sample_to_sample(browser: Browser, live: Live) -> None:
    show(browser, live, "#sort=loss&desc=1")
    order = by_loss()
    keys(browser, order)
    browser.press("j", "j", "j", "k", RIGHT, ENTER)
    at(browser, order[2])
    browser.press("j")
    at(browser, order[3])
    browser.press(LEFT)
    at(browser, order[2])
    browser.click(".sample-head .pager button:last-child")
    at(browser, order[3])
    assert "4 of 150" in browser.text(".sample-head")
    browser.press(ESCAPE)
    keys(browser, order)
    browser.wait(lambda: browser.run("document.activeElement.querySelector?.('.key')?.textContent") == order[3].key)
    browser.press(ENTER)
    at(browser, order[3])
    browser.driver.back()
    keys(browser, order)
    browser.driver.refresh()
    keys(browser, order)


def test_over_the_end_of_a_page(browser: Browser, live: Live) -> None:
    show(browser, live, "#sort=loss&desc=1")
    order = by_loss()
    keys(browser, order)
    browser.all(".tile")[59].click()
    at(browser, order[59])
    browser.press("j")
    at(browser, order[60])
    browser.press(ESCAPE)
    keys(browser, order[60:])
    browser.wait(lambda: browser.run("document.activeElement.querySelector?.('.key')?.textContent") == order[60].key)
    browser.press("k")
    keys(browser, order)
    browser.wait(lambda: browser.run("document.activeElement.querySelector?.('.key')?.textContent") == order[59].key)


def test_a_sample_with_every_field(browser: Browser, live: Live) -> None:
    show(browser, live, f"#n={HTML_ROW}")
    at(browser, ALL[HTML_ROW])
    image = "document.querySelector('.kind-image img')"
    browser.wait(lambda: browser.run(f"{image}?.naturalWidth") == 240, "the image")
    assert browser.texts(".member h3") == ["jpg", "wav", "cls", "json", "txt", "npy"]
    shown = browser.run("document.querySelector('.kind-json pre').textContent")
    assert json.loads(shown) == {"caption": CAPTION, "id": BIG, "boxes": [[1, 2.5, 3, 4]]}
    assert f'\n  "id": {BIG}' in shown
    assert "2.50" in shown
    assert browser.run("document.querySelector('.kind-text pre').textContent") == CAPTION
    assert browser.run("document.querySelector('.kind-number pre').textContent") == str(ALL[HTML_ROW].cls)
    assert browser.run("document.querySelector('.kind-hex pre').textContent").startswith("000000  93 4e 55 4d 50 59")
    browser.wait(lambda: browser.run("document.querySelector('audio').duration") == 1, "the sound")
    facts = dict(zip(browser.texts(".about dt"), browser.texts(".about dd"), strict=True))
    assert facts["label"] == HTML
    assert facts["loss"] == str(ALL[HTML_ROW].loss)
    assert facts["shard"].endswith("pets-000000.tar")
    assert f"{HTML_ROW + 1} of {len(ALL)}" in browser.text(".sample-head")
    browser.shoot("sample")


def test_download(browser: Browser, live: Live, tmp_path: Path) -> None:
    allow = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", allow)
    show(browser, live, "#n=1")
    at(browser, ALL[1])
    browser.click("[aria-label='Download npy']")
    path = tmp_path / "00001.npy"
    browser.wait(path.exists, "the file")
    assert np.load(path).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.may_complain("404")
def test_no_such_sample(browser: Browser, live: Live) -> None:
    show(browser, live, "#n=1")
    at(browser, ALL[1])
    browser.run("void (location.hash = 'n=999')")
    assert browser.text("#failed")
    assert browser.all(".sample-key") == []


def test_another_set(browser: Browser, live: Live) -> None:
    show(browser, live, "#key=00")
    browser.wait(lambda: browser.all("#set option"), "sets")
    browser.one("#set").send_keys("texts")
    browser.wait(lambda: browser.texts(KEYS) == [f"t{i}" for i in range(5)], "the other set")
    assert browser.texts("#grid .none") == ["txt"] * 5
    browser.click(".tile")
    browser.wait(lambda: browser.texts("pre") == [CAPTION], "its text")
    browser.driver.back()
    browser.driver.back()
    keys(browser, [one for one in ALL if "00" in one.key])
    assert browser.one("#set").get_attribute("value") == "pets"


def test_a_link_shows_what_its_sender_saw(browser: Browser, live: Live) -> None:
    show(browser, live)
    go(browser, "#where", "loss > 0.5", ENTER)
    browser.run("void (document.querySelector('#sort').value = 'key')")
    browser.run("document.querySelector('#sort').dispatchEvent(new Event('change'))")
    expected = sorted((one for one in ALL if (one.loss or 0) > 0.5), key=lambda one: one.key)
    keys(browser, expected)
    link = browser.driver.current_url
    browser.clear()
    browser.open(link)
    keys(browser, expected)
    assert browser.one("#sort").get_attribute("value") == "key"


def is_dark(browser: Browser) -> bool:
    color = browser.run("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", color)[:3])) < 200


@pytest.mark.parametrize("browser", [{"dark": True}], indirect=True)
def test_dark(browser: Browser, live: Live) -> None:
    show(browser, live)
    assert is_dark(browser)
    browser.wait(lambda: browser.run(OPENED) >= 18, "thumbnails")
    browser.shoot("dark")
    browser.click("#theme")
    assert not is_dark(browser)
    browser.driver.refresh()
    browser.wait(lambda: browser.all(".tile"))
    assert not is_dark(browser)
    browser.press("t")
    assert is_dark(browser)
    browser.all(".tile")[1].click()
    at(browser, ALL[1])
    browser.wait(lambda: browser.run("document.querySelector('.kind-image img')?.naturalWidth"), "the image")
    browser.shoot("dark-sample")


@pytest.mark.parametrize("browser", [{"wide": 390, "high": 844, "phone": True}], indirect=True)
def test_on_a_phone(browser: Browser, live: Live) -> None:
    def fits() -> bool:
        return bool(browser.run("document.documentElement.scrollWidth <= 390"))

    show(browser, live)
    keys(browser, ALL)
    browser.wait(lambda: browser.run(OPENED) >= 7, "thumbnails")
    columns = browser.run("getComputedStyle(document.querySelector('#grid')).gridTemplateColumns.split(' ').length")
    assert columns == 3
    assert fits()
    assert all("size=320" in url for url in browser.requests("/-/thumbnails/"))
    browser.shoot("phone")
    small = "[...document.querySelectorAll('button, select, input, .button')].filter((one) => one.offsetHeight && "
    assert browser.run(f"{small} one.offsetHeight < 32).length") == 0  # fingers
    browser.click("#counts summary")
    browser.click(".class")
    browser.wait(lambda: browser.all("#picked button"), "the filter")
    browser.click(".tile")
    browser.wait(lambda: browser.run("document.querySelector('.kind-image img')?.naturalWidth"), "the image")
    assert fits()
    browser.shoot("phone-sample")


def test_with_the_keyboard_alone(browser: Browser, live: Live) -> None:
    show(browser, live)
    keys(browser, ALL)
    browser.press(TAB)
    assert browser.run("document.activeElement.id") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().top") >= 0
    browser.press(ENTER)
    assert browser.run("document.activeElement.id") == "samples"
    browser.press("j", DOWN)
    assert browser.run("document.activeElement.querySelector('.key').textContent") == ALL[6].key
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert browser.run("document.querySelectorAll('.tile[tabindex=\"0\"]').length") == 1
    browser.press("?")
    assert browser.run("document.querySelector('#keys').open")
    assert "loss number" in browser.text("#columns")
    browser.shoot("help")
    browser.press(ESCAPE)
    assert not browser.run("document.querySelector('#keys').open")
    browser.press("f")
    assert browser.run("document.activeElement.id") == "where"
    browser.press("j?t/")  # text, in a field
    assert browser.one("#where").get_attribute("value") == "j?t/"


def test_controls_have_names(browser: Browser, live: Live) -> None:
    show(browser, live)
    keys(browser, ALL)
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored") and "role" in node:
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "link", "textbox", "searchbox", "combobox"):
        assert named.get(role), role
        assert all(named[role]), (role, named[role])
    assert "Samples" in named["main"]
    assert "search" in named


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Live]:
    with serving(folder.parent, folder, "--access-log", folder.parent / "access", env={"WDS_TOKEN": "s3cret"}) as live:
        yield live


def test_a_token_in_the_url(browser: Browser, guarded: Live, folder: Path) -> None:
    browser.open(f"{guarded.url}/?token=s3cret#key=0001")
    keys(browser, [one for one in ALL if "0001" in one.key])
    assert "s3cret" not in browser.driver.current_url
    browser.wait(lambda: browser.run(OPENED) >= 9, "thumbnails")
    assert not [url for url in browser.requests("/-/") if "s3cret" in url]  # in a header, then
    assert not browser.all("#files")[0].is_displayed()  # links bring no token
    browser.click(".tile")
    browser.wait(lambda: browser.run("document.querySelector('.kind-image img')?.naturalWidth"), "the image")
    browser.wait(lambda: browser.run("document.querySelector('audio').duration") == 1, "the sound")
    browser.driver.refresh()
    browser.wait(lambda: browser.all(".sample-head"), "it is kept")
    assert "s3cret" not in (folder.parent / "access").read_text()


@pytest.mark.may_complain("401")
def test_a_token_is_asked_for(browser: Browser, guarded: Live) -> None:
    browser.open(f"{guarded.url}/")
    browser.wait(lambda: browser.run("document.querySelector('#ask').open"), "the question")
    browser.shoot("token")
    assert browser.all(".tile") == []
    browser.press("wrong", ENTER)
    browser.wait(lambda: len(browser.requests("/-/samples")) > 1, "the second attempt")
    browser.wait(lambda: browser.run("document.querySelector('#ask').open"), "the question again")
    browser.press("s3cret", ENTER)
    keys(browser, ALL)
