"""Units of the editing experiment: one method of one model on a batch of edits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor

from experiments.editing.benchmark import KINDS, BenchmarkEdit
from experiments.evaluation.editing_metrics import EditBatch, EditingNetworks
from experiments.planning.cost import Cost, batch_multiplier
from experiments.runtime.unit_queue import CachedUnitDataModule
from rnri import Inverter, LatentDiffusion, check_schedule
from rnri.editing import Editor, Injection, PromptToPrompt, edit_config_class

SOURCE_IMAGE = "source image"
GROUND_TRUTH = "ground truth"
"""Reference methods of the tables, which compute nothing."""

PROMPT_SWAP = "prompt_swap"
NATIVE = "native"
NONE = "none"
ATTENTION_EDITS = {PromptToPrompt: "p2p", Injection: "injection"}
"""Edit methods. ``prompt_swap`` samples the inverted seed under the target prompt; the attention edits do the same with
the source's attention; ``native`` is a method's own editing procedure; ``none`` is for images that are not edited."""

Method = Inverter | Editor


@dataclasses.dataclass(frozen=True)
class EditingModel:
    """A model with its settings for editing.

    Attributes:
        name: name of its checkpoint.
        steps, guidance: of inversion and sampling.
        attention: how attention is edited in its network.
    """

    name: str
    model: LatentDiffusion
    steps: int
    guidance: float
    attention: PromptToPrompt | Injection


@dataclasses.dataclass(frozen=True)
class EditJob:
    """A unit of work: one method of one model on a batch of edits, with each of ``edit_methods``.

    ``method`` and ``model`` are None for the reference methods.
    """

    name: str
    method: Method | None
    edit_methods: tuple[str, ...]
    model: EditingModel | None
    edits: Sequence[BenchmarkEdit]

    @property
    def key(self) -> str:
        """Key of the batch: a hash of its edits."""
        return hashlib.sha256("\n".join(map(edit_key, self.edits)).encode()).hexdigest()

    @property
    def label(self) -> str:
        return self.name if self.model is None else f"{self.name}, {self.model.name}"

    @property
    def folder_key(self) -> str:
        """Key of the result folder: jobs with equal keys share cached units."""
        return f"{self.name}\n{'' if self.model is None else self.model.name}\n{self.edit_methods}"

    @property
    def cost(self) -> Cost:
        """Approximate cost of the inversion and all edit methods; attention edits also sample the source."""
        if self.model is None or self.method is None:
            return Cost()
        sampling = sum(2 if name in ATTENTION_EDITS.values() else 1 for name in self.edit_methods)
        inversion = self.method.nfe_per_step if isinstance(self.method, Inverter) else 2.0
        nfe_per_step = (inversion + sampling) * batch_multiplier(self.model.guidance)
        return Cost(nfe_per_step * self.model.steps, 1 + len(self.edit_methods)).times(len(self.edits))

    def batch(self, images: Tensor, originals: Tensor, networks: EditingNetworks, min_psnr: float) -> EditBatch:
        """What the metrics of the edited ``images [B,3,H,W]`` are computed from."""
        size = tuple(images.shape[-2:])
        return EditBatch(
            images=images,
            originals=originals,
            masks=torch.stack([edit.resized_mask(size) for edit in self.edits]).to(images.device),
            prompts=[edit.target for edit in self.edits],
            labels=[edit.expected_label for edit in self.edits],
            targets=[edit.load_image(size, target=True) if edit.has_background_target else None for edit in self.edits],
            networks=networks,
            min_psnr=min_psnr,
        )


def edit_key(edit: BenchmarkEdit) -> str:
    """Identifies an edit by its prompts, mask and the content of its files."""
    files = [path.read_bytes() for path in (edit.image, edit.target_image) if path is not None]
    parts = [edit.source.encode(), edit.target.encode(), str(edit.concept).encode(), edit.mask.tobytes(), *files]
    return "\n".join([edit.key, *(hashlib.sha256(part).hexdigest() for part in parts)])


def checkpoint_name(create: Callable[..., LatentDiffusion]) -> str:
    """Last part of the LoRA's or the checkpoint's path in a partial model constructor.

    Raises:
        ValueError: the constructor has no path.
    """
    arguments = create.keywords if isinstance(create, partial) else {}
    path = arguments.get("lora") or arguments.get("path")
    if not path:
        raise ValueError("task.model: has no path to take its name from; set model.path, or give models by name.")
    return Path(path).name


def steps_for(name: str, steps: PositiveInt | Mapping[str, PositiveInt]) -> int:
    """Number of steps of the model ``name``.

    Raises:
        ValueError: ``steps`` has no entry for it.
    """
    if isinstance(steps, int):
        return steps
    if name not in steps:
        raise ValueError(f"task.steps: no entry for the model {name!r}; add one, or give one number, as task.steps=50.")
    return steps[name]


def select_edits(edits: Sequence[BenchmarkEdit], kinds: Sequence[str], count: int | None) -> list[BenchmarkEdit]:
    """The first ``count`` edits (None: all) of the ``kinds``, taken from each kind in turn.

    Raises:
        ValueError: there are fewer.
    """
    by_kind = [[edit for edit in edits if KINDS[edit.kind] == kind] for kind in kinds]
    interleaved = [edit for turn in zip_longest(*by_kind) for edit in turn if edit is not None]
    if not interleaved or (count or 0) > len(interleaved):
        raise ValueError(
            f"task.count: must be at most {len(interleaved)}, the benchmark's number of edits of {', '.join(kinds)}, "
            f"got {count}."
        )
    return interleaved[:count]


def make_jobs(
    models: Sequence[EditingModel],
    methods: Mapping[str, Inverter],
    extra_methods: Mapping[str, Method],
    edits: Sequence[BenchmarkEdit],
    *,
    batch_size: int,
) -> tuple[list[EditJob], list[dict[str, str]]]:
    """Jobs of all methods on all models, and the combinations left out because a model's schedule does not fit.

    Args:
        methods: inverters whose seeds are edited by prompt swap and by attention.
        extra_methods: editors, and inverters that are only sampled under the target prompt.
    """
    batches = [edits[k : k + batch_size] for k in range(0, len(edits), batch_size)]
    jobs = [EditJob(name, None, (NONE,), None, batch) for name in (SOURCE_IMAGE, GROUND_TRUTH) for batch in batches]
    left_out = []
    for model in models:
        edit_methods = (PROMPT_SWAP, ATTENTION_EDITS[edit_config_class(model.model)])
        entries = [(name, method, edit_methods) for name, method in methods.items()]
        entries += [(name, method, (NATIVE,)) for name, method in extra_methods.items()]
        for name, method, names in entries:
            try:
                check_schedule(method, model.model.schedule(model.steps))
            except ValueError as error:
                left_out.append({"model": model.name, "method": name, "reason": str(error)})
                continue
            jobs += [EditJob(name, method, names, model, batch) for batch in batches]
    return jobs, left_out


class EditJobDataModule(CachedUnitDataModule):
    """The jobs without a finished unit."""

    def address(self, unit: EditJob) -> tuple[str, str]:
        return unit.folder_key, unit.key
