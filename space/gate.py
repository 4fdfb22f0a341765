"""The gate that every event passes: gradio's own check that a file lies in its cache runs on every path there is.

gradio checks the dictionaries that call themselves files (`meta`). A request that leaves the mark out would hand any
path of this machine to whatever opens it. Here every dictionary with a path, at any depth, in any input of any event,
gets the mark before gradio looks; what is no upload of this server is refused in one sentence. (Whether an upload is a
regular file is seen when it is opened, in `pictures.open_regular`.)
"""

from typing import Any

import gradio as gr
from gradio.exceptions import InvalidPathError
from gradio_client.utils import is_http_url_like

from comparison.pictures import Refusal


NOT_UPLOADED = "This file was not uploaded here: upload the picture first (gradio_client's handle_file does), then ask."
MALFORMED = "The request is not of the form that this endpoint takes; “Use via API” at the foot of the page shows it."
MAX_DEPTH = 20  # of lists and dictionaries in an input; those of the page have three


class GuardedBlocks(gr.Blocks):
    """`gr.Blocks` whose events check every path, and answer input that gradio cannot read with a sentence."""

    async def preprocess_data(self, block_fn, inputs, state, explicit_call: bool = False):
        try:
            marked = inputs if explicit_call else [with_mark(value) for value in inputs]
            return await super().preprocess_data(block_fn, marked, state, explicit_call)
        except Refusal as refusal:
            raise gr.Error(str(refusal), print_exception=False) from refusal
        except (InvalidPathError, OSError) as error:
            raise gr.Error(NOT_UPLOADED, print_exception=False) from error
        except ValueError as error:  # too few inputs, or one that gradio's data model refuses
            raise gr.Error(MALFORMED, print_exception=False) from error

    async def postprocess_data(self, block_fn, predictions, state):
        """gradio's, which keeps every output for its session; here the next visitor's memory needs the place."""
        output = await super().postprocess_data(block_fn, predictions, state)
        for block in block_fn.outputs if state is not None else ():
            if block._id in state.config_values:
                state._update_value_in_config(block._id, None)
        return output


def with_mark(value: Any, depth: int = 0) -> Any:
    """The value with every dictionary that names a path marked as a file, so that gradio checks it.

    Raises:
        Refusal: an address on the web, which gradio would fetch whatever its size; or a value too deep to be meant.
    """
    if depth > MAX_DEPTH:
        raise Refusal(MALFORMED)
    if isinstance(value, list):
        return [with_mark(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    marked = {key: with_mark(item, depth + 1) for key, item in value.items()}
    if not isinstance(marked.get("path"), str):
        return marked
    if is_http_url_like(marked["path"]):
        raise Refusal(NOT_UPLOADED)
    return marked | {"meta": {"_type": "gradio.FileData"}}
