"""Processor of SegVLM: CRIS's, whose preprocessing and threshold the paper keeps."""

from .processing_cris import CrisProcessor


class SegvlmProcessor(CrisProcessor):
    """Makes the inputs of SegVLM and turns its logits into masks; see `CrisProcessor`."""


SegvlmProcessor.register_for_auto_class("AutoProcessor")
