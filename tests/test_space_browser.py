"""The Space as a visitor meets it: in Debian's Chromium, and through gradio's client."""

import io
import json
import shutil
import subprocess
import time
import zipfile

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_space import ANSWERED, REFUSED, comparing, page, save_tiny_models, save_uploads, zoo_module

from hf_ris.data.schema import decode_mask
from hf_ris.models.video_files import write_video


FRONT = page.FRONT
CHROMIUM, DRIVER, NPM = shutil.which("chromium"), shutil.which("chromedriver"), shutil.which("npm")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1440,900"
).split()

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Debian's chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def runs():
    """(model, expressions) of every forward pass of the server."""
    return []


@pytest.fixture(scope="module")
def server(tmp_path_factory, runs):
    """The page's address: tiny random models, and a baseline whose weights cannot be had."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny_models(folder)
    run_model = comparing.run_model

    def counted(entry, loaded, picture, expressions, device):
        runs.append((entry.key, expressions))
        if "slow" in expressions[0]:
            time.sleep(5)
        return run_model(entry, loaded, picture, expressions, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "run_model", counted)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "empty"))
        zoo = zoo_module.Zoo(folder, allow_folders=True, baselines=["grounded-sam"])
        demo = page.build(comparing.Comparer(zoo))
        address = page.launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")[1]
        yield address
        demo.close()


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    return save_uploads(tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    yield driver
    driver.quit()


class Visit:
    """What a visitor can do and see."""

    def __init__(self, driver, address: str, query: str = "", size: tuple[int, int] = (1440, 900)):
        self.driver = driver
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(address + query)
        try:
            self.wait(self.is_answered)
        except TimeoutException as error:
            logged = [entry["message"] for entry in driver.get_log("browser")]
            raise AssertionError(
                f"no answer: {self.text('notice')!r} {self.text('progress-text')!r} {logged}"
            ) from error

    def wait(self, condition, seconds: float = 120):
        return WebDriverWait(self.driver, seconds, poll_frequency=0.1).until(lambda _: condition())

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def is_answered(self) -> bool:
        return "answered" in self.text("status") and self.part("stop").get_attribute("hidden") is not None

    def part(self, name: str):
        (found,) = self.all(f"[data-part='{name}']") or [None]
        return found

    def text(self, name: str) -> str:
        return self.run("return document.querySelector(`[data-part='${arguments[0]}']`)?.textContent ?? ''", name)

    def shown(self, name: str) -> str:
        """The text of a part, "" while it is hidden."""
        part = self.part(name)
        return part.text if part.is_displayed() else ""

    def all(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def labels(self, selector: str = "td button.ris-cell") -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.getAttribute('aria-label') ?? '')"
        return self.run(script, selector)

    def pictures(self, selector: str = "td canvas") -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map(one => one.toDataURL())", selector)

    def write(self, text: str, *keys) -> None:
        box = self.part("text")
        box.send_keys(Keys.CONTROL, "a")
        lines = text.split("\n")
        for line in lines[:-1]:
            box.send_keys(line, Keys.SHIFT, Keys.ENTER, Keys.NULL)
        box.send_keys(lines[-1], *keys)

    def segment(self, text: str | None = None) -> None:
        """Ask, and wait for the end."""
        self.run("document.querySelector(`[data-part='status']`).textContent = ''")
        if text is None:
            self.part("segment").click()
        else:
            self.write(text, Keys.ENTER)
        self.wait(self.is_answered)

    def open(self, start: str):
        """Open the cell whose label begins so; returns the dialog."""
        (cell,) = [one for one in self.all("td button.ris-cell") if one.get_attribute("aria-label").startswith(start)]
        cell.click()
        return self.wait(lambda: self.all("dialog[open]"))[0]

    def press(self, dialog, text: str) -> None:
        next(button for button in dialog.find_elements(By.TAG_NAME, "button") if button.text == text).click()

    def requests(self) -> int:
        return self.run("return performance.getEntriesByType('resource').filter(e => e.name.startsWith('http')).length")


@pytest.fixture
def visit(browser, server):
    return Visit(browser, server)


# the first screen, and asking


def test_an_example_is_answered_when_the_page_opens(visit):
    rows = visit.run("return [...document.querySelectorAll('.ris-expression')].map(one => one.textContent)")
    assert rows == ["the blue fish", "the blue crescent on the left side", "the yellow fish below the large fish"]
    heads = visit.run("return [...document.querySelectorAll('.ris-name')].map(one => one.textContent)")
    assert heads == ["Truth", "LAVT", "LTS", "Agreement"]
    pictures = visit.pictures()
    assert len(pictures) == 3 * 4 and len(set(pictures)) > 8  # an untrained model may find nothing
    assert all("IoU 0." in label for label in visit.labels("td[data-label='LAVT'] button"))
    assert "2 models answered 3 expressions" in visit.text("status")


@pytest.mark.parametrize("size", [(1280, 720), (1440, 900), (390, 844)])
def test_picture_text_and_button_are_seen_together(browser, server, size):
    visit = Visit(browser, server, size=size)
    for name in ("preview", "text", "segment"):
        box = visit.run(
            "return document.querySelector(`[data-part='${arguments[0]}']`).getBoundingClientRect().toJSON()", name
        )
        assert 0 <= box["top"] and box["bottom"] <= size[1] and 0 <= box["left"] and box["right"] <= size[0], name


@pytest.mark.parametrize("keys", [(Keys.ENTER,), (Keys.CONTROL, Keys.ENTER, Keys.NULL)], ids=["Enter", "Ctrl+Enter"])
def test_enter_segments_and_shift_enter_is_a_new_line(visit, runs, keys):
    runs.clear()
    visit.run("document.querySelector(`[data-part='status']`).textContent = ''")
    visit.write(f"the red star {len(keys)}\nleft car {len(keys)}", *keys)
    visit.wait(visit.is_answered)
    assert runs == [(key, [f"the red star {len(keys)}", f"left car {len(keys)}"]) for key in ("lavt", "lts")]
    assert "2 expressions" in visit.text("status")


def test_further_expressions_of_a_scene_take_one_line_until_all_are_wanted(visit):
    def shown():
        return [one.text for one in visit.all("[data-part='known'] .ris-known-list button") if one.is_displayed()]

    few = shown()
    visit.all("[data-part='known'] > button")[0].click()
    assert 0 < len(few) < len(shown())
    one = shown()[-1]
    next(button for button in visit.all(".ris-known-list button") if button.text == one).click()
    assert one in visit.part("text").get_attribute("value").split("\n")
    visit.all("[data-part='known'] > button")[0].click()
    assert shown() == few


def test_results_are_marked_as_stale_until_asked_again(visit):
    assert visit.shown("stale") == ""
    visit.write("the moon")
    assert "earlier results" in visit.shown("stale")
    visit.run("document.querySelector(`[data-part='status']`).textContent = ''")
    visit.part("again").click()
    visit.wait(visit.is_answered)
    assert visit.shown("stale") == ""
    visit.all(".ris-chip input")[0].click()
    assert "earlier results" in visit.shown("stale")


def test_refusals_are_sentences_and_results_stay(visit):
    before = visit.pictures()
    visit.write(" ", Keys.ENTER)
    assert "There is no expression yet" in visit.shown("notice")
    visit.write("star\n" * 9 + "car", Keys.ENTER)
    visit.wait(lambda: "at most 8 expressions" in visit.shown("notice"))
    assert visit.pictures() == before


def test_on_the_phone_the_result_comes_into_view(browser, server):
    visit = Visit(browser, server, size=(390, 844))
    visit.segment()
    script = "return document.querySelector('.ris-results').getBoundingClientRect().top"
    visit.wait(lambda: 0 <= visit.run(script) < 60, 10)
    assert visit.run("return document.documentElement.scrollWidth") <= 390


# the comparison


def test_sliding_redraws_without_a_request(visit, runs):
    runs.clear()
    before, requests = visit.pictures(), visit.requests()
    slide = """const slider = document.querySelector(arguments[0]); slider.value = arguments[1];
        slider.dispatchEvent(new Event('input', { bubbles: true }))"""
    visit.run(slide, "th[data-model='lts'] input", 0.9)
    visit.wait(lambda: visit.pictures() != before)
    after = visit.pictures()
    changed = [k for k in range(len(before)) if before[k] != after[k]]
    assert changed and {k % 4 for k in changed} <= {2, 3}  # LTS's column, and agreement
    visit.part("common").click()
    visit.run(slide, "[data-part='threshold']", 0.7)
    visit.wait(lambda: visit.text("threshold-value") == "0.70" and visit.pictures() != after)
    assert visit.requests() == requests and runs == []


def test_outlines_enclose_what_lies_above_the_threshold(visit):
    """Border lines of a map, holes and corners that touch included: closed, each in its place."""
    script = """const [url, done] = arguments; import(url).then(({ outline }) => {
        const rows = ["......", ".####.", ".#..#.", ".####.", "....#.", "#....#"];
        const values = Uint8Array.from(rows.join(""), (sign) => (sign === "#" ? 255 : 0));
        const areaOf = (line) => Math.abs(line.reduce((sum, x, k) => {
            const [y, a, b] = [line[k + 1], line[(k + 2) % line.length], line[(k + 3) % line.length]];
            return k % 2 ? sum : sum + x * b - a * y; }, 0)) / 2;
        done([0.5, 1].map((threshold) => outline({ width: 6, height: 6, values }, threshold).map(areaOf))); })"""
    url = visit.run("return new URL('gradio_api/file=' + arguments[0] + '/maps.js', document.baseURI).href", str(FRONT))
    half, all_of_it = visit.driver.execute_async_script(script, url)
    # pixels less 1/8 for each corner of a line, plus 1/8 where it turns the other way: a pixel alone is a diamond
    assert sorted(half) == pytest.approx([0.5, 0.5, 2 - 4 / 8, 13 - 5 / 8 + 1 / 8], abs=1e-3)
    assert all_of_it == []


def test_views_and_order_need_no_server(visit):
    requests = visit.requests()
    seen = {tuple(visit.pictures())}
    for button in visit.all("[data-part='views'] button")[1:]:
        button.click()
        seen.add(tuple(visit.pictures()))
    assert len(seen) == 3
    heads = "[...document.querySelectorAll('th[data-model]')]"
    ious = visit.run(f"return {heads}.map(one => [one.dataset.model, one.textContent])")
    order = "const order = document.querySelector(`[data-part='order']`); order.value = 'iou'; "
    visit.run(order + "order.dispatchEvent(new Event('change'))")
    wanted = [key for key, text in sorted(ious, key=lambda row: -float(row[1].split("IoU ")[1][:4]))]
    assert visit.run(f"return {heads}.map(one => one.dataset.model)") == wanted
    assert visit.requests() == requests


def test_one_expression_alone(visit):
    visit.all(".ris-expression")[1].click()
    assert visit.run("return [...document.querySelectorAll('tbody tr')].map(row => row.hidden)") == [True, False, True]
    visit.all(".ris-expression[aria-pressed='true']")[0].click()
    assert visit.run("return [...document.querySelectorAll('tbody tr')].some(row => row.hidden)") is False


def test_a_cell_opens_large_with_the_views_that_its_model_has(visit):
    dialog = visit.open("LTS, the blue fish")
    views = [button.text for button in dialog.find_elements(By.CSS_SELECTOR, ".ris-views button")]
    assert views == ["Outline", "Probability", "Errors", "Location", "Difference"]
    seen = set()
    for view in views:
        visit.press(dialog, view)
        time.sleep(0.3)
        seen.add(visit.pictures("dialog canvas")[0])
    assert len(seen) == len(views)
    visit.press(dialog, "Outline")
    before = visit.pictures("dialog canvas")
    visit.press(dialog, "+")
    visit.wait(lambda: visit.pictures("dialog canvas") != before)
    dialog.find_element(By.CSS_SELECTOR, "[aria-label='Previous model']").click()
    assert "LAVT: the blue fish" in dialog.text and "Location" not in dialog.text
    visit.press(dialog, "Close")
    assert not visit.all("dialog[open]")


def test_which_words_matter(visit, runs):
    dialog = visit.open("LTS, the blue fish")
    runs.clear()
    visit.press(dialog, "Which words matter?")
    visit.wait(lambda: len(dialog.find_elements(By.CSS_SELECTOR, ".ris-words span")) == 3)
    words = [span.text.split("\n") for span in dialog.find_elements(By.CSS_SELECTOR, ".ris-words span")]
    assert [word for word, _ in words] == ["the", "blue", "fish"] and all(change.endswith("%") for _, change in words)
    assert runs == [("lts", ["blue fish", "the fish", "the blue"])]


def test_agreement_and_the_difference_of_two(visit):
    label = visit.labels("td.ris-agreement button")[0]
    assert "of 2 models agree on the blue fish" in label
    dialog = visit.open(label)
    assert "IoU of every two" in dialog.text
    dialog.find_element(By.CSS_SELECTOR, "[aria-label^='LAVT and LTS: IoU']").click()
    visit.wait(lambda: "Blue: only LAVT. Orange: only LTS." in dialog.text)


def test_a_model_that_cannot_be_loaded_is_a_cell_with_its_sentence(visit):
    visit.all(".ris-chip input[value='grounded-sam']")[0].click()
    visit.segment()
    failed = visit.run("return document.querySelector(\"td[data-label='Grounding DINO + SAM']\").textContent")
    assert "could not be loaded: The weights of" in failed
    assert all("Show large" in label for label in visit.labels("td[data-label='LTS'] button"))


def test_stop(visit):
    visit.run("document.querySelector(`[data-part='status']`).textContent = ''")
    visit.write("slow star", Keys.ENTER)
    visit.wait(lambda: visit.part("stop").is_displayed() and visit.part("progress-bar").is_displayed())
    start = time.monotonic()
    visit.part("stop").click()
    visit.wait(lambda: "stopped" in visit.text("status") or not visit.part("stop").is_displayed())
    assert time.monotonic() - start < 4


def test_a_link_reproduces_a_comparison(browser, server, visit):
    visit.all("[data-example='cars']")[0].click()
    visit.wait(lambda: "example=cars" in visit.driver.current_url)
    visit.wait(visit.is_answered)
    visit.all(".ris-chip input")[0].click()
    visit.segment("the green key\nyellow car")
    wanted, link = visit.pictures(), visit.driver.current_url
    browser.get("about:blank")
    again = Visit(browser, link)
    assert again.pictures() == wanted and again.driver.current_url == link


# a visitor's own picture


def choose_file(visit, path) -> None:
    visit.part("file").send_keys(str(path))
    visit.wait(lambda: "ris-busy" not in visit.part("drop").get_attribute("class"))


@pytest.mark.parametrize("name", ["phone.jpg", "16bit.png", "cmyk.jpg", "animated.gif", "truncated.jpg", "text.jpg"])
def test_uploads_by_the_file_dialog(visit, uploads, name):
    choose_file(visit, uploads[name])
    if name in ANSWERED:
        visit.segment("star")
        assert visit.shown("notice") == "" and "example=" not in visit.driver.current_url
        assert visit.all("td[data-label='Truth']") == []
    else:
        visit.wait(lambda: visit.shown("notice"))
        assert REFUSED[name] in visit.shown("notice")


def test_a_photograph_is_told_once_what_the_models_know(visit, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg")
    choose_file(visit, tmp_path / "photo.jpg")
    visit.wait(lambda: "This looks like a photograph" in visit.shown("banner"))
    visit.all("[data-part='banner'] button")[0].click()
    chosen = visit.run("return [...document.querySelectorAll('.ris-chip input:checked')].map(one => one.value)")
    assert chosen == ["lavt", "grounded-sam"]  # those that do not say that they know scenes alone


def test_a_heic_file_is_explained(visit, tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    choose_file(visit, tmp_path / "photo.heic")
    visit.wait(lambda: "HEIC photograph" in visit.shown("notice"))


def test_add_a_model(visit, tmp_path):
    save_tiny_models(tmp_path)
    next(button for button in visit.all(".ris-chips button") if "Add a model" in button.text).click()
    visit.part("reference").send_keys("no/such/model", Keys.ENTER)
    visit.wait(lambda: "is not one" in visit.text("add-message"))
    visit.part("reference").send_keys(Keys.CONTROL, "a")
    visit.part("reference").send_keys(str(tmp_path / "lavt"), Keys.ENTER)
    visit.wait(lambda: "is added" in visit.text("add-message"))
    visit.segment("star")
    assert len(visit.all("th[data-model]")) == 3


def test_files_to_take_away(visit, downloads):
    visit.segment("the red star\nleft car")
    visit.part("common").click()
    for kind, ending in (("masks", "zip"), ("cutouts", "zip"), ("coco", "json")):
        visit.all(f"[data-take='{kind}']")[0].click()
        visit.wait(lambda kind=kind, ending=ending: (downloads / f"fishes-{kind}.{ending}").exists())
    content = json.loads((downloads / "fishes-coco.json").read_text())
    archive = zipfile.ZipFile(downloads / "fishes-masks.zip")
    found = [(annotation["model"], annotation["expression"]) for annotation in content["annotations"]]
    assert found == [(key, text) for key in ("lavt", "lts") for text in ("the red star", "left car")]
    assert [annotation["threshold"] for annotation in content["annotations"]] == [0.5] * 4
    for name, annotation in zip(archive.namelist(), content["annotations"]):
        mask = np.asarray(Image.open(io.BytesIO(archive.read(name)))) > 0
        np.testing.assert_array_equal(mask, decode_mask(annotation["segmentation"]))
    assert len(zipfile.ZipFile(downloads / "fishes-cutouts.zip").namelist()) == 4


# moving pictures


def open_video(visit) -> None:
    next(tab for tab in visit.all("[role=tab]") if tab.text == "Video").click()
    visit.wait(lambda: "answered" in visit.text("video-status"))


def test_a_video_is_answered_and_the_slider_over_time_asks_nothing(visit, browser, server, downloads):
    open_video(visit)
    assert "2 models answered 3 expressions" in visit.text("video-status")
    assert [head.text for head in visit.all("#ris-video thead .ris-name")] == ["Truth", "LAVT", "LTS"]
    assert visit.text("video-play") == "Pause"  # it plays
    visit.part("video-play").click()
    seen, requests = set(), visit.requests()
    for frame in range(3):
        visit.run("const slider = document.querySelector(`[data-part='video-frame']`); slider.value = arguments[0];"
                  "slider.dispatchEvent(new Event('input'))", frame)  # fmt: skip
        assert visit.text("video-place") == f"frame {frame + 1} of 8"
        pictures = visit.pictures("#ris-video td canvas")
        assert len(pictures) == 9
        seen.add(tuple(pictures))
    assert len(seen) == 3 and visit.requests() == requests
    visit.part("video-take").click()
    visit.wait(lambda: (downloads / "fishes-lavt.mp4").exists())


def test_a_visitors_video(visit, tmp_path):
    open_video(visit)
    write_video(tmp_path / "mine.gif", [Image.new("RGB", (60, 40), (40 * k,) * 3) for k in range(5)], 10)
    visit.part("video-file").send_keys(str(tmp_path / "mine.gif"))
    visit.wait(lambda: "of 5" in visit.text("video-place"))
    assert visit.part("video-text").get_attribute("value") == ""  # an example's words say nothing of it
    visit.part("video-text").send_keys("the star", Keys.ENTER)
    visit.wait(lambda: "answered" in visit.text("video-status"))
    assert "Truth" not in [head.text for head in visit.all("#ris-video thead .ris-name")]
    visit.part("video-text").send_keys(" on the left")
    assert "earlier results" in visit.shown("video-stale")
    (tmp_path / "text.mp4").write_text("no video")
    visit.part("video-file").send_keys(str(tmp_path / "text.mp4"))
    visit.wait(lambda: "not a video that can be read" in visit.shown("video-notice"))


# for everyone


def test_everything_by_the_keyboard(visit):
    """From the text to a cell's large view and back, without a pointer."""
    visit.part("text").click()
    visit.run("document.querySelector(`[data-part='status']`).textContent = ''")
    visit.write("the red star", Keys.ENTER)
    visit.wait(visit.is_answered)
    active = webdriver.ActionChains(visit.driver)
    for _ in range(80):
        active.send_keys(Keys.TAB).perform()
        label = visit.run("return document.activeElement.getAttribute('aria-label') ?? ''")
        if label.startswith("LTS, the red star"):
            break
    assert label.startswith("LTS, the red star")
    webdriver.ActionChains(visit.driver).send_keys(Keys.ENTER).perform()
    dialog = visit.wait(lambda: visit.all("dialog[open]"))[0]
    reached = set()
    for _ in range(30):
        webdriver.ActionChains(visit.driver).send_keys(Keys.TAB).perform()
        element = visit.driver.switch_to.active_element
        reached.add(element.get_attribute("aria-label") or element.text)
    assert {"Probability", "Location", "Zoom in", "Threshold of LTS", "Which words matter?", "Close"} <= reached
    webdriver.ActionChains(visit.driver).send_keys(Keys.ESCAPE).perform()
    visit.wait(lambda: not dialog.is_displayed())
    assert visit.run("return document.activeElement.getAttribute('aria-label')").startswith("LTS, the red star")


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    if NPM is None:
        pytest.fail("axe-core comes by npm, which is not installed")
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run([NPM, "install", "--silent", "--prefix", str(folder), "axe-core@4"], check=True, timeout=120)
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


def violations(visit, axe: str) -> list[str]:
    """Serious and critical ones, with the elements."""
    visit.run(axe)
    found = visit.driver.execute_async_script(
        "axe.run(document, { resultTypes: ['violations'] }).then(result => arguments[0](result.violations))"
    )
    return [
        f"{one['id']}: {[node['html'][:200] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_axe_finds_no_serious_violation(browser, server, axe, theme, size):
    visit = Visit(browser, server, f"?__theme={theme}", size)
    assert violations(visit, axe) == []
    visit.open("LTS, the blue fish")
    assert violations(visit, axe) == []
    visit.driver.get(f"{server}?__theme={theme}")
    visit.wait(visit.is_answered)
    open_video(visit)
    visit.part("video-play").click()
    assert violations(visit, axe) == []
    next(tab for tab in visit.all("[role=tab]") if tab.text == "Leaderboard").click()
    visit.wait(lambda: visit.all(".ris-board table") and not visit.all(".pending"))
    time.sleep(0.5)  # gradio fades in what it has loaded
    assert violations(visit, axe) == []


def test_the_leaderboard_tab(visit):
    next(tab for tab in visit.all("[role=tab]") if tab.text == "Leaderboard").click()
    visit.wait(lambda: visit.all(".ris-board tbody th"))
    assert {row.text for row in visit.all(".ris-board tbody th")} == {"LAVT", "LTS"}
    assert "ms" in visit.all(".ris-board tbody")[0].text  # measured here


def test_nothing_comes_from_elsewhere(browser, server):
    browser.get("about:blank")
    browser.get_log("browser")  # forget what other tests left, such as streams cut off by leaving their page
    visit = Visit(browser, server)
    urls = visit.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [url for url in urls if not url.startswith((server, "data:", "blob:"))] == []
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling(browser, server, width):
    visit = Visit(browser, server, size=(width, 844))
    visit.segment("the star " * 40 + "\n" + "x" * 300 + "\nالكرة الحمراء")
    assert len(visit.all("tbody tr")) == 3
    assert visit.run("return document.documentElement.scrollWidth <= window.innerWidth")


# the endpoint


@pytest.fixture(scope="module")
def client(server):
    return Client(server, verbose=False)


def test_endpoint(client, uploads):
    arguments = {"image": handle_file(uploads["phone.jpg"]), "expressions": "star\nred car", "threshold": 0.0}
    result = client.predict(**arguments, api_name="/segment")
    assert result["images"] == [{"id": 1, "file_name": "phone.jpg", "width": 1500, "height": 2000}]
    assert [annotation["area"] for annotation in result["annotations"]] == [1500 * 2000] * 4
    assert [model["model"] for model in result["models"]] == ["lavt", "lts"]
    result = client.predict(**arguments | {"threshold": None, "models": ["lts"]}, api_name="/segment")
    assert {annotation["threshold"] for annotation in result["annotations"]} == {0.25}


@pytest.mark.parametrize("name", [*ANSWERED, *REFUSED])
def test_endpoint_with_every_upload(client, uploads, name):
    def call():
        return client.predict(handle_file(uploads[name]), "star", ["lts"], None, api_name="/segment")

    if name in ANSWERED:
        assert call()["images"][0]["width"] == ANSWERED[name][0]
    else:
        with pytest.raises(AppError, match=REFUSED[name]):
            call()
