"""What the processes of a launch agree on."""

from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list


def agreed(work: Callable[[], Any]) -> Any:
    """What `work` returns in the main process, where alone it is done; every process gets it.

    Raises:
        ValueError: `work` did, in every process.
    """
    answer = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = work()
        except ValueError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]
