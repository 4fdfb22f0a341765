"""The Space as a visitor meets it: in Debian's Chromium, and through gradio's client."""

import io
import json
import shutil
import time
import zipfile

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_space import ANSWERED, REFUSED, app, inference, save_tiny_models, save_uploads, zoo_module

from hf_ris.data.schema import decode_mask


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,1400"
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
    """The page's address, with tiny random models."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny_models(folder)
    run_model = inference.run_model

    def counted(entry, loaded, picture, expressions, device):
        runs.append((entry.key, expressions))
        return run_model(entry, loaded, picture, expressions, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "run_model", counted)
        demo = app.build(zoo_module.Zoo(folder, allow_folders=True))
        address = app.launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")[1]
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
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    yield driver
    driver.quit()


class Page:
    """What a visitor can do and see."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.all("#ris-examples img") and self.all(".ris-welcome"))

    def wait(self, condition, seconds: float = 120):
        return WebDriverWait(self.driver, seconds, poll_frequency=0.1).until(lambda _: condition())

    def all(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def pictures(self) -> list[str]:
        """The sources of the pictures in the cards, in one look: cards are replaced while they are read."""
        script = "return [...document.querySelectorAll('.ris-card img')].map(image => image.src)"
        return self.driver.execute_script(script)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText)"
        return self.driver.execute_script(script, selector)

    def write(self, text: str) -> None:
        (box,) = self.all("#ris-text textarea")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text)

    def segment(self) -> None:
        self.all("#ris-segment")[0].click()

    def example(self, number: int) -> None:
        """Click on an example, and wait for what it starts."""
        before = self.pictures()
        self.all("#ris-examples button")[number].click()
        self.wait(lambda: self.pictures() and self.pictures() != before)


@pytest.fixture
def page(browser, server):
    return Page(browser, server)


def test_segment_move_the_threshold_and_download(page, runs, downloads):
    page.example(0)
    page.write("the red star\nleft car")
    before = page.pictures()
    runs.clear()
    page.segment()
    page.wait(lambda: page.texts(".ris-text") == ["the red star", "left car"] * 2)
    assert runs == [
        (key, ["the red star", "left car"]) for key in ("lavt", "lts")
    ]  # once each, all expressions together
    assert page.texts(".ris-card h3") == ["LAVT", "LTS"]
    assert page.texts(".ris-note") == ["trained on RefScenes: drawn scenes, not photographs"]
    first = page.pictures()
    assert len(first) == 2 and first != before
    assert page.driver.execute_script(
        "return [...document.querySelectorAll('.ris-card img')].every(i => i.naturalWidth)"
    )

    number = page.all(".ris-threshold input[type=number]")[1]
    page.wait(number.is_enabled)
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("1", Keys.TAB)
    page.wait(lambda: page.texts(".ris-score")[2:] == ["nothing", "nothing"])
    assert page.pictures()[0] == first[0] and page.pictures()[1] != first[1]
    assert len(runs) == 2  # no model ran

    for kind in ("zip", "json"):
        page.all(f"#ris-make-{kind}")[0].click()
        page.wait(lambda kind=kind: [path for path in downloads.iterdir() if path.name.endswith(f"-masks.{kind}")])
    content = json.loads((downloads / "fishes-masks.json").read_text())
    archive = zipfile.ZipFile(downloads / "fishes-masks.zip")
    found = [(annotation["model"], annotation["expression"]) for annotation in content["annotations"]]
    assert found == [(key, text) for key in ("lavt", "lts") for text in ("the red star", "left car")]
    assert [annotation["threshold"] for annotation in content["annotations"]] == [0.5, 0.5, 1, 1]
    for name, annotation in zip(archive.namelist(), content["annotations"]):
        mask = np.asarray(Image.open(io.BytesIO(archive.read(name)))) > 0
        np.testing.assert_array_equal(mask, decode_mask(annotation["segmentation"]))
        assert mask.any() == (annotation["model"] == "lavt")


def test_the_slider_cuts_while_it_is_dragged(page, runs):
    page.example(1)
    runs.clear()
    slider = page.all(".ris-threshold input[type=range]")[0]
    page.wait(slider.is_enabled)
    before = page.pictures()
    slider.send_keys(Keys.ARROW_RIGHT * 30)
    page.wait(lambda: page.pictures()[0] != before[0])
    assert page.pictures()[1] == before[1] and runs == []


def test_views(page, runs):
    page.example(1)
    runs.clear()
    count = len(app.examples()[1]["expressions"])
    labels = {label.text: label for label in page.all("#ris-view label")}
    labels["Probability"].click()
    page.wait(lambda: len(page.pictures()) == 2 * count)
    assert page.texts(".ris-card figcaption") == app.examples()[1]["expressions"] * 2
    labels["Location"].click()
    page.wait(lambda: len(page.pictures()) == count)
    assert page.texts(".ris-empty") == ["LAVT has no localisation map."]
    assert runs == []


def test_one_model_less_is_one_card_less(page):
    page.example(2)
    page.all("#ris-models label")[0].click()
    page.segment()
    page.wait(lambda: page.texts(".ris-card h3") == ["LTS"])


def test_refusals_are_sentences_on_the_page_and_results_stay(page):
    page.example(0)
    page.write(" ")
    page.segment()
    page.wait(lambda: page.texts(".ris-notice"))
    assert "There is no expression yet" in page.texts(".ris-notice")[0]
    assert len(page.pictures()) == 2
    page.write("star")
    page.segment()
    page.wait(lambda: not page.texts(".ris-notice"))


@pytest.mark.parametrize("name", ["phone.jpg", "16bit.png", "cmyk.jpg", "animated.gif", "truncated.jpg", "text.jpg"])
def test_uploads_by_the_file_dialog(page, uploads, name):
    page.all("#ris-image input[type=file]")[0].send_keys(str(uploads[name]))
    page.wait(lambda: page.all("#ris-image img"))
    page.write("star")
    page.segment()
    if name in ANSWERED:
        page.wait(lambda: len(page.pictures()) == 2)
        assert page.texts(".ris-notice") == []
    else:
        page.wait(lambda: page.texts(".ris-notice"))
        assert REFUSED[name] in page.texts(".ris-notice")[0] and page.pictures() == []


def test_add_a_model(page, tmp_path):
    save_tiny_models(tmp_path)
    page.all("#ris-add button")[0].click()
    box = page.wait(lambda: page.all("#ris-add input, #ris-add textarea"))[0]
    page.wait(box.is_displayed)
    box.send_keys("no/such/model", Keys.ENTER)
    page.wait(lambda: page.texts("#ris-add .ris-notice"))
    assert "no/such/model" in page.texts("#ris-add .ris-notice")[0]
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(str(tmp_path / "lavt"), Keys.ENTER)
    page.wait(lambda: len(page.all("#ris-models input:checked")) == 3)
    page.example(0)
    page.wait(lambda: len(page.texts(".ris-card h3")) == 3)


def test_nothing_comes_from_elsewhere(browser, server):
    browser.get("about:blank")
    browser.get_log("browser")  # forget what other tests left, such as streams cut off by leaving their page
    page = Page(browser, server)
    page.example(0)
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert [url for url in browser.execute_script(script) if not url.startswith((server, "data:", "blob:"))] == []
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling(page, width):
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.example(0)
    page.write("the star " * 40 + "\n" + "x" * 300 + "\nالكرة الحمراء")
    page.segment()
    page.wait(lambda: len(page.texts(".ris-text")) == 6)
    script = """const width = selector => [...document.querySelectorAll(selector)].map(e => e.getBoundingClientRect())
        return width('.ris-score').every((score, k) => score.right <= width('.ris-panel')[Math.floor(k / 3)].right)"""
    assert page.driver.execute_script(script)
    assert page.driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expressions": ""}, "no expression yet"),
        ({"image": None}, "no picture yet"),
        ({"threshold": 2}, "The threshold is a probability"),
        ({"models": ["nothing"]}, "no model “nothing”"),
    ],
)
def test_endpoint_refuses_in_one_sentence(client, uploads, changes, sentence):
    arguments = {"image": handle_file(uploads["grey.png"]), "expressions": "star", "models": ["lts"], "threshold": None}
    with pytest.raises(AppError, match=sentence):
        client.predict(**arguments | changes, api_name="/segment")


def test_endpoint_cannot_read_the_servers_files(server, uploads):
    """By hand, since the client would upload the file."""
    image = {"path": str(uploads["grey.png"]), "meta": {"_type": "gradio.FileData"}}
    endpoint = f"{server}gradio_api/call/segment"
    event = httpx.post(endpoint, json={"data": [image, "star", ["lts"], None]}).json()["event_id"]
    assert httpx.get(f"{endpoint}/{event}", timeout=60).text.startswith("event: error")


def test_the_server_is_still_up(client, uploads):
    """After all of the above."""
    start = time.perf_counter()
    assert client.predict(handle_file(uploads["grey.png"]), "star", ["lts"], None, api_name="/segment")["annotations"]
    assert time.perf_counter() - start < 30
