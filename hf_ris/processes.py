"""What the processes of a launch agree on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout


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


def take_lock(lock: FileLock, folder: Path) -> None:
    """Hold the lock of a folder that one run alone may write.

    Raises:
        ValueError: another run holds it.
    """
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder} is being written by another run that still goes on.") from error
