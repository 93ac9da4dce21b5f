"""An arm of the rare-concepts experiment: how its seeds are found and optimized, concept by concept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from lightning.pytorch import LightningModule
from pydantic import PositiveInt
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from experiments.base import Networks
from experiments.cache.store import UnitStore, synchronize
from experiments.planning.cost import BACKWARD, Cost, rows_of
from experiments.rare_concepts.batches import ConceptBatch
from experiments.reporting.finite import NonFiniteError, select_finite
from experiments.runtime.progress import Progress
from nao import centroid_seeds
from rnri import Inverter
from rnri.models.sampling import trajectory
from rnri.validation import ConfigError, GuidanceScale, HalfOpenUnitInterval, dataclass
from seedselect import BestOf, LocalSearch, SeedSelect, Selection, Targets
from seedselect.search import perturb
from seedselect.select import Trajectory


@dataclass(frozen=True)
class Arm:
    """One way to make images of a concept.

    Args:
        guidance: of inversion, optimization and sampling alike; 1 is off.
        inverter: how references become seeds; without one, seeds are drawn from the normal distribution.
        seed_init: makes an arm's seeds ``[G, n, C, h, w]`` from the references' ``[G, R, C, h, w]``.
        select: the optimization of those seeds, or a search among more; without one they are sampled as they are.
        gradient_steps: the optimization differentiates through the network in so many of the last steps of sampling
            (:func:`rnri.models.sampling.trajectory`); None: in all.
    """

    guidance: GuidanceScale
    inverter: Inverter | None = None
    seed_init: Callable[[Tensor, int], Tensor] | None = None
    select: SeedSelect | BestOf | LocalSearch | None = None
    gradient_steps: PositiveInt | None = None

    def __post_init__(self) -> None:
        if (self.inverter is None) != (self.seed_init is None):
            raise ValueError("an arm needs both an inverter and a seed_init function, or neither.")
        if self.inverter is not None and not self.inverter.seed_only:
            raise ConfigError(
                "inverter",
                f"{type(self.inverter).__name__} needs more than the seed to give an image back, all that NAO "
                "and SeedSelect have: choose another method, such as accelerated.",
            )

    @property
    def candidates(self) -> int:
        """Initial seeds of an image."""
        return self.select.candidates if self.select else 1

    def _differentiated(self, steps: int) -> int:
        return min(self.gradient_steps or steps, steps)

    def nfe(self, steps: int, forwards: Tensor, backwards: Tensor) -> Tensor:
        """Network evaluations of an image that was sampled and differentiated so often; a derivative counts as two."""
        return rows_of(self.guidance) * (steps * forwards + BACKWARD * self._differentiated(steps) * backwards)

    def cost(self, steps: int, samples: int, references: int) -> Cost:
        """About what one concept takes, if no sample stops early."""
        inverted = references * steps * self.inverter.nfe_per_step if self.inverter is not None else 0.0
        return Cost(rows_of(self.guidance) * inverted) + self.sampling_cost(steps, samples, checkpoint=False)

    def sampling_cost(self, steps: int, samples: int, *, checkpoint: bool) -> Cost:
        """What sampling and the optimization of one concept's seeds take, if no sample stops early."""
        cost, rows = Cost(steps, 1), rows_of(self.guidance)
        if self.select is not None:
            latents, (forwards, backwards) = len(self.select.step_weights), self.select.call_counts
            again, derived = checkpoint * backwards, self._differentiated(steps)
            cost = Cost(0, 1) + Cost(steps, latents).times(forwards) + Cost(0, 0, derived, latents).times(backwards)
            cost += Cost(again * derived, again * latents)
        return Cost(rows * cost.forward, cost.decodings, rows * cost.backward, cost.decodings_backward).times(samples)


def inverted_seeds(seeds: Tensor, count: PositiveInt) -> Tensor:
    """An ``seed_init``: the first ``count`` of the references' own seeds ``[G, R, C, h, w]``, without NAO.

    Raises:
        ValueError: more seeds asked for than there are references.
    """
    if count > seeds.shape[1]:
        raise ValueError(
            f"samples={count}, but there are {seeds.shape[1]} references to start from: use more references or the "
            "seeds on NAO's paths."
        )
    return seeds[:, :count]


def near_references(seeds: Tensor, count: PositiveInt, *, spread: HalfOpenUnitInterval) -> Tensor:
    """An ``seed_init``: the references' own seeds ``[G, R, C, h, w]``, then neighbors of them in turn, with a share
    ``spread`` of noise (:func:`seedselect.search.neighbor`), ``[G, count, C, h, w]``."""
    return torch.stack([_near(seeds[:, k % seeds.shape[1]], k, seeds.shape[1], spread) for k in range(count)], 1)


def around_centroid(seeds: Tensor, count: PositiveInt, *, spread: HalfOpenUnitInterval) -> Tensor:
    """An ``seed_init``: NAO's centroid of the seeds ``[G, R, C, h, w]``, then neighbors of it with a share ``spread``
    of noise, ``[G, count, C, h, w]``."""
    center = centroid_seeds(seeds, 1)[:, 0]
    return torch.stack([_near(center, k, 1, spread) for k in range(count)], 1)


def _near(seeds: Tensor, k: int, exact: int, spread: float) -> Tensor:
    """``seeds`` for the first ``exact`` k; beyond, moved by noise that depends on k alone."""
    if k < exact:
        return seeds
    noise = torch.randn(seeds.shape[1:], generator=torch.Generator().manual_seed(k))
    return perturb(seeds, noise.expand(seeds.shape), spread)


class RareConceptModule(LightningModule):
    """Seeds, optimization and samples of arms, by name; every concept's unit is written when it is finished.

    A unit holds ``images`` ``uint8 [m, 3, H, W]`` of the samples that are finite, ``seeds`` ``float32 [n, C, h, w]`` of
    all, NaN where a sample is not finite, and a record that says which are: a lost sample costs no other.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        networks: Networks,
        stores: Mapping[str, UnitStore],
        progress: Progress,
        *,
        steps: int,
        samples: int,
        noise_seed: int,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.arms, self.stores, self.progress = arms, stores, progress
        self.samples, self.noise_seed, self.checkpoint = samples, noise_seed, checkpoint
        self.networks = networks
        self.schedule = networks.model.schedule(steps)

    def predict_step(self, batch: ConceptBatch, _: int) -> list[str]:
        """Writes the units of a batch of concepts; returns their names.

        ``t_init`` is the seconds to a concept's initial seeds: inversion of its references, centroid and paths.
        ``t_opt`` is the mean over its seeds of the seconds until SeedSelect's loss had converged.

        Raises:
            NotFinite: no image of the batch is finite, and none of the arm is on disk: the checkpoint or its precision
                is at fault, and all other concepts would be lost too.
        """
        sound = batch.sound()
        made = self._make(batch.select(sound)) if any(sound) else []
        units = [made.pop(0) if fine else self._lost(batch, g) for g, fine in enumerate(sound)]
        store = self.stores[batch.arm]
        if store.empty() and not any(len(tensors["images"]) for tensors, _ in units):
            raise NonFiniteError(self._all_lost(batch, sound))
        for concept, (tensors, record) in zip(batch.concepts, units, strict=True):
            store.write(concept.key, tensors, record)
        self.progress.finish(len(batch.concepts))
        return [concept.name for concept in batch.concepts]

    def _make(self, batch: ConceptBatch) -> list[tuple[dict[str, Tensor], dict]]:
        """Each concept's tensors and record."""
        arm, start = self.arms[batch.arm], self._now()
        seeds = self._initial(batch)  # [G n candidates, C, h, w]
        seed_init = (self._now() - start) / len(batch.concepts)
        seeds, latents, records = self._optimize(seeds, batch) if arm.select else self._sample(seeds, batch)
        for k, record in enumerate(records):
            record["nfe"] += _inversion_evaluations(batch, k // self.samples) / self.samples
        self.progress.stage("decoding")
        with torch.no_grad():
            images = self.networks.model.decode(latents, clamp=False)
        units = []
        for g in range(len(batch.concepts)):
            rows = slice(g * self.samples, (g + 1) * self.samples)
            kept, finite = select_finite(images[rows])
            own = seeds[rows].float().cpu()
            own[~finite] = torch.nan
            record = {
                "t_init": _inversion_seconds(batch, g) + seed_init,
                "t_opt": sum(sample.get("seconds", 0.0) for sample in records[rows]) / self.samples,
                "samples": [r | {"finite": f} for r, f in zip(records[rows], finite.tolist(), strict=True)],
            }
            units.append(({"images": kept, "seeds": own}, record))
        return units

    def _lost(self, batch: ConceptBatch, group: int) -> tuple[dict[str, Tensor], dict]:
        """Tensors and record of a concept whose references have no finite seeds to start from."""
        images = torch.empty(0, 3, *self.networks.model.image_size, dtype=torch.uint8)
        seeds = torch.full((self.samples, *self.networks.model.latent_shape), torch.nan)
        seconds = _inversion_seconds(batch, group)
        record = {"t_init": seconds, "t_opt": None, "samples": [{"finite": False} for _ in range(self.samples)]}
        return {"images": images, "seeds": seeds}, record

    def _all_lost(self, batch: ConceptBatch, sound: Sequence[bool]) -> str:
        what = "image" if any(sound) else "inverted seed"
        names = ", ".join(repr(concept.name) for concept in batch.concepts)
        return (
            f"arm {batch.arm!r}: no {what} of {names} is finite. The checkpoint's weights are damaged, or overflow in "
            "their precision: try model.dtype=float32 and trainer.precision=32-true."
        )

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def _initial(self, batch: ConceptBatch) -> Tensor:
        """Seeds ``[G n candidates, C, h, w]``: candidate m of sample k is the concept's seed ``m n + k``."""
        arm = self.arms[batch.arm]
        count = self.samples * arm.candidates
        if batch.seeds is None or arm.seed_init is None:
            names = [f"{concept.name}/{k}" for concept in batch.concepts for k in range(count)]
            seeds = self.networks.model.noise(names, self.noise_seed).unflatten(0, (-1, count))
        else:
            self.progress.stage("finding centroids")
            seeds = arm.seed_init(batch.seeds.seed.unflatten(0, (len(batch.concepts), -1)), count)
        return seeds.unflatten(1, (arm.candidates, self.samples)).transpose(1, 2).flatten(0, 2)

    def _sample(self, seeds: Tensor, batch: ConceptBatch) -> tuple[Tensor, Tensor, list[dict]]:
        self.progress.stage("sampling")
        predictor = self.networks.model.predictor(self._prompts(batch), self.arms[batch.arm].guidance)
        with torch.no_grad():
            latents = self.networks.model.sample(seeds, predictor, self.schedule)
        nfe = self._evaluations(batch, torch.ones(len(seeds)), torch.zeros(len(seeds)))
        return seeds, latents, [{"nfe": count} for count in nfe]

    def _evaluations(self, batch: ConceptBatch, forwards: Tensor, backwards: Tensor) -> list[float]:
        return self.arms[batch.arm].nfe(len(self.schedule), forwards, backwards).double().tolist()

    def _optimize(self, seeds: Tensor, batch: ConceptBatch) -> tuple[Tensor, Tensor, list[dict]]:
        """Better seeds, the latents that they lead to, and what the optimization says of each."""
        decode = self.networks.model.decode
        selection = self.arms[batch.arm].select(
            seeds.float(),
            trajectory=self._trajectory(batch),
            decode=partial(checkpointed, decode, use_reentrant=False) if self.checkpoint else decode,
            features=self.networks.clip,
            targets=self._targets(batch),
            on_iteration=lambda k, loss: self.progress.stage(f"optimizing, iteration {k}, loss {loss.mean():.3f}"),
            noise=lambda k: self._noise(batch, k),
        )
        nfe = self._evaluations(batch, selection.forwards, selection.backwards)
        records = [{**r, "nfe": e} for r, e in zip(_records(selection), nfe, strict=True)]
        return selection.seed, selection.latent, records

    def _noise(self, batch: ConceptBatch, k: int) -> Tensor:
        """What a search draws for its ``k``-th neighbor of each seed."""
        names = [f"{concept.name}/{sample}/{k}" for concept in batch.concepts for sample in range(self.samples)]
        return self.networks.model.noise(names, self.noise_seed)

    def _trajectory(self, batch: ConceptBatch) -> Trajectory:
        predictor = self.networks.model.predictor(self._prompts(batch), self.arms[batch.arm].guidance)
        options = {
            "keep_last": len(self.arms[batch.arm].select.step_weights),
            "checkpoint": self.checkpoint,
            "gradient_steps": self.arms[batch.arm].gradient_steps,
        }
        return lambda seeds, rows: trajectory(seeds, predictor.select(rows), self.schedule, **options)

    def _targets(self, batch: ConceptBatch) -> Targets:
        """Mean CLIP feature and mean latent of each concept's references, and its prompt, for each of its seeds."""
        references = batch.references.flatten(0, 1)
        with torch.no_grad():
            features = self.networks.clip(references)
            latents = batch.seeds.z0 if batch.seeds else self.networks.model.encode(references)
        means = (value.unflatten(0, (len(batch.concepts), -1)).mean(1) for value in (features, latents))
        text = self.networks.clip.text([concept.prompt for concept in batch.concepts])
        given = (value.repeat_interleave(self.samples, 0) for value in (*means, text))
        return Targets(*given, self._prompts(batch))

    def _prompts(self, batch: ConceptBatch) -> list[str]:
        return [concept.prompt for concept in batch.concepts for _ in range(self.samples)]


def _records(selection: Selection) -> list[dict]:
    names = ("initial_loss", "loss", "iterations", "converged", "seconds")
    columns = [getattr(selection, name).tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _inversion_evaluations(batch: ConceptBatch, group: int) -> float:
    """Network evaluations that the inversion of one concept's references took."""
    return batch.seeds.nfe.view(len(batch.concepts), -1)[group].sum().item() if batch.seeds else 0.0


def _inversion_seconds(batch: ConceptBatch, group: int) -> float:
    """Time that the inversion of one concept's references took."""
    return batch.seeds.seconds.view(len(batch.concepts), -1)[group].sum().item() if batch.seeds else 0.0
