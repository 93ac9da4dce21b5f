"""What a study of editing computes: a method on a model, in batches of edits, each once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import PositiveInt

from experiments.editing.benchmark import KINDS, BenchmarkEdit
from experiments.planning.cost import Cost, rows_of
from experiments.runtime.unit_queue import CachedUnitDataModule
from rnri import Inverter, LatentDiffusion, check_schedule
from rnri.editing import Editor, Injection, PromptToPrompt, attention_edit

IMAGE, TRUE = "the image itself", "the true edit"
"""Methods that compute nothing: what stands beside the edits in the tables."""
SWAP, OWN, NONE = "prompt_swap", "own", "none"
ATTENTION = {PromptToPrompt: "p2p", Injection: "injection"}
"""Ways of editing: the seed under the edited prompt, the same with the source's attention, and a method's own."""

Method = Inverter | Editor


@dataclasses.dataclass(frozen=True)
class EditResult:
    """A model that edits.

    Attributes:
        name: of its checkpoint.
        steps, guidance: of inversion and sampling.
        attention: how attention is edited in its network.
    """

    name: str
    model: LatentDiffusion
    steps: int
    guidance: float
    attention: PromptToPrompt | Injection


@dataclasses.dataclass(frozen=True)
class Job:
    """A unit of work: one method of one model on a batch of edits, in each of the method's ways.

    What computes nothing has neither method nor model.
    """

    name: str
    method: Method | None
    ways: tuple[str, ...]
    model: EditResult | None
    edits: Sequence[BenchmarkEdit]

    @property
    def key(self) -> str:
        return hashlib.sha256("\n".join(map(edit_key, self.edits)).encode()).hexdigest()

    @property
    def label(self) -> str:
        return self.name if self.model is None else f"{self.name}, {self.model.name}"

    @property
    def unit(self) -> str:
        """What has one folder of units."""
        return f"{self.name}\n{'' if self.model is None else self.model.name}\n{self.ways}"

    @property
    def cost(self) -> Cost:
        """Of inversion and of every way, about: attention is edited beside the source."""
        if self.model is None or self.method is None:
            return Cost()
        sampling = sum(2 if way in ATTENTION.values() else 1 for way in self.ways)
        inversion = self.method.nfe_per_step if isinstance(self.method, Inverter) else 2.0
        a_step = (inversion + sampling) * rows_of(self.model.guidance)
        return Cost(a_step * self.model.steps, 1 + len(self.ways)).times(len(self.edits))


def edit_key(edit: BenchmarkEdit) -> str:
    """What an edit is: prompts, mask and the bytes of its files."""
    files = [path.read_bytes() for path in (edit.image, edit.target_image) if path is not None]
    parts = [edit.source.encode(), edit.target.encode(), str(edit.concept).encode(), edit.mask.tobytes(), *files]
    return "\n".join([edit.key, *(hashlib.sha256(part).hexdigest() for part in parts)])


def checkpoint_name(make: Callable[..., LatentDiffusion]) -> str:
    """The last part of the adapter's or the checkpoint's path, as a config gives them.

    Raises:
        ValueError: there is no path that would name it.
    """
    given = make.keywords if isinstance(make, partial) else {}
    path = given.get("lora") or given.get("path")
    if not path:
        raise ValueError("task.model has no path that would name it: give model.path, or models by name.")
    return Path(path).name


def steps_of(name: str, steps: PositiveInt | Mapping[str, PositiveInt]) -> int:
    """Of the model ``name``; ValueError where nothing says."""
    if isinstance(steps, int):
        return steps
    if name not in steps:
        raise ValueError(f"task.steps says nothing of the model {name!r}: give one number, as task.steps=50.")
    return steps[name]


def evenly(edits: Sequence[BenchmarkEdit], kinds: Sequence[str], count: int | None) -> list[BenchmarkEdit]:
    """``count`` edits (None: all) of the ``kinds``, which take turns.

    Raises:
        ValueError: there are fewer.
    """
    from_kind = [[edit for edit in edits if KINDS[edit.kind] == kind] for kind in kinds]
    longest = max(map(len, from_kind))
    turns = [own[k] for k in range(longest) for own in from_kind if k < len(own)]
    if not turns or (count or 0) > len(turns):
        raise ValueError(f"task.count={count}: the benchmark has {len(turns)} edits of {', '.join(kinds)}; take fewer.")
    return turns[:count]


def jobs(
    models: Sequence[EditResult],
    methods: Mapping[str, Inverter],
    extra_methods: Mapping[str, Method],
    edits: Sequence[BenchmarkEdit],
    batch_size: int,
) -> tuple[list[Job], list[dict[str, str]]]:
    """Every method on every model, and which a model's schedule does not take, with the reason.

    Args:
        methods: whose inversions are edited by another prompt, with and without the source's attention.
        others: what edits in its own way; an inverter among them is sampled under the edited prompt.
    """
    batches = [edits[k : k + batch_size] for k in range(0, len(edits), batch_size)]
    found = [Job(name, None, (NONE,), None, batch) for name in (IMAGE, TRUE) for batch in batches]
    left_out = []
    for model in models:
        ways = (SWAP, ATTENTION[attention_edit(model.model)])
        given = [*((name, own, ways) for name, own in methods.items()), *((n, o, (OWN,)) for n, o in extra_methods.items())]
        for name, method, own_ways in given:
            try:
                check_schedule(method, model.model.schedule(model.steps))
            except ValueError as error:
                left_out.append({"model": model.name, "method": name, "reason": str(error)})
                continue
            found += [Job(name, method, own_ways, model, batch) for batch in batches]
    return found, left_out


class JobData(CachedUnitDataModule):
    """The jobs that have no finished unit yet."""

    def address(self, unit: Job) -> tuple[str, str]:
        return unit.unit, unit.key
