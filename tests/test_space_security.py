"""The Space's server as a stranger meets it: no file but uploads can be had, and nobody's slowness stops the others."""

import json
import os
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image
from test_space import SPACE, Refusal, comparing, opening, page, pictures, save_tiny_models, zoo_module


Picture, open_picture = pictures.Picture, pictures.open_picture


# one for all questions, since making one reads every certificate; no connection is used twice, as after an error of
# gradio's own (it has no second version of undocumented events) the server closes it
WEB = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
MARKS = (  # beside "path": what a request may say of it
    {},
    {"meta": {"_type": "gradio.FileData"}},
    {"meta": {"_type": "something else"}},
    {"meta": "gradio.FileData"},
    {"meta": {"_type": "gradio.FileData"}, "is_stream": True},
    {"meta": {"_type": "gradio.FileData"}, "url": "file://{path}", "orig_name": "picture.png"},
)
WRAPPINGS = (  # where in an input it may stand
    lambda file: file,
    lambda file: [file],
    lambda file: {
        "image": file,
        "picture": file,
        "video": file,
        "value": file,
        "expressions": ["star"],
        "models": ["lts"],
    },
    lambda file: {"background": file, "layers": [file], "composite": file},
    lambda file: json.dumps(file),
    lambda file: file["path"],
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny_models(folder)
    demo = page.build(comparing.Comparer(zoo_module.Zoo(folder, allow_folders=False)))
    address = page.launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")[1]
    yield demo, address.rstrip("/")
    demo.close()


@pytest.fixture(scope="module")
def client(server):
    return Client(server[1], verbose=False)


@pytest.fixture(scope="module")
def opened():
    """Every path that anything in this process opens from here on."""
    paths = []
    watching = [True]
    sys.addaudithook(lambda event, arguments: watching[0] and event == "open" and paths.append(str(arguments[0])))
    yield paths
    watching[0] = False


@pytest.fixture
def picture(tmp_path):
    Image.effect_noise((40, 30), 60).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def ask(address: str, function, data: list, every_way: bool = False) -> list[str]:
    """What the server answers to an event, through the queue of the page or by every way there is."""
    name = function.api_name or f"function-{function._id}"
    session = f"session{time.monotonic_ns()}"
    body = {"data": data, "fn_index": function._id, "session_hash": session}
    answers = []
    api = f"{address}/gradio_api"
    if WEB.post(f"{api}/queue/join", json=body).status_code == 200:
        answers.append(WEB.get(f"{api}/queue/data", params={"session_hash": session}).text)
    for way in ("run", "api") if every_way else ():
        answers.append(WEB.post(f"{api}/{way}/{name}", json=body).text)
    for way in ("call", "call/v2") if every_way else ():
        joined = WEB.post(f"{api}/{way}/{name}", json={"data": data})
        answers.append(joined.text)
        if joined.status_code == 200:
            answers.append(WEB.get(f"{api}/{way}/{name}/{joined.json()['event_id']}").text)
    assert answers
    return answers


def plain(answer: str, path: str) -> list:
    """What an answer of the queue says, without what differs between any two requests."""
    answer = answer.replace(path, "PATH").replace(Path(path).name, "NAME")
    messages = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line.startswith("data: ")]
    outputs = [message["output"] for message in messages if "output" in message]
    return [(output.get("data"), output.get("error")) for output in outputs]


def attacks(function, path: str):
    """Inputs of an event in whose places the path stands, in every form."""
    count = len(function.inputs)
    for mark in MARKS:
        mark = {key: value.format(path=path) if key == "url" else value for key, value in mark.items()}
        file = {"path": path, **mark}
        for wrap in WRAPPINGS[1:] if mark in MARKS[:2] else ():
            yield [wrap(file)] * count
        for place in range(count):
            yield [file if place == k else "star" for k in range(count)]


def events(demo) -> list:
    """The events that take input."""
    return [function for function in demo.fns.values() if function.inputs]


def test_no_event_opens_a_file_outside_the_cache(server, picture, opened):
    """Nor tells whether there is one: the answers are those to a path where nothing is."""
    demo, address = server
    nothing = str(picture.with_name("nothing.png"))
    opened.clear()
    for function in events(demo):
        for data, absent in zip(attacks(function, str(picture)), attacks(function, nothing)):
            found, missed = ask(address, function, data), ask(address, function, absent)
            says = [plain(answer, str(picture)) for answer in found]
            assert says == [plain(answer, nothing) for answer in missed] and all(says)
        for mark in MARKS[:2]:
            ask(address, function, [{"path": str(picture), **mark}] * len(function.inputs), every_way=True)
    assert str(picture) not in opened


def test_no_endpoint_hands_out_a_file_outside_the_cache(server, picture):
    demo, address = server
    content = picture.read_bytes()
    path = str(picture)
    with httpx.Client(base_url=address, timeout=60) as web:
        for route in (
            f"/gradio_api/file={path}",
            f"/gradio_api/file/{path}",
            f"/gradio_api/file=file://{path}",
            f"/gradio_api/proxy=file://{path}",
            f"/static/../../..{path}",
            f"/assets/../../..{path}",
            f"/svelte/../../..{path}",
            f"/gradio_api/custom_component/0/component/client/../../..{path}",
            f"/gradio_api/file={SPACE / 'app.py'}",
            f"/gradio_api/file={SPACE / 'checkpoints' / 'README.md'}",
            f"/gradio_api/stream/x/0/0/{path}",
        ):
            for address_of in (route, route.replace("..", "%2e%2e"), route.replace("/..", "%2f..")):
                answer = web.get(address_of)
                assert answer.status_code >= 400 or content[:40] not in answer.content, address_of
                assert b"class GuardedBlocks" not in answer.content
        for block in demo.blocks.values():
            for name in [*(function.__name__ for function in getattr(block, "server_fns", [])), "preprocess", "ls"]:
                body = {"data": path, "component_id": block._id, "session_hash": "x", "fn_name": name}
                assert content[:40] not in web.post("/gradio_api/component_server", json=body).content


@pytest.mark.parametrize("mark", MARKS[:2], ids=["without meta", "with meta"])
@pytest.mark.parametrize("where", ["outside", "in the cache"])
def test_a_pipe_is_refused_at_once(server, picture, client, tmp_path, mark, where):
    """Whoever opened it would wait for a writer for ever."""
    demo, address = server
    segment = next(function for function in demo.fns.values() if function.api_name == "segment")
    folder = tmp_path if where == "outside" else Path(segment.inputs[0].GRADIO_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = folder / f"pipe{time.monotonic_ns()}.png"
    os.mkfifo(pipe)
    try:
        start = time.monotonic()
        for function in events(demo):
            ask(address, function, [{"path": str(pipe), **mark}] * len(function.inputs))
        assert time.monotonic() - start < 20
        assert client.predict(handle_file(picture), "star", ["lts"], None, api_name="/segment")["annotations"]
    finally:
        pipe.unlink()


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", tmp_path / "nothing.png", "/dev/zero", "a\0b", 7):
        with pytest.raises(Refusal, match="no such picture here"):
            open_picture(path)


def test_an_upload_is_answered(client, picture):
    found = client.predict(handle_file(picture), "star", ["lts"], None, api_name="/segment")
    assert found["images"][0]["width"] == 40


def test_an_address_on_the_web_is_not_fetched(server):
    """It could hold any number of bytes, and come at any slowness."""
    demo, address = server
    segment = next(function for function in demo.fns.values() if function.api_name == "segment")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file = {"path": f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png", **MARKS[1]}
        for answer in ask(address, segment, [file, "star", ["lts"], None], every_way=True):
            assert "complete" not in answer or "upload the picture first" in answer
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (0, 5, "not of the form"),
        (0, "picture.png", "not of the form"),
        (0, [], "not of the form"),
        (0, {"no": "path"}, "must be an uploaded file"),
        (0, {"path": 5}, "not of the form"),
        (0, {"path": "/etc/hostname"}, "was not uploaded here"),
        (0, {"path": "x" * 9000}, "was not uploaded here"),
        (0, {"path": "a\0b"}, "not of the form"),
        (1, 7, "Expressions are text"),
        (1, {"a": 1}, "Expressions are text"),
        (1, ["star", 7], "Expressions are text"),
        (1, "\u200b\u200d", "no expression yet"),
        (2, 7, "Models are names"),
        (2, [7], "Models are names"),
        (2, {"a": 1}, "Models are names"),
        (2, "nothing", "no model “nothing”"),
        (2, [], "No model is chosen"),
        (3, "high", "a probability in .0, 1., not high"),
        (3, [0.5], "a probability"),
        (3, True, "a probability"),
        (3, 1e400, "a probability"),
    ],
)
def test_every_wrong_type_is_refused_in_a_sentence(server, client, picture, place, value, sentence):
    demo, address = server
    uploaded = httpx.post(f"{address}/gradio_api/upload", files={"files": picture.open("rb")}).json()[0]
    data = [{"path": uploaded}, "star", ["lts"], None]
    data[place] = value
    body = json.dumps({"data": data})
    joined = httpx.post(
        f"{address}/gradio_api/call/segment", content=body, headers={"Content-Type": "application/json"}
    )
    answer = httpx.get(f"{address}/gradio_api/call/segment/{joined.json()['event_id']}", timeout=60).text
    assert answer.startswith("event: error") and re.search(sentence, json.loads(answer.split("data: ")[1])["error"])


@pytest.mark.parametrize(
    ("expressions", "models", "threshold", "count"),
    [
        ("star\nred car", ["lts", "lavt"], 0.5, 4),
        (["star", "red car"], "lts", "0.5", 2),
        (["star\nred car"], "LTS, LAVT", "", 4),
        ("star", None, None, 2),
        ("star", " lts ", 0, 1),
    ],
)
def test_what_a_person_would_send_is_understood(client, picture, expressions, models, threshold, count):
    found = client.predict(handle_file(picture), expressions, models, threshold, api_name="/segment")
    assert len(found["annotations"]) == count


def test_too_few_inputs_are_a_sentence(server):
    demo, address = server
    segment = next(function for function in demo.fns.values() if function.api_name == "segment")
    (answer,) = ask(address, segment, [])
    assert "is not of the form that this endpoint takes" in answer


# nobody's slowness stops the others


class SlowHub:
    """A Hub that takes a connection and answers no request."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


def test_a_second_visitor_is_answered_while_the_hub_is_slow(server, client, picture, monkeypatch):
    """Six visitors add models from a Hub that does not answer; the seventh compares meanwhile."""
    demo, address = server
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(opening, "HUB_SECONDS", 4)
    add = next(function for function in demo.fns.values() if function.name == "add")
    with SlowHub() as hub, ThreadPoolExecutor(6) as visitors:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        waiting = [visitors.submit(ask, address, add, [f"owner/model{k}"]) for k in range(6)]
        time.sleep(1)
        start = time.monotonic()
        assert client.predict(handle_file(picture), "star", ["lts"], None, api_name="/segment")["annotations"]
        assert time.monotonic() - start < 3
        assert not any(visitor.done() for visitor in waiting)
        for visitor in waiting:
            assert "could not be reached" in visitor.result()[0] or "has to wait" in visitor.result()[0]


def test_a_visitor_who_adds_waits_no_longer_than_the_limit(tmp_path, monkeypatch):
    """The download goes on; whoever asks again later finds the model."""
    save_tiny_models(tmp_path / "hub")
    save_tiny_models(tmp_path / "bundled")
    released = threading.Event()
    fetches = []

    def fetch(reference):
        fetches.append(reference)
        released.wait(30)
        return tmp_path / "hub" / "lts"

    monkeypatch.setattr(zoo_module, "fetch", fetch)
    zoo = zoo_module.Zoo(tmp_path / "bundled", allow_folders=False)
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(Refusal, match="owner/tiny is still being fetched"):
            zoo.add("owner/tiny", seconds=0.3)
    assert zoo.get(zoo.entries["lavt"]).parameters > 0  # nobody else waits
    assert time.monotonic() - start < 10
    released.set()
    entry = zoo.add("owner/tiny")
    assert entry.architecture == "LTS" and fetches == ["owner/tiny"]


def test_what_is_being_fetched_is_bounded(tmp_path, monkeypatch):
    save_tiny_models(tmp_path)
    released = threading.Event()
    monkeypatch.setattr(zoo_module, "fetch", lambda reference: released.wait(30) and tmp_path / "lts")
    zoo = zoo_module.Zoo(tmp_path, allow_folders=False)
    for k in range(zoo_module.MAX_WAITING):
        with pytest.raises(Refusal, match="is still being fetched"):
            zoo.add(f"owner/model{k}", seconds=0)
    with pytest.raises(Refusal, match="has to wait: other models are being fetched"):
        zoo.add("owner/one-more", seconds=0)
    released.set()


def test_a_model_that_takes_too_long_ends_at_its_next_layer(tmp_path, monkeypatch):
    """The others are answered, and the slow one is named with its limit."""
    save_tiny_models(tmp_path)
    zoo = zoo_module.Zoo(tmp_path, allow_folders=False)
    slow = zoo.get(zoo.entries["lts"]).model
    zoo.get(zoo.entries["lavt"])
    slow.register_forward_pre_hook(lambda module, arguments: time.sleep(3))
    monkeypatch.setattr(comparing, "MODEL_SECONDS", 2.5)
    picture = Picture(Image.new("RGB", (40, 30)), 40, 30, "picture.png")
    lavt, lts = comparing.Comparer(zoo).answer_each(zoo.bundled, picture, ["star"])
    assert lts == comparing.Failure(zoo.entries["lts"], "LTS was stopped after 2.5 seconds, which is the limit here.")
    assert isinstance(lavt, comparing.ModelAnswers)


def test_a_model_that_fails_takes_no_other_answer_away(tmp_path):
    save_tiny_models(tmp_path)
    zoo = zoo_module.Zoo(tmp_path, allow_folders=False)

    def run_out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    zoo.get(zoo.entries["lavt"]).model.register_forward_pre_hook(run_out_of_memory)
    picture = Picture(Image.new("RGB", (40, 30)), 40, 30, "picture.png")
    models, failures = comparing.Comparer(zoo).answer_all(zoo.bundled, picture, ["star"])
    assert [model.entry.key for model in models] == ["lts"]
    assert [failure.sentence for failure in failures] == ["LAVT failed on this picture; the others are answered."]


def test_a_comparison_of_many_models_and_expressions_is_small(tmp_path):
    """8-bit maps of a bounded size, whatever the picture has, compressed."""
    save_tiny_models(tmp_path)
    comparer = comparing.Comparer(zoo_module.Zoo(tmp_path, allow_folders=False))
    picture = Picture(Image.effect_noise((980, 650), 90).convert("RGB"), 4000, 3000, "photo.jpg")
    comparer.answer_all(comparer.zoo.bundled, picture, [f"star {k}" for k in range(8)])
    assert len(comparer.store) == 16 and 0 < comparer.store.bytes < 5_000_000


def test_sessions_keep_no_answer(server, picture):
    """gradio would keep the last output of every visitor."""
    demo, address = server
    compare = next(function for function in demo.fns.values() if function.api_name == "compare")
    (answer,) = ask(address, compare, [{"picture": {"example": "fishes"}, "expressions": "star", "models": ["lts"]}])
    assert "data:image/png" in answer
    states = demo.app.state_holder.session_data.values()
    assert states and "data:image/png" not in str(
        [state.config_values[block._id] for state in states for block in compare.outputs]
    )


@pytest.mark.parametrize(
    ("name", "request_", "sentence"),
    [
        ("look", None, "must be an object"),
        ("look", {}, "no picture yet"),
        ("look", {"picture": {"example": "../secret"}}, "no example “../secret”"),
        ("compare", {"picture": {"example": "fishes"}, "expressions": 7, "models": ["lts"]}, "Expressions are text"),
        ("compare", {"picture": {"example": "fishes"}, "expressions": "star"}, "No model is chosen"),
        ("words", {"picture": {"example": "fishes"}, "expression": "a\nb", "model": "lts"}, "one expression"),
        ("take", {"picture": {"example": "fishes"}, "kind": "exe"}, "masks, cutouts or coco"),
        ("add", 7, "Give a Hub id"),
    ],
)
def test_every_event_refuses_in_a_sentence(server, name, request_, sentence):
    demo, address = server
    function = next(function for function in demo.fns.values() if function.api_name == name)
    (answer,) = ask(address, function, [request_])
    ((_, error),) = plain(answer, "PATH")
    assert sentence in error
