"""CLIPSeg zero-shot: the architecture `clipseg_ris` with public weights.

Trained on PhraseCut by its authors: the expression itself is the prompt. What it is stands in
`models/modeling_clipseg_ris.py`.
"""

from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from ..models.modeling_clipseg_ris import ClipsegForReferringSegmentation
from ..models.processing_clipseg_ris import ClipsegProcessor
from .loading import load_part


def load(source: str) -> tuple[ClipsegForReferringSegmentation, ClipsegProcessor]:
    """From a Hub id or a folder of a transformers CLIPSeg; raises as `load_part`."""
    network, processor = load_part(source, CLIPSegForImageSegmentation, CLIPSegProcessor)
    processor = ClipsegProcessor.of(processor, network.config.text_config.max_position_embeddings)
    model = ClipsegForReferringSegmentation.of(network, image_size=processor.image_processor.image_size)
    return model.eval(), processor
