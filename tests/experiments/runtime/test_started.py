"""Units shared among processes: what one that was started says in a sentence is said in that sentence."""

import traceback
from types import SimpleNamespace

import pytest
from torch.multiprocessing import ProcessRaisedException

from experiments.cache.atomic import CannotWrite
from experiments.reporting.finite import NonFiniteError
from experiments.runtime.unit_queue import carry_out


class Spawned:
    """A trainer whose processes end with ``error``, as torch hands it on."""

    world_size = 2
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
        finished=lambda: False, progress=SimpleNamespace(close=lambda: None), release=lambda: None
    )


@pytest.mark.parametrize("error", [NonFiniteError("arm 'x': no image is finite."), CannotWrite("the disk is full.")])
def test_a_sentence_of_a_started_process_is_that_of_the_run(error):
    with pytest.raises(type(error), match=f"^{error}$"):
        carry_out(Spawned(error), unfinished())


def test_any_other_error_keeps_its_traceback():
    with pytest.raises(ProcessRaisedException, match="in predict"):
        carry_out(Spawned(KeyError("a fault of ours")), unfinished())
