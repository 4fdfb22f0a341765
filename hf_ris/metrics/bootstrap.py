"""Percentile bootstrap over images for metrics that are sums divided by sums (numpy only)."""

import numpy as np

from .ris_iou.iou_terms import Terms


class ImageBootstrap:
    """Resamples whole images, since the expressions of one image stand or fall together.

    image_ids (N,): every image, repeats allowed. The same draws serve every metric, slice and file, so that differences
    between two files are paired.
    """

    def __init__(self, image_ids: np.ndarray, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> None:
        if resamples < 1:
            raise ValueError(f"resamples is {resamples}, but at least one resample is needed")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence is {confidence}, but it must lie between 0 and 1")
        self.images = np.unique(image_ids)
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        count = self.images.size
        draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
        draws += count * np.arange(resamples)[:, None]
        # weights[r, i]: how often resample r drew image i. float64, so that sums of pixels stay exact.
        self.weights = np.bincount(draws.ravel(), minlength=resamples * count).reshape(resamples, count).astype(float)

    def resample(self, image_ids: np.ndarray, terms: Terms) -> np.ndarray:
        """Each metric under each resample, float (resamples, metrics); NaN where a resample leaves nothing to count.

        image_ids (n,): the image of each of the n entries in the arrays of `terms`.
        """
        place = np.searchsorted(self.images, image_ids)
        columns = [column for pair in terms.values() for column in pair]
        sums = np.stack([np.bincount(place, column, self.images.size) for column in columns], axis=1)
        drawn = self.weights @ sums
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(drawn[:, 1::2] > 0, drawn[:, ::2] / drawn[:, 1::2], np.nan)

    def bounds(self, resampled: np.ndarray) -> np.ndarray:
        """(resamples, metrics) -> (2, metrics): lower and upper end of the percentile interval, NaN if undefined."""
        tail = (1 - self.confidence) / 2
        result = np.full((2, resampled.shape[1]), np.nan)
        defined = ~np.isnan(resampled).all(axis=0)
        result[:, defined] = np.nanquantile(resampled[:, defined], [tail, 1 - tail], axis=0)
        return result
