"""An error in a child process is raised in the parent process with the same type and message."""

import traceback
from types import SimpleNamespace

import pytest
from torch.multiprocessing import ProcessRaisedException

from experiments.cache.atomic import CannotWrite
from experiments.finite import NonFiniteError
from experiments.runtime.unit_queue import run_stages


class Spawned:
    """A trainer whose child processes fail with ``error``, which torch passes on as text."""

    world_size = 2
    is_global_zero = False
    strategy = SimpleNamespace(cluster_environment=SimpleNamespace(creates_processes_externally=False))

    def __init__(self, error: Exception) -> None:
        self.error = error

    def predict(self, module, **_):
        try:
            raise self.error
        except Exception:
            text = f"\n\n-- Process 1 terminated with the following error:\n{traceback.format_exc()}"
        raise ProcessRaisedException(text, 1, 4711)


def unfinished():
    return None, SimpleNamespace(
        all_done=lambda: False,
        add_to_progress=lambda: None,
        progress=SimpleNamespace(close=lambda: None),
        release=lambda: None,
    )


@pytest.mark.parametrize("error", [NonFiniteError("arm 'x': no image is finite."), CannotWrite("the disk is full.")])
def test_expected_error_of_child_keeps_type_and_message(error):
    with pytest.raises(type(error), match=f"^{error}$"):
        run_stages(Spawned(error), unfinished())


def test_unexpected_error_of_child_keeps_traceback():
    with pytest.raises(ProcessRaisedException, match="in predict"):
        run_stages(Spawned(KeyError("a bug")), unfinished())
