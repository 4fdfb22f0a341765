"""Zero-shot baselines, with random weights of tiny configurations: the same answers as transformers' own classes called
step by step, geometry, prompts, and what is said where weights are absent."""

import string

import numpy as np
import pytest
import torch
from PIL import Image
from saved_baselines import save_florence, save_sam2, save_sam3
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SwinConfig,
    ViTImageProcessor,
)

from hf_ris.baselines import BASELINES, is_baseline, load_baseline
from hf_ris.baselines.florence2 import Florence
from hf_ris.baselines.grounded_sam import GroundedSam, content, prompt
from hf_ris.baselines.sam3 import Sam3
from hf_ris.commands.evaluate import main as evaluate
from hf_ris.data import RisCollator, load_refscenes


ROUNDING = 2.01 / 255 / 0.2  # of normalised pixels: Pillow rounds to grey levels twice, torchvision once
TEXTS = ["The red CUP on the left", "star?", "second ball. blue"]


def save_clipseg(folder) -> str:
    torch.manual_seed(0)
    pieces = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*pieces, *(f"{piece}</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    words = {"vocab_size": len(pieces), "bos_token_id": start, "eos_token_id": end, "num_hidden_layers": 2}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "initializer_range": 0.2}
    config = CLIPSegConfig(
        text_config=sizes | words,
        vision_config=sizes | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        initializer_factor=4.0,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    images = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4], resample=2
    )
    CLIPSegProcessor(images, CLIPTokenizer(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return str(folder)


def save_detector(folder) -> str:
    """Its special tokens have BERT's ids, by which Grounding DINO parts phrases."""
    torch.manual_seed(1)
    words = "the red cup on left star second ball blue".split()
    vocabulary = [f"[unused{index}]" for index in range(1040)]
    for index, token in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}.items():
        vocabulary[index] = token
    vocabulary[200 : 200 + len(words)] = words
    swin = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4, "out_indices": [2, 3, 4]}
    bert = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**swin),
        text_config=BertConfig(**bert, vocab_size=len(vocabulary)),
        num_queries=12,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_text_len=24,
        init_std=0.2,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 100, "longest_edge": 180})
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def save_segmenter(folder) -> str:
    torch.manual_seed(2)
    vision = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 8}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = SamConfig(
        vision_config=vision | {"initializer_range": 0.2},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config=decoder,
        initializer_range=0.2,
    )
    SamModel(config).save_pretrained(folder)
    images = SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    SamProcessor(images).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def references(tmp_path_factory) -> dict[str, str]:
    """By name, a baseline whose checkpoints are saved folders."""
    folder = tmp_path_factory.mktemp("baselines")
    detector = save_detector(folder / "detector")
    sam3, florence = save_sam3(folder / "sam3"), save_florence(folder / "florence")
    saved = {
        "clipseg": save_clipseg(folder / "clipseg"),
        "florence-2": florence,
        "florence-2-large": florence,
        "grounded-sam": f"{detector},{save_segmenter(folder / 'segmenter')}",
        "grounded-sam2": f"{detector},{save_sam2(folder / 'sam2')}",
        "sam3": sam3,
        "sam3-all": sam3,
    }
    return {name: f"{name}:{checkpoints}" for name, checkpoints in saved.items()}


@pytest.fixture(scope="session", params=sorted(BASELINES))
def baseline(request, references):
    """(model, processor); whatever box scores best is taken."""
    model, processor = load_baseline(references[request.param])
    if isinstance(model, GroundedSam):
        model.box_threshold = 0.0
    if isinstance(model, Sam3):
        model.score_threshold = 0.0
    if isinstance(model, Florence):
        model.longest = 8
    return model, processor


def pictures() -> list[Image.Image]:
    """One lying and one standing picture."""
    random = np.random.default_rng(0)
    sizes = [(50, 80), (90, 60)]
    return [
        Image.fromarray(random.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
        for size in sizes
    ]


def test_interface_is_that_of_the_architectures(baseline):
    """From rows of the schema through the collator, as evaluation runs it."""
    model, processor = baseline
    scenes = load_refscenes("refscenes", "test", 2, image_size=64)
    batch = RisCollator(processor, labels=False)(list(scenes))
    count = len(batch["input_ids"])
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.logits.shape[0] == count > 2 and outputs.logits.isfinite().all()
    results = processor.post_process_referring_segmentation(outputs, [(64, 64)] * count)
    for result in results:
        assert result["mask"].shape == result["probability"].shape == (64, 64)
        assert result["mask"].equal(result["probability"] > processor.threshold) and 0 <= result["score"] <= 1
    nothing = processor.post_process_referring_segmentation(outputs, [(64, 64)] * count, threshold=1.0)
    assert not any(result["mask"].any() or result["score"] for result in nothing)
    with pytest.raises(ValueError, match=r"threshold is a probability in \[0, 1\], got 2"):
        processor.post_process_referring_segmentation(outputs, [(64, 64)] * count, threshold=2)
    with pytest.raises(ValueError, match="Expression 1 is empty"):
        processor(pictures()[0], ["star", "  "])


def test_neighbours_change_nothing(baseline):
    model, processor = baseline
    images = pictures()
    with torch.no_grad():
        together = model(**processor(images, [TEXTS[:2], TEXTS])).logits
        for index, (image, text) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]):
            alone = model(**processor(images[image], TEXTS[text])).logits
            torch.testing.assert_close(together[index], alone[0], atol=1e-4, rtol=1e-3)
    if isinstance(model, Florence):  # what a random one writes is no polygon
        return
    assert (together[2] - together[3]).abs().max() > 3e-4  # the words matter, and so does the image
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_clipseg_is_that_of_transformers(references):
    """Equal to transformers' processor and forward, which encodes the picture once for every text."""
    model, processor = load_baseline(references["clipseg"])
    folder = references["clipseg"].partition(":")[2]
    network, own = CLIPSegForImageSegmentation.from_pretrained(folder), CLIPSegProcessor.from_pretrained(folder)
    image = pictures()[0]
    expected = own(text=TEXTS, images=[image] * 3, padding=True, return_tensors="pt")
    inputs = processor(image, TEXTS)
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert (inputs["pixel_values"] - expected["pixel_values"][:1]).abs().max() <= ROUNDING
    assert inputs["input_ids"].equal(expected["input_ids"])
    model.double(), network.double()  # float32 sums the batches in different orders, by up to 2e-4
    expected["pixel_values"] = expected["pixel_values"].double()
    inputs["pixel_values"] = expected["pixel_values"][:1]
    with torch.no_grad():
        outputs, wanted = model(**inputs), network(**expected).logits
    torch.testing.assert_close(outputs.logits, wanted)
    result = processor.post_process_referring_segmentation(outputs, [(50, 80)] * 3)[1]
    enlarged = torch.nn.functional.interpolate(wanted[1:2, None].sigmoid(), (50, 80), mode="bilinear")[0, 0]
    torch.testing.assert_close(result["probability"].double(), enlarged, atol=1e-5, rtol=0)


@pytest.mark.parametrize("picture", [0, 1])
def test_grounded_sam_is_that_of_transformers(references, picture):
    """Box and mask as transformers' two processors and models give them, one after the other."""
    model, processor = load_baseline(references["grounded-sam"])
    model.box_threshold = 0.0
    first, second = references["grounded-sam"].partition(":")[2].split(",")
    image, text = pictures()[picture], "the red cup on the left."
    of_detector, of_sam = GroundingDinoProcessor.from_pretrained(first), SamProcessor.from_pretrained(second)
    detecting = of_detector(images=image, text=text, return_tensors="pt")
    inputs = processor(image, "The red CUP on the left")
    for name, ours in {"pixel_values": "detector_pixel_values", "input_ids": "input_ids"}.items():
        assert inputs[ours].shape == detecting[name].shape
        assert (inputs[ours] - detecting[name]).abs().max() <= ROUNDING
    inputs["detector_pixel_values"] = detecting["pixel_values"]
    with torch.no_grad():
        found = of_detector.post_process_grounded_object_detection(
            model.detector(**detecting), threshold=0.0, target_sizes=[(image.height, image.width)]
        )[0]
        best = found["scores"].argmax()
        box = found["boxes"][best]
        segmenting = of_sam(image, input_boxes=[[box.tolist()]], return_tensors="pt")
        assert inputs["pixel_values"].shape == segmenting["pixel_values"].shape == (1, 3, 64, 64)
        assert (inputs["pixel_values"] - segmenting["pixel_values"]).abs().max() <= ROUNDING
        inputs["pixel_values"] = segmenting["pixel_values"]
        sizes = segmenting.pop("original_sizes"), segmenting.pop("reshaped_input_sizes")
        segmenting["input_boxes"] = segmenting["input_boxes"].float()
        masks = model.segmenter(**segmenting, multimask_output=False).pred_masks
        outputs = model(**inputs)
    scale = torch.tensor([image.width, image.height] * 2)
    torch.testing.assert_close(outputs.boxes[0] * scale, box, atol=1e-3, rtol=0)
    torch.testing.assert_close(outputs.box_scores[0], found["scores"][best])
    torch.testing.assert_close(outputs.logits, masks[:, 0, 0], atol=1e-4, rtol=1e-3)
    enlarged = of_sam.post_process_masks(masks, *sizes, binarize=False)[0][0, 0]
    result = processor.post_process_referring_segmentation(outputs, [(image.height, image.width)])[0]
    # transformers enlarges in two steps, which differ a little from one
    assert (result["probability"] - enlarged.sigmoid()).abs().mean() < 0.01


class FixedDetector(torch.nn.Module):
    """For every prompt the box `box` (centre and size, shares) with score 0.6, among worse ones."""

    def __init__(self, box: list[float]):
        super().__init__()
        self.box = box
        self.seen = []

    def forward(self, pixel_values, input_ids, attention_mask):
        self.seen.append(tuple(pixel_values.shape))
        scores = torch.full((len(input_ids), 3, 8), 0.1)
        scores[:, 1, 4] = 0.6
        boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], self.box, [0.1, 0.1, 0.1, 0.1]]).expand(len(input_ids), -1, -1)
        return GroundingDinoOutput(logits=scores.logit(), pred_boxes=boxes)


class GroundingDinoOutput(dict):
    __getattr__ = dict.__getitem__


class BoxSegmenter(torch.nn.Module):
    """Marks the cells of its quarter-size map whose centres lie in the box."""

    def get_image_embeddings(self, pixel_values):
        self.side = pixel_values.shape[-1]
        return pixel_values[:, :1]

    def forward(self, image_embeddings, input_boxes, multimask_output):
        assert not multimask_output
        centres = torch.arange(self.side // 4) * 4 + 2
        left, top, right, bottom = input_boxes[:, 0, :, None].unbind(1)
        rows, columns = (centres > top) & (centres < bottom), (centres > left) & (centres < right)
        inside = rows[:, :, None] & columns[:, None]
        return GroundingDinoOutput(pred_masks=torch.where(inside, 9.0, -9.0)[:, None, None])


@pytest.mark.parametrize("size", [(48, 96), (100, 40), (64, 64)])
def test_boxes_come_back_to_the_right_pixels(references, size):
    """A box over a known quarter of the picture becomes the mask of that quarter, whatever the picture's shape."""
    _, processor = load_baseline(references["grounded-sam"])
    height, width = size
    detector = FixedDetector([0.625, 0.25, 0.25, 0.5])  # columns 0.5 to 0.75, rows 0 to 0.5
    model = GroundedSam(detector, BoxSegmenter(), expressions_at_once=2)
    inputs = processor([Image.new("RGB", (width, height)), Image.new("RGB", (70, 60))], [TEXTS, TEXTS[:1]])
    outputs = model(**inputs)
    torch.testing.assert_close(outputs.boxes, torch.tensor([[0.5, 0.0, 0.75, 0.5]]).expand(4, -1))
    # each picture alone, at its own size and unpadded, two expressions at a time
    shapes = [(2, 3, *content(inputs["detector_pixel_mask"])[0].tolist())]
    assert detector.seen[:2] == [shapes[0], (1, *shapes[0][1:])] and len(detector.seen) == 3
    results = processor.post_process_referring_segmentation(outputs, [size] * 3 + [(60, 70)])
    wanted = torch.zeros(size, dtype=torch.bool)
    wanted[: height // 2, width // 2 : width * 3 // 4] = True
    cell = 4 * max(size) / 64  # of SAM's map, in pixels of the picture
    for result in results[:3]:
        rows, columns = result["mask"].any(1).nonzero().flatten(), result["mask"].any(0).nonzero().flatten()
        assert rows[0] == 0 and abs(rows[-1] + 1 - height / 2) <= cell / 2 + 1
        assert abs(columns[0] - width / 2) <= cell / 2 + 1 and abs(columns[-1] + 1 - width * 0.75) <= cell / 2 + 1
        assert result["score"] > 0.8
        assert (result["mask"] ^ wanted).sum() <= 2 * (rows[-1] + columns[-1] - columns[0] + 4) * (cell / 2 + 1)


def test_no_box_above_the_threshold_is_an_empty_mask(references):
    _, processor = load_baseline(references["grounded-sam"])
    inputs = processor(pictures()[0], TEXTS)
    empty = GroundedSam(FixedDetector([0.5, 0.5, 0.8, 0.8]), BoxSegmenter(), box_threshold=0.61)(**inputs)
    found = GroundedSam(FixedDetector([0.5, 0.5, 0.8, 0.8]), BoxSegmenter(), box_threshold=0.59)(**inputs)
    for threshold in (None, 0.0):
        for result in processor.post_process_referring_segmentation(empty, [(50, 80)] * 3, threshold):
            assert not result["mask"].any() and result["score"] == 0.0 and result["probability"].max() == 0
    assert all(r["mask"].any() for r in processor.post_process_referring_segmentation(found, [(50, 80)] * 3))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("The Man in RED", "the man in red."),
        ("left dog.", "left dog."),
        ("  mr. smith?  which one ", "mr smith which one."),
        ("?", ""),
    ],
)
def test_prompts_are_one_phrase(expression, expected):
    assert prompt(expression) == expected


def test_prompts_reach_the_detector_as_one_phrase(references):
    _, processor = load_baseline(references["grounded-sam"])
    ids = processor(pictures()[0], ["The red cup", "Ball? blue."])["input_ids"].tolist()
    assert [[token for token in row if token] for row in ids] == [
        [101, 200, 201, 202, 1012, 102],
        [101, 207, 208, 1012, 102],
    ]
    with pytest.raises(ValueError, match="holds no word"):
        processor(pictures()[0], "?!".replace("!", ""))


def test_references_are_names_with_checkpoints_of_choice(references):
    assert is_baseline("clipseg") and is_baseline("grounded-sam:a,b")
    assert not is_baseline("owner/clipseg") and not is_baseline("outputs/clipseg")
    with pytest.raises(ValueError, match="There is no baseline 'sam'; there are clipseg, florence-2, .*grounded-sam2"):
        load_baseline("sam")
    with pytest.raises(
        ValueError, match="grounded-sam takes 2 checkpoints, as grounded-sam:IDEA-Research/.*,facebook/"
    ):
        load_baseline("grounded-sam:facebook/sam-vit-huge")
    folder = references["clipseg"].partition(":")[2]
    with pytest.raises(ValueError, match="holds a model of type clipseg; this baseline takes a grounding-dino"):
        load_baseline(f"grounded-sam:{folder},{folder}")


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_absent_weights_are_one_sentence(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    first = BASELINES[name].checkpoints[0]
    sentence = f"The weights of {first} are neither cached nor reachable: connect to the Hub once, or name a folder"
    with pytest.raises(OSError, match=sentence):
        load_baseline(name)
    with pytest.raises(SystemExit, match=sentence) as refusal:
        evaluate(["--model", name, "--data", "refscenes", "--split", "test", "--size", "1", "--image-size", "64"])
    assert "\n" not in str(refusal.value)


def test_evaluation_takes_them_by_name(references):
    asked = ["--split", "test", "--size", "2", "--image-size", "64", "--protocols", "original", "cris", "lavt480"]
    result = evaluate(["--model", references["clipseg"], *asked])
    expected = sum(len(row["expressions"]) for row in load_refscenes("refscenes", "test", 2, image_size=64))
    assert result["expressions"] == expected and result["model"] == references["clipseg"]
    assert 0 <= result["protocols"]["original"]["overall"]["mIoU"]["value"] <= 1
