"""What a model costs: counted FLOPs, latency, memory, parameters. Weights are random; only sizes matter."""

import argparse
import json
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torchvision import transforms
from transformers import AutoModelForImageSegmentation
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from hf_ris.data import EvaluationRows, RisCollator, load_split
from hf_ris.data.preparation.plain_pickle import iterate_pickled_list
from hf_ris.environment import hardware, versions
from hf_ris.models.modeling_ris import RisOutput
from hf_ris.models.text_encoders import word_tokenizer_from_corpus
from hf_ris.models.winograd import plain_convolutions


def random_inputs(config, expressions: int, device: torch.device, words: int, images: int = 1) -> dict[str, Tensor]:
    """Square images at the config's size and `expressions` of `words` tokens, all different, on the images by turns."""
    generator = torch.Generator().manual_seed(0)
    side = config.image_size
    inputs = {
        "pixel_values": torch.randn(images, 3, side, side, generator=generator),
        "input_ids": torch.randint(2, 50, (expressions, words), generator=generator),
        "attention_mask": torch.ones(expressions, words, dtype=torch.long),
        "image_index": torch.arange(expressions) % images,
    }
    for name, shape in config.further_inputs(images, expressions, words).items():
        if name.endswith("_mask"):
            inputs[name] = torch.ones(shape, dtype=torch.long)
        elif name.endswith("_ids"):
            inputs[name] = torch.randint(2, 50, shape, generator=generator)
        else:
            inputs[name] = torch.randn(shape, generator=generator)
    return {name: value.to(device) for name, value in inputs.items()}


class FlopCounter(FlopCounterMode):
    """torch's, a multiply-add as two, with what torch leaves out: the fused attention of the CPU.

    A convolution counts what the plain sum takes, however it is computed.
    """

    def __init__(self):
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        super().__init__(display=False, custom_mapping={fused: _attention_flops})
        self.plain = ExitStack()

    def __enter__(self):
        self.plain.enter_context(plain_convolutions())
        return super().__enter__()

    def __exit__(self, *args):
        self.plain.close()
        return super().__exit__(*args)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


@torch.no_grad()
def count_flops(model, inputs: dict[str, Tensor]) -> int:
    """All of them (`FlopCounter`)."""
    with FlopCounter() as counter:
        model(**inputs)
    return counter.get_total_flops()


@torch.no_grad()
def count_flops_of_parts(config, expressions: int, words: int) -> dict[str, int]:
    """FLOPs by the direct part of the model whose layers are at work; "" is what happens between them.

    With fake tensors: nothing is computed, no device hides what it does (cuDNN's recurrent layers count 0), and
    transformers, which looks into the values of a mask where there are any, does not.
    """
    with torch.device("meta"):
        model = AutoModelForImageSegmentation.from_config(config).eval()
    counter, running, counts = FlopCounter(), [""], Counter()

    def settle() -> None:
        counts[running[-1]] += counter.get_total_flops() - counts.total()

    def enter(part: str) -> None:
        settle()
        running.append(part)

    def leave() -> None:
        settle()
        running.pop()

    for name, module in model.named_modules():
        if name:
            part = name.partition(".")[0]
            module.register_forward_pre_hook(lambda module, args, part=part: enter(part))
            module.register_forward_hook(lambda module, args, output: leave())
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        with counter:
            model(**random_inputs(config, expressions, torch.device("cpu"), words))
    settle()
    return dict(counts)


def flops_of_parts(config, words: int) -> dict[str, dict[str, int]]:
    """`flop_parts` of each direct part of the model, as it names its parameters' parts."""
    one, two = (count_flops_of_parts(config, count, words) for count in (1, 2))
    return {name: {"image": 2 * one[name] - two[name], "expression": two[name] - one[name]} for name in one}


def flop_parts(config, expressions: int, words: int) -> dict[str, int]:
    """Image and expression part of the FLOPs, from runs with 1 and `expressions` expressions.

    Raises:
        RuntimeError: a third run contradicts them, so the cost is not image + K x expression.
    """
    counts = [1, expressions, expressions + 1]
    one, many, again = (sum(count_flops_of_parts(config, count, words).values()) for count in counts)
    each, rest = divmod(many - one, expressions - 1)
    if rest or again != one + expressions * each:
        raise RuntimeError(f"FLOPs are not image + K x expression: K = {counts} gives {one}, {many}, {again}.")
    return {"image": one - each, "expression": each}


@torch.no_grad()
def latency(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `call`."""
    return timings(call, device, repeats)["wall"]


def timings(call: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Median `wall` and `cpu` seconds of a call, after one to warm up."""
    call()
    seconds = {"wall": [], "cpu": []}
    for _ in range(repeats):
        _wait(device)
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        _wait(device)
        seconds["wall"].append(time.perf_counter() - wall)
        seconds["cpu"].append(time.process_time() - cpu)
    return {clock: statistics.median(values) for clock, values in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class LiveTensors(TorchDispatchMode):
    """Sums the bytes of the storages that operators make inside it, until they are freed; `peak` is the most."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.known.update(storage for storage in _storages((args, kwargs)))  # weights, inputs
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self.known:  # neither a view nor in place
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, size: int) -> None:
        self.live -= size


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.no_grad()
def peak_memory(model, inputs: dict[str, Tensor], device: torch.device) -> int:
    """Bytes that one forward pass adds to weights and inputs, at its peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model(**inputs)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveTensors() as tensors:
        model(**inputs)
    return tensors.peak


def parameter_parts(model) -> dict[str, int]:
    """Number of parameters of each direct part of the model, and their total."""
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    parts |= {name: parameter.numel() for name, parameter in model.named_parameters(recurse=False)}
    parts["total"] = sum(parts.values())
    return {name: count for name, count in parts.items() if count}


PHOTOGRAPHS = ((480, 640), (3000, 4000))  # (height, width): the size of MS COCO's and a camera's


@torch.no_grad()
def post_processing(config, logits: Tensor, repeats: int) -> dict[str, float]:
    """Median CPU seconds from logits (K, h, w) to K masks, without maps of probabilities, by a photograph's size."""
    processor = PROCESSOR_MAPPING[type(config)].from_config(config, word_tokenizer_from_corpus([]))
    seconds = {}
    for height, width in PHOTOGRAPHS:
        sizes = [(height, width)] * len(logits)
        outputs = RisOutput(logits=logits, input_size=processor.image_processor.canvas_size(sizes))
        cut = partial(processor.post_process_referring_segmentation, outputs, sizes, probabilities=False)
        seconds[f"{width}x{height}"] = timings(cut, logits.device, repeats)["cpu"]
    return seconds


@torch.no_grad()
def benchmark(config, device: torch.device, expressions: int, words: int, repeats: int) -> dict[str, Any]:
    """Everything this script prints, ready for JSON."""
    flops = flop_parts(config, expressions, words)
    model = AutoModelForImageSegmentation.from_config(config).to(device).eval()
    single, many = (random_inputs(config, count, device, words) for count in (1, expressions))

    def separately():
        for _ in range(expressions):
            model(**single)

    return {
        "architecture": config.model_type,
        "image_size": config.image_size,
        "words": words,
        "expressions": expressions,
        "parameters": parameter_parts(model),
        "flops": flops,
        "multiply_adds": {name: count / 2 for name, count in flops.items()},
        "flops_of_parts": flops_of_parts(config, words),
        "latency_seconds": {
            "1": latency(lambda: model(**single), device, repeats),
            str(expressions): latency(lambda: model(**many), device, repeats),
            f"{expressions} calls": latency(separately, device, repeats),
        },
        "post_processing_seconds": post_processing(config, model(**many).logits.cpu(), repeats),
        "peak_memory_bytes": {
            "1": peak_memory(model, single, device),
            str(expressions): peak_memory(model, many, device),
        },
        "device": str(device),
        "hardware": hardware(),
        "versions": versions(),
    }


class PlainReferences(torch.utils.data.Dataset):
    """Expressions of raw RefCOCO, one an item, the plain way: JPEG and polygons are read anew for each.

    Images are squashed to the processor's size and normalised, masks are sums of polygons where they are 1, and texts
    are padded to the processor's length: the tensors that LAVT's program and those built on it train on.
    """

    def __init__(self, annotations: Path, pictures: Path, split: str, image_ids: set[int], processor):
        self.pictures, self.processor = pictures, processor
        references = next(iter(sorted(annotations.glob("refs(*).p"))))
        instances = json.loads((annotations / "instances.json").read_text(encoding="utf-8"))
        self.images = {image["id"]: image for image in instances["images"]}
        self.annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
        self.items = [
            (reference["image_id"], reference["ann_id"], sentence)
            for reference in iterate_pickled_list(lambda: references.open("rb"), references.name)
            if reference["split"] == split and reference["image_id"] in image_ids
            for sentence in reference["sentences"]
        ]
        geometry = processor.image_processor
        self.transform = transforms.Compose(
            [
                transforms.Resize((geometry.image_size, geometry.image_size)),
                transforms.ToTensor(),
                transforms.Normalize(geometry.image_mean, geometry.image_std),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_id, annotation_id, sentence = self.items[index]
        image = self.images[image_id]
        picture = Image.open(self.pictures / image["file_name"]).convert("RGB")
        parts = self.annotations[annotation_id]["segmentation"]
        drawn = coco_mask.decode(coco_mask.frPyObjects(parts, image["height"], image["width"]))
        mask = (drawn.sum(-1) if drawn.ndim == 3 else drawn) == 1
        size = self.processor.image_processor.image_size
        mask = Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
        length = self.processor.max_text_length
        text = self.processor.tokenizer(
            sentence["sent"], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return {
            "pixel_values": self.transform(picture),
            "input_ids": text["input_ids"][0],
            "attention_mask": text["attention_mask"][0],
            "labels": torch.from_numpy(np.array(mask)).float(),
            "expression_id": sentence["sent_id"],
        }


class NumberedBatches:
    """Rows -> (batch, its expression ids); with its own class, since workers take no closures."""

    def __init__(self, processor):
        self.collate = RisCollator(processor)

    def __call__(self, rows: list[dict[str, Any]]) -> tuple[Any, list[int]]:
        return self.collate(rows), [said["expression_id"] for row in rows for said in row["expressions"]]


def time_epoch(loader: DataLoader, ids_of: Callable[[Any], list[int]]) -> tuple[float, list[int]]:
    """(seconds of one epoch, starting the workers included, the expressions it brought)."""
    start, ids = time.perf_counter(), []
    for batch in loader:
        ids += ids_of(batch)
    return time.perf_counter() - start, ids


def benchmark_data(config, options: argparse.Namespace) -> dict[str, Any]:
    """Images and expressions a second from the prepared set, and from the raw files the plain way.

    Raises:
        RuntimeError: the two epochs do not hold the same expressions.
    """
    dataset = load_split(options.data, options.split, options.images)
    texts = [said["text"] for said_of in dataset.select_columns(["expressions"]) for said in said_of["expressions"]]
    tokenizer = word_tokenizer_from_corpus(texts)
    processor = PROCESSOR_MAPPING[type(config)].from_config(config, tokenizer)
    rows, batches = EvaluationRows(dataset), NumberedBatches(processor)
    loader = DataLoader(rows, options.batch_size, collate_fn=batches, num_workers=options.workers)
    seconds, ids = time_epoch(loader, lambda batch: batch[1])
    result = {
        "architecture": config.model_type,
        "data": options.data,
        "split": options.split,
        "images": len(rows),
        "expressions": len(ids),
        "workers": options.workers,
        "prepared": {"seconds": seconds, "images_per_second": len(rows) / seconds},
        "hardware": hardware(),
        "versions": versions(),
    }
    result["prepared"]["expressions_per_second"] = len(ids) / seconds
    if options.raw is not None:
        image_ids = set(dataset.select_columns(["image_id"])["image_id"])
        name = options.raw_name
        pictures = options.raw / "images/train2014"
        plain = PlainReferences(options.raw / name, pictures, options.split, image_ids, processor)
        per_batch = max(1, round(options.batch_size * len(ids) / len(rows)))  # as many expressions
        loader = DataLoader(plain, per_batch, num_workers=options.workers)
        seconds, others = time_epoch(loader, lambda batch: batch["expression_id"].tolist())
        if sorted(others) != sorted(ids) or len(set(ids)) < len(ids):
            raise RuntimeError(f"the epochs differ: {len(ids)} expressions prepared, {len(others)} raw")
        result["plain"] = {"seconds": seconds, "expressions_per_second": len(others) / seconds}
        result["times_as_fast"] = seconds / result["prepared"]["seconds"]
    return result


def show_data(result: dict[str, Any]) -> None:
    print(
        f"{result['data']}, {result['split']}: {result['images']:,} images, {result['expressions']:,} expressions, for "
        f"{result['architecture']}, {result['workers']} workers"
    )
    prepared = result["prepared"]
    print(
        f"  prepared: {prepared['images_per_second']:.1f} images/s, {prepared['expressions_per_second']:.1f} "
        f"expressions/s ({prepared['seconds']:.1f} s)"
    )
    if "plain" in result:
        plain = result["plain"]
        print(f"  plain:    {plain['expressions_per_second']:.1f} expressions/s ({plain['seconds']:.1f} s)")
        print(f"  the prepared set is {result['times_as_fast']:.2f} times as fast for the same expressions")


def show(result: dict[str, Any]) -> None:
    expressions, flops, seconds = result["expressions"], result["flops"], result["latency_seconds"]
    print(f"{result['architecture']} at {result['image_size']}, {result['words']} words, on {result['device']}")
    print(f"{'parameters (10^6)':<22}{'':>12}{'image':>12}{'expression':>12}  (10^9 operations, mul-add = 1)")
    parts = {"total": flops} | result["flops_of_parts"]
    for name, count in result["parameters"].items():
        part = parts.get(name, {"image": 0, "expression": 0})
        print(f"  {name:<20}{count / 1e6:12.2f}{part['image'] / 2e9:12.3f}{part['expression'] / 2e9:12.3f}")
    print(f"{'operations (10^9)':<22}{'mul-add = 1':>12}{'mul-add = 2':>12}")
    rows = {"image": flops["image"], "expression": flops["expression"]}
    rows |= {f"K = {count}": flops["image"] + count * flops["expression"] for count in (1, expressions)}
    rows |= {f"{expressions} calls": expressions * (flops["image"] + flops["expression"])}
    for name, count in rows.items():
        print(f"  {name:<20}{count / 2e9:12.3f}{count / 1e9:12.3f}")
    print("latency (ms, median)")
    for name, value in seconds.items():
        print(f"  {'K = ' + name if name.isdigit() else name:<20}{1000 * value:12.1f}")
    print(f"logits to {expressions} masks of a photograph (CPU ms, median)")
    for name, value in result["post_processing_seconds"].items():
        print(f"  {name:<20}{1000 * value:12.1f}")
    print("peak memory beyond weights and inputs (MiB)")
    for name, value in result["peak_memory_bytes"].items():
        print(f"  {'K = ' + name:<20}{value / 2**20:12.1f}")
