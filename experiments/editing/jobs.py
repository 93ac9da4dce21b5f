"""Jobs of the editing experiment: a job applies one method with one model to a batch of edits."""

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
from rnri.validation import ConfigError

SOURCE_IMAGE = "source image"
GROUND_TRUTH = "ground truth"
"""``SOURCE_IMAGE`` and ``GROUND_TRUTH`` are the names of two reference methods, which do not edit images.

The reference methods return the source image and the ground-truth image of the benchmark.
"""

PROMPT_SWAP = "prompt_swap"
NATIVE = "native"
NONE = "none"
ATTENTION_EDITS = {PromptToPrompt: "p2p", Injection: "injection"}
"""Attention edits: dict from the class of the edit to the name of its edit method.

An edit method generates the edited image. The edit method ``prompt_swap`` samples from the inverted seed with the
target prompt. An attention edit (``p2p`` or ``injection``) also reuses attention of the source image. The edit method
``native`` is the only editing procedure of a method, such as a method that edits without inversion. The edit method
``none`` returns an image without editing it.
"""

Method = Inverter | Editor


@dataclasses.dataclass(frozen=True)
class EditingModel:
    """A text-to-image model and its settings for editing.

    Attributes:
        name: name of the model in the results.
        model: the text-to-image model.
        steps, guidance: number of steps and guidance scale of both inversion and sampling.
        attention: edit method that reuses attention of the source image: Prompt-to-Prompt for a U-Net, attention
            injection for a transformer.
    """

    name: str
    model: LatentDiffusion
    steps: int
    guidance: float
    attention: PromptToPrompt | Injection


@dataclasses.dataclass(frozen=True)
class EditJob:
    """One method that is applied to a batch of edits with one model and with each of ``edit_methods``.

    The results of a job are stored as one unit, which a resumed run does not compute again.

    Attributes:
        name: name of the method.
        method: the inversion method or editor; None for the reference methods, which return the source image or the
            ground truth.
        edit_methods: names of the edit methods; each edit method generates one image per edit.
        model: the text-to-image model; None for the reference methods.
        edits: the edits of the batch.
    """

    name: str
    method: Method | None
    edit_methods: tuple[str, ...]
    model: EditingModel | None
    edits: Sequence[BenchmarkEdit]

    @property
    def key(self) -> str:
        """Hash of the prompts, masks and images of the edits, under which the results of the job are stored."""
        return hashlib.sha256("\n".join(map(edit_key, self.edits)).encode()).hexdigest()

    @property
    def label(self) -> str:
        return self.name if self.model is None else f"{self.name}, {self.model.name}"

    @property
    def folder_key(self) -> str:
        """String that identifies the folder for the results. Jobs that differ only in their edits share a folder."""
        return f"{self.name}\n{'' if self.model is None else self.model.name}\n{self.edit_methods}"

    @property
    def cost(self) -> Cost:
        """Estimated cost of the inversion and of all edit methods.

        The cost of an attention edit includes the sampling of the source image, whose attention is reused.
        """
        if self.model is None or self.method is None:
            return Cost()
        sampling = sum(2 if name in ATTENTION_EDITS.values() else 1 for name in self.edit_methods)
        inversion = self.method.nfe_per_step if isinstance(self.method, Inverter) else 2.0
        nfe_per_step = (inversion + sampling) * batch_multiplier(self.model.guidance)
        return Cost(nfe_per_step * self.model.steps, 1 + len(self.edit_methods)).times(len(self.edits))

    def batch(self, images: Tensor, originals: Tensor, networks: EditingNetworks, min_psnr: float) -> EditBatch:
        """Return everything that the metrics of the edited ``images [B,3,H,W]`` are computed from."""
        size = tuple(images.shape[-2:])
        return EditBatch(
            images=images,
            originals=originals,
            masks=torch.stack([edit.resized_mask(size) for edit in self.edits]).to(images.device),
            prompts=[edit.target for edit in self.edits],
            source_prompts=[edit.source for edit in self.edits],
            labels=[edit.expected_label for edit in self.edits],
            targets=[edit.load_image(size, target=True) if edit.has_background_target else None for edit in self.edits],
            networks=networks,
            min_psnr=min_psnr,
        )


def edit_key(edit: BenchmarkEdit) -> str:
    """Return a string that changes if the prompts, the mask or an image file of an edit changes."""
    files = [path.read_bytes() for path in (edit.image, edit.target_image) if path is not None]
    parts = [edit.source.encode(), edit.target.encode(), str(edit.concept).encode(), edit.mask.tobytes(), *files]
    return "\n".join([edit.key, *(hashlib.sha256(part).hexdigest() for part in parts)])


def checkpoint_name(create: Callable[..., LatentDiffusion]) -> str:
    """Return a name for the model: the last part of the path of its LoRA, or of its checkpoint if it has no LoRA.

    The path is an argument of the partial function ``create``, which creates the model.

    Raises:
        ValueError: ``create`` has no argument with a path.
    """
    arguments = create.keywords if isinstance(create, partial) else {}
    path = arguments.get("lora") or arguments.get("path")
    if not path:
        raise ValueError(
            "task.model: the model has no name, because task.model.path is not set; set task.model.path, or write "
            "task.model as a mapping from names to models."
        )
    return Path(path).name


def steps_for(name: str, steps: PositiveInt | Mapping[str, PositiveInt]) -> int:
    """Return the number of sampling steps of the model ``name``.

    ``steps`` is one number for all models, or a dict from model names to numbers of steps.

    Raises:
        ValueError: ``steps`` has no entry for the model.
    """
    if isinstance(steps, int):
        return steps
    if name not in steps:
        raise ValueError(
            f"task.steps has no entry for the model {name!r}: add an entry, or set one number of steps for all models, "
            "such as task.steps=50."
        )
    return steps[name]


def select_edits(edits: Sequence[BenchmarkEdit], kinds: Sequence[str], count: int | None) -> list[BenchmarkEdit]:
    """Return ``count`` edits, taken from each of ``kinds`` in turn.

    If ``count`` is None, return all edits of ``kinds``.

    Raises:
        ConfigError: there are no edits of ``kinds``.
        ValueError: there are fewer than ``count`` edits of ``kinds``.
    """
    by_kind = [[edit for edit in edits if KINDS[edit.kind] == kind] for kind in kinds]
    interleaved = [edit for turn in zip_longest(*by_kind) for edit in turn if edit is not None]
    if not interleaved:
        raise ConfigError(
            "task.kinds", f"the benchmark contains no edit of kind {' or '.join(kinds)}; choose kinds that it contains."
        )
    if (count or 0) > len(interleaved):
        raise ValueError(
            f"task.count={count}: the benchmark has only {len(interleaved)} edits of the kinds {', '.join(kinds)}; set "
            f"task.count to at most {len(interleaved)}, or select more kinds in task.kinds."
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
    """Return the jobs of all methods with all models, and the combinations of method and model that are skipped.

    A combination is skipped if the method does not support the schedule of the model. The reference method that returns
    the ground-truth image is skipped if an edit has no ground-truth image, as in PIE-Bench.

    Args:
        models: the models with which every method is run.
        methods: dict from names to inversion methods. An image is edited in two ways: prompt swap generates an image
            from the inverted seed with the target prompt, and an attention edit also reuses attention of the source
            image.
        extra_methods: dict from names to additional methods, with which an image is edited in only one way (edit method
            ``native``). Editors (:class:`~rnri.editing.inversion_free.Editor`) edit without inversion, and inversion
            methods sample from the inverted seed with the target prompt.
        edits: the edits of the benchmark.
        batch_size: number of edits per job.
    """
    batches = [edits[k : k + batch_size] for k in range(0, len(edits), batch_size)]
    references = [SOURCE_IMAGE]
    skipped = []
    if all(edit.target_image for edit in edits):
        references.append(GROUND_TRUTH)
    else:
        reason = "The benchmark does not have the correct image of every edit."
        skipped.append({"model": NONE, "method": GROUND_TRUTH, "reason": reason})
    jobs = [EditJob(name, None, (NONE,), None, batch) for name in references for batch in batches]
    for model in models:
        edit_methods = (PROMPT_SWAP, ATTENTION_EDITS[edit_config_class(model.model)])
        entries = [(name, method, edit_methods) for name, method in methods.items()]
        entries += [(name, method, (NATIVE,)) for name, method in extra_methods.items()]
        for name, method, names in entries:
            try:
                check_schedule(method, model.model.schedule(model.steps))
            except ValueError as error:
                skipped.append({"model": model.name, "method": name, "reason": str(error)})
                continue
            jobs += [EditJob(name, method, names, model, batch) for batch in batches]
    return jobs, skipped


class EditJobDataModule(CachedUnitDataModule):
    """Lightning data module with the jobs whose results are not on disk yet."""

    unit_noun = "batch"

    def part(self, unit: EditJob) -> str:
        return unit.label

    def cost(self, unit: EditJob) -> float:
        return unit.cost.nfe + unit.cost.decoded or len(unit.edits)

    def address(self, unit: EditJob) -> tuple[str, str]:
        return unit.folder_key, unit.key
