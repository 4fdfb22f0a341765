"""VATEX on video: what it has beyond the image model and the shared contract."""

import re

import numpy as np
import pytest
import torch
from conftest import build_tiny
from PIL import Image
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from hf_ris.benchmark import FlopCounter
from hf_ris.data import MovingScenes, decode_mask
from hf_ris.models import video_encoders
from hf_ris.models.configuration_vatex_video import VatexVideoConfig
from hf_ris.models.modeling_vatex_video import VatexVideoForReferringSegmentation, time_positions
from hf_ris.models.processing_vatex_video import VatexVideoProcessor, evenly
from hf_ris.models.video_encoders import VideoSwinEncoder, build_video_encoder
from hf_ris.models.vision_encoders import build_vision_encoder
from hf_ris.training.build import _own_fields


TEXTS = ["the red cup that moves to the left", "the star", "the car that stops"]
SWIN3D = {
    "vision_config": {
        "name": "swin3d_t",
        "pretrained_tag": None,
        "arguments": {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": [4, 3, 3]},
    }
}


def clip(frames: int, seed: int = 0, size: tuple[int, int] = (56, 40)) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 255, (5, 7, 3), dtype=np.uint8)).resize(size) for _ in range(frames)]


@pytest.fixture(scope="module")
def image_vatex():
    return build_tiny("vatex")


def video_model(image_vatex, **fields):
    """A video model with the image model's fields and weights, and its processor."""
    image_model, processor = image_vatex
    config = VatexVideoConfig(**_own_fields(image_model.config) | {"image_size": 64} | fields)
    torch.manual_seed(1)
    model = VatexVideoForReferringSegmentation(config).eval()
    if "vision_config" not in fields and "early_fusion" not in fields:
        model.load_base_weights(image_model.state_dict())
    return model, VatexVideoProcessor.from_config(config, processor.tokenizer)


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_a_clip_of_one_frame_is_the_image_model(image_vatex, shift):
    image_model, image_processor = image_vatex
    model, processor = video_model(image_vatex, image_size=image_model.config.image_size, temporal_shift=shift)
    frame = clip(1)[0]
    masks = [np.zeros((40, 56), bool) for _ in TEXTS]
    for mask in masks:
        mask[5:20, 8:30] = True
    inputs, videos = image_processor(frame, TEXTS, masks), processor([frame], TEXTS, masks)
    inputs["object_index"] = videos["object_index"] = torch.arange(3) // 2
    with torch.no_grad():
        torch.manual_seed(0)
        expected = image_model(**inputs)
        torch.manual_seed(0)
        found = model(**videos)
    assert torch.allclose(found.logits[:, 0], expected.logits, atol=1e-5)
    assert torch.allclose(found.query_logits[:, :, 0], expected.query_logits, atol=1e-5)
    assert torch.allclose(found.query_scores, expected.query_scores, atol=1e-6)
    assert torch.allclose(found.heatmap, expected.heatmap, atol=1e-5)
    for name, value in expected.losses.items():  # the same points are drawn
        assert torch.allclose(found.losses[name], value, atol=1e-4), name


@pytest.mark.parametrize(
    "fields",
    [
        {"temporal_shift": 0.25},
        SWIN3D,
        {"early_fusion": True, "pixel_encoder_layers": 1},
    ],
    ids=["resnet", "swin3d", "program"],
)
def test_padding_and_neighbours_change_nothing(image_vatex, fields):
    """Videos of other lengths and shapes in the batch."""
    model, processor = video_model(image_vatex, **fields)
    videos = [clip(3, 1, (56, 40)), clip(5, 2, (44, 60))]
    with torch.no_grad():
        both = model(**processor(videos, [TEXTS[:1], TEXTS[1:]]))
        first, second = model(**processor(videos[0], TEXTS[:1])), model(**processor(videos[1], TEXTS[1:]))
    height, width = first.logits.shape[-2:]
    assert torch.allclose(both.logits[:1, :3, :height, :width], first.logits, atol=1e-5)
    height, width = second.logits.shape[-2:]
    assert torch.allclose(both.logits[1:, :, :height, :width], second.logits, atol=1e-5)
    assert torch.allclose(both.query_scores, torch.cat([first.query_scores, second.query_scores]), atol=1e-5)


def test_windows_span_the_video_and_share_one_answer(image_vatex):
    model, processor = video_model(image_vatex, window_frames=3)
    frames = clip(7)
    seen = []
    encode_video = model.encode_video
    model.encode_video = lambda videos, extent: seen.append(videos.shape[1]) or encode_video(videos, extent)
    inputs = processor(frames, TEXTS)
    with torch.no_grad():
        output = model(**inputs)
        assert seen == [3, 2, 2]  # frames 0, 3, 6; 1, 4; 2, 5; each encoded once for all expressions
        assert output.logits.shape[:2] == (3, 7) and output.query_scores.shape == (3, model.config.num_queries)
        # the answer is one query in all frames, the most probable on the mean over windows
        best = output.query_scores.argmax(1)
        assert torch.equal(output.logits, output.query_logits[torch.arange(3), best])
        window = model(
            **processor([frames[k] for k in (0, 3, 6)], TEXTS) | {"clip_pixel_values": inputs["clip_pixel_values"]}
        )
        assert torch.allclose(window.query_logits, output.query_logits[:, :, [0, 3, 6]], atol=1e-5)
        batch = model(**processor([clip(2, 5), frames], [["the cup"], TEXTS]))
    assert torch.allclose(batch.logits[1:], output.logits, atol=1e-5)


def test_the_pixel_encoder_sees_frames_one_by_one(image_vatex):
    """Where no gradient is asked for, for the sake of memory; the numbers stay."""
    model, processor = video_model(image_vatex, pixel_encoder_layers=1, early_fusion=False)
    calls = []
    model.pixel_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0][0])))
    inputs = processor([clip(3), clip(2, 1, (40, 56))], [TEXTS[:2], TEXTS[:1]])
    expected = model(**inputs).query_logits
    with torch.no_grad():
        found = model(**inputs).query_logits
    assert calls == [9] + [1] * 9  # three expressions of three frames, padding too
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


def test_expressions_share_the_encoding(image_vatex):
    model, processor = video_model(image_vatex)
    frames, flops = clip(4), {}
    for number in (1, 5):
        with torch.no_grad(), FlopCounter() as counter:
            model(**processor(frames, [TEXTS[0]] * number))
        flops[number] = counter.get_total_flops()
    inputs = processor(frames, TEXTS[:1])
    with torch.no_grad(), FlopCounter() as counter:
        model.vision_encoder(inputs["pixel_values_videos"])
        model.encode_prior(inputs["clip_pixel_values"])
    encoders = counter.get_total_flops()
    assert flops[5] < 5 * flops[1] - 3.9 * encoders


@pytest.mark.parametrize("fields", [{}, SWIN3D], ids=["resnet", "swin3d"])
def test_gradients_reach_exactly_the_parameters_they_should(image_vatex, fields):
    model, processor = video_model(image_vatex, **fields)
    masks = [np.zeros((4, 40, 56), bool) for _ in TEXTS]
    for mask in masks:
        mask[:, 5:20, 8:30] = True
    inputs = processor([clip(4), clip(4, 3)], [TEXTS[:2], TEXTS[2:]], [masks[:2], masks[2:]])
    inputs["object_index"] = torch.tensor([0, 1, 2])
    model.train()
    model(**inputs).loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == {
        name
        for name, p in model.named_parameters()
        if any(re.search(pattern, name) for pattern in model._keys_without_gradient)
    }


def test_losses_leave_padded_frames_out(image_vatex):
    """Whatever is labelled in frames that are padding, the losses stay."""
    model, processor = video_model(image_vatex)
    masks = [[np.ones((2, 40, 56), bool)], [np.ones((4, 40, 56), bool)]]
    inputs = processor([clip(2), clip(4, 3)], [TEXTS[:1], TEXTS[1:2]], masks)
    assert inputs["frame_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    found = []
    for value in (0.0, 1.0):
        inputs["labels"][0, 2:] = value
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(model(**inputs).losses)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_ablations_of_table_8_and_backbones():
    rows = [
        VatexVideoConfig(clip_prior=prior, cmd=cmd, mcc=mcc)
        for prior in (False, True)
        for cmd in (False, True)
        for mcc in (False, True)
    ]
    assert len({(row.clip_prior, row.cmd, row.mcc) for row in rows}) == 8
    counts = []
    with torch.device("meta"):
        for config in (rows[0], rows[-1]):
            counts.append(sum(p.numel() for p in VatexVideoForReferringSegmentation(config).parameters()))
        for name in ("resnet50", "swin_large_patch4_window12_384"):
            model = VatexVideoForReferringSegmentation(
                VatexVideoConfig(vision_config={"name": name, "pretrained_tag": None})
            )
            assert model.vision_encoder.strides == [4, 8, 16, 32]
        encoder = VideoSwinEncoder(VatexVideoConfig().vision_config)
    assert counts[0] < counts[1]
    assert encoder.channels == [128, 256, 512, 1024] and encoder.backbone.patch_embed.proj.kernel_size == (1, 4, 4)
    assert 86e6 < sum(p.numel() for p in encoder.parameters()) < 89e6  # Video-Swin-B has 88 M
    for wrong, message in (
        ({"window_frames": 0}, "window_frames must be at least 1"),
        ({"temporal_shift": 0.7}, "temporal_shift must lie between 0 and 0.5"),
        ({"temporal_shift": 0.1}, "temporal_shift is for ResNets"),
        ({"vision_config": {"name": "darknet53"}}, r"takes torchvision's swin3d_\* or a timm swin_\*"),
    ):
        with pytest.raises(ValueError, match=message):
            VatexVideoConfig(**wrong)


def test_video_swin_reads_time_and_needs_public_shapes():
    config = VatexVideoConfig(**SWIN3D).vision_config
    torch.manual_seed(0)
    encoder = build_video_encoder(config).eval()
    videos = torch.randn(1, 4, 3, 64, 64)
    with torch.no_grad():
        levels = encoder(videos)
        changed = videos.clone()
        changed[:, 3] += 1
        other = encoder(changed)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (4, 16, 16, 16),
        (4, 32, 8, 8),
        (4, 64, 4, 4),
        (4, 128, 2, 2),
    ]
    assert not torch.allclose(levels[0][:, 0], other[0][:, 0])  # the first frame has seen the last
    with pytest.raises(ValueError, match="No public weights fit swin3d_t with arguments"):
        encoder.load_pretrained()


@pytest.mark.parametrize("size", [(2, 4, 9, 15), (1, 9, 14, 7), (1, 1, 5, 5)])
@pytest.mark.parametrize(("window", "shift"), [([8, 7, 7], [4, 3, 3]), ([2, 3, 3], [1, 1, 1]), ([2, 3, 3], [0, 0, 0])])
def test_attention_in_parts_has_torchvisions_numbers(window, shift, size, monkeypatch):
    monkeypatch.setattr(video_encoders, "_WINDOWS", 3)
    torch.manual_seed(0)
    attention = ShiftedWindowAttention3d(16, window, shift, 2)
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(*size, 16, requires_grad=True)

    def answer_and_gradient():
        answer = attention(x)
        return answer, torch.autograd.grad(answer.square().sum(), x)[0]

    expected = answer_and_gradient()
    attention.__class__ = video_encoders._WindowAttention3d
    torch.testing.assert_close(answer_and_gradient(), expected, atol=1e-6, rtol=1e-5)


def test_temporal_shift_mixes_neighbours_alone(image_vatex):
    image_config = image_vatex[0].config.vision_config
    torch.manual_seed(0)
    encoder = build_video_encoder(image_config, 0.25).eval()
    plain = build_vision_encoder(image_config).eval()
    plain.load_state_dict(encoder.state_dict())
    frame = torch.randn(1, 1, 3, 64, 64)
    with torch.no_grad():
        still = encoder(frame.expand(-1, 3, -1, -1, -1))
        alone = plain(frame[:, 0])
        lengths = encoder(torch.cat([frame, frame, torch.randn(1, 1, 3, 64, 64)], 1), None, torch.tensor([2]))
    for level, padded, expected in zip(still, lengths, alone):  # nothing moves: as the image, also beside padding
        assert torch.allclose(level[:, 1], expected, atol=1e-5)
        assert torch.allclose(padded[:, :2], expected[:, None].expand(-1, 2, -1, -1, -1), atol=1e-5)


def test_time_positions():
    positions = time_positions(4, 8, torch.tensor([4, 2]), torch.device("cpu"))
    assert positions.shape == (2, 4, 8) and not positions[:, 0].any()
    assert torch.allclose(positions[1, 1], positions[0, 2])  # halfway through either clip
    assert evenly(8, 2) == [2, 6] and evenly(5, 5) == [0, 1, 2, 3, 4]


def test_processor(image_vatex):
    _, processor = video_model(image_vatex, prior_frames=2)
    frames = clip(5)
    inputs = processor(frames, TEXTS)
    assert inputs["pixel_values_videos"].shape[:3] == (1, 5, 3) and inputs["clip_pixel_values"].shape[:2] == (1, 2)
    assert "frame_mask" not in inputs and inputs["video_index"].tolist() == [0, 0, 0]
    array = np.stack([np.asarray(frame) for frame in frames])
    assert torch.equal(processor(array, TEXTS)["pixel_values_videos"], inputs["pixel_values_videos"])
    one = processor(frames[0], TEXTS)
    assert one["pixel_values_videos"].shape[1] == 1
    row = MovingScenes("val")[0]
    masks = [np.stack([decode_mask(rle) for rle in row["objects"][0]["masks"]])]
    labels = processor(row["frames"], "the cup", masks)["labels"]
    assert labels.shape[:2] == (1, 8) and labels.max() == 1
    for call, message in (
        ((frames[:1] + clip(1, size=(30, 30)), TEXTS), "Video 0 needs frames of one size, but it has: 30x30, 56x40"),
        (([], TEXTS), "at least one frame"),
        ((frames, TEXTS[:1], [np.ones((4, 40, 56), bool)]), r"shape \(4, 40, 56\); the video is \(5, 40, 56\)"),
        ((frames, TEXTS[:1], [np.ones((5, 40, 56), bool)] * 2), "1 expressions and 2 masks"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(*call)
    with pytest.raises(TypeError, match="sampling"):
        processor(frames, TEXTS, sampling=2)


def test_masks_of_frames(image_vatex):
    model, processor = video_model(image_vatex)
    with torch.no_grad():
        output = model(**processor(clip(3), TEXTS))
    results = processor.post_process_referring_segmentation(output, [(40, 56)] * 3)
    assert len(results) == 3 and results[0]["mask"].shape == (3, 40, 56) and results[0]["mask"].dtype == torch.bool
    frames = list(processor.post_process_frames(output, [(40, 56)] * 3))
    assert torch.equal(frames[2][1]["mask"], results[1]["mask"][2])


def test_wrong_inputs_are_one_sentence(image_vatex):
    model, processor = video_model(image_vatex)
    inputs = dict(processor(clip(3), TEXTS))
    for change, message in (
        ({"pixel_values_videos": torch.zeros(1, 3, 64, 64)}, r"is \(videos, frames, 3, height, width\)"),
        ({"frame_mask": torch.ones(1, 4)}, r"frame_mask must have shape \(1, 3\)"),
        ({"labels": torch.zeros(3, 2, 8, 8)}, r"labels are \(expressions, 3 frames, height, width\)"),
        ({"prompt_ids": None}, "takes clip_pixel_values, prompt_ids and prompt_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs | change)
    other = VatexVideoForReferringSegmentation(VatexVideoConfig(**_own_fields(model.config) | {"hidden_dim": 32}))
    with pytest.raises(ValueError, match="The weights do not fit this VatexVideoFor"):
        other.load_base_weights(model.state_dict())


def test_frames_are_read_when_their_window_comes(image_vatex):
    """Lazy videos give the same answer, and each frame is read once, in the order of windows."""
    model, processor = video_model(image_vatex, window_frames=2)
    videos, texts = [clip(5), clip(3, 1)], [TEXTS, TEXTS[:1]]
    read = []

    class Told(list):
        def __getitem__(self, place):
            read.append(place)
            return super().__getitem__(place)

    inputs = processor(videos, texts)
    late = processor(videos, texts, lazy=True)
    lazy, pixels = late["pixel_values_videos"], inputs["pixel_values_videos"]
    assert lazy.shape == pixels.shape and lazy[:, 1:5:2].equal(pixels[:, 1:5:2]) and lazy[:, :].equal(pixels)
    assert lazy.clips[0][0] is videos[0][0]  # no copy of a frame
    lazy.clips[0] = Told(lazy.clips[0])
    with torch.inference_mode():
        expected, found = model(**inputs), model(**late)
    assert read == [0, 3, 1, 4, 2]
    torch.testing.assert_close(found.query_logits, expected.query_logits, atol=0, rtol=0)


def test_an_offloaded_model_answers_lazy_videos(image_vatex, tmp_path):
    """Its own weights lie on no device between calls."""
    model, processor = video_model(image_vatex, window_frames=2)
    model.save_pretrained(tmp_path)
    places = {name: "disk" if name == "vision_encoder" else "cpu" for name, _ in model.named_children()}
    offloaded = type(model).from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    with torch.inference_mode():
        for frames in (clip(5), clip(2)):  # in windows, and at once
            expected = model(**processor(frames, TEXTS[:2])).logits
            found = offloaded(**processor(frames, TEXTS[:2], lazy=True)).logits
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
