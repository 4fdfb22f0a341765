"""The losses against their equations, written out in numpy, and where they are hard: empty, full and certain masks."""

import numpy as np
import pytest
import torch

from hf_ris.models.losses import adaptive_dice_loss, binary_cross_entropy, focal_loss, resize_labels


def masks_and_logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 (4, 9, 7): logits of any confidence, masks of 0 and 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(4, 9, 7))
    return torch.from_numpy(logits), torch.from_numpy((random.random((4, 9, 7)) < 0.3).astype(np.float64))


def in_numpy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return 1 / (1 + np.exp(-logits.numpy())), labels.numpy()


def test_cross_entropy_is_equation_4():
    logits, labels = masks_and_logits()
    p, y = in_numpy(logits, labels)
    expected = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    assert binary_cross_entropy(logits, labels, "sum").item() == pytest.approx(expected * 9 * 7, rel=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5)])
def test_focal_is_equation_5(alpha, gamma):
    logits, labels = masks_and_logits()
    p, y = in_numpy(logits, labels)
    terms = alpha * y * (1 - p) ** gamma * np.log(p) + (1 - alpha) * (1 - y) * p**gamma * np.log(1 - p)
    assert focal_loss(logits, labels, alpha, gamma).item() == pytest.approx(-terms.mean(), rel=1e-6)


@pytest.mark.parametrize("pixel_weight", ["error", "focal"])
@pytest.mark.parametrize(("gamma", "epsilon"), [(2.0, 1.0), (0.5, 1e-3)])
def test_adaptive_dice_is_equations_6_and_7(pixel_weight, gamma, epsilon):
    logits, labels = masks_and_logits()
    expected = []
    for p, y in zip(*in_numpy(logits, labels)):
        weight = abs(p - y) if pixel_weight == "error" else (1 - p) ** gamma
        overlap = 2 * (weight * p * y).sum() + epsilon
        expected.append(1 - overlap / ((weight * p).sum() + (weight * y).sum() + epsilon))
    loss = adaptive_dice_loss(logits, labels, pixel_weight, gamma, epsilon)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("pixel_weight", ["error", "focal"])
def test_adaptive_dice_pulls_every_pixel_to_its_mask(pixel_weight):
    """With a weight that carried gradient, confident foreground would be pushed down and background up."""
    logits, labels = masks_and_logits(1)
    logits.requires_grad_()
    adaptive_dice_loss(logits, labels, pixel_weight).backward()
    assert (logits.grad[labels == 1] < 0).all() and (logits.grad[labels == 0] > 0).all()


TERMS = {
    "cross_entropy": binary_cross_entropy,
    "focal": focal_loss,
    "focal, flat power": lambda logits, labels: focal_loss(logits, labels, gamma=0.5),
    "dice, error": lambda logits, labels: adaptive_dice_loss(logits, labels, "error"),
    "dice, focal": lambda logits, labels: adaptive_dice_loss(logits, labels, "focal", gamma=0.5),
    "all": lambda logits, labels: (
        binary_cross_entropy(logits, labels) + focal_loss(logits, labels) + adaptive_dice_loss(logits, labels)
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_finite_for_empty_and_full_masks(term, dtype):
    """Whatever the answer: undecided, certain and right, certain and wrong."""
    for mask in (0.0, 1.0):
        for answer in (0.0, 8.0, -8.0, 300.0, -300.0):
            logits = torch.full((2, 5, 5), answer, dtype=dtype, requires_grad=True)
            loss = TERMS[term](logits, torch.full((2, 5, 5), mask))
            loss.backward()
            assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.dtype == dtype
            wrong = (answer <= 0) == (mask == 1)
            if abs(answer) <= 8 and wrong:
                assert logits.grad.abs().min() > 0


def test_labels_are_averaged_or_picked():
    labels = torch.zeros(1, 4, 4)
    labels[0, 0, 0] = 1
    assert resize_labels(labels, (2, 2), "area")[0].tolist() == [[0.25, 0], [0, 0]]
    assert resize_labels(labels, (2, 2), "nearest")[0].tolist() == [[1, 0], [0, 0]]
    assert torch.equal(resize_labels(labels, (4, 4)), labels)
