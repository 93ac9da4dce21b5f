"""Inversion of text-to-image diffusion models: computes the initial noise (seed) from which a model generates an image.

The public names of this package are imported when they are first used, so that ``import rnri`` does not import
diffusers and transformers.
"""

from typing import TYPE_CHECKING

from rnri.lazy import lazy_names

if TYPE_CHECKING:
    from rnri.api import invert as invert
    from rnri.inversion import ImplicitInverter as ImplicitInverter
    from rnri.inversion import Inversion as Inversion
    from rnri.inversion import Inverter as Inverter
    from rnri.inversion import check_schedule as check_schedule
    from rnri.inversion import with_measured_residuals as with_measured_residuals
    from rnri.methods import METHODS as METHODS
    from rnri.methods.accelerated import anderson_inverter as anderson_inverter
    from rnri.methods.decoder_inversion import DecoderInversion as DecoderInversion
    from rnri.methods.prompt_aware import PromptAware as PromptAware
    from rnri.methods.registry import methods_table as methods_table
    from rnri.methods.registry import register_method as register_method
    from rnri.methods.round_trip_corrected import RoundTripCorrected as RoundTripCorrected
    from rnri.models.deterministic import DeterministicScheduler as DeterministicScheduler
    from rnri.models.deterministic import scheduler_for as scheduler_for
    from rnri.models.diffusers_schedulers import alpha_bar_table as alpha_bar_table
    from rnri.models.diffusion import LatentDiffusion as LatentDiffusion
    from rnri.models.predictor import Condition as Condition
    from rnri.models.predictor import Denoiser as Denoiser
    from rnri.models.predictor import GuidedDenoiser as GuidedDenoiser
    from rnri.models.predictor import NoisePredictor as NoisePredictor
    from rnri.models.sampling import ddim_step as ddim_step
    from rnri.models.sampling import sample as sample
    from rnri.models.sampling import trajectory as trajectory
    from rnri.models.schedule import Schedule as Schedule
    from rnri.models.unet import UNetDenoiser as UNetDenoiser
    from rnri.pipeline_inversion import PipelineInversion as PipelineInversion
    from rnri.pipeline_inversion import load as load
    from rnri.solvers.anderson import Anderson as Anderson
    from rnri.solvers.anderson import SafeguardedAnderson as SafeguardedAnderson
    from rnri.solvers.gradient import ForwardStep as ForwardStep
    from rnri.solvers.gradient import GradientDescent as GradientDescent
    from rnri.solvers.implicit import ImplicitStep as ImplicitStep
    from rnri.solvers.implicit import Solution as Solution
    from rnri.solvers.implicit import Solver as Solver
    from rnri.solvers.iterative import AveragedFixedPoint as AveragedFixedPoint
    from rnri.solvers.iterative import FixedPoint as FixedPoint
    from rnri.solvers.iterative import IterativeSolver as IterativeSolver
    from rnri.solvers.newton import GNRI as GNRI
    from rnri.solvers.newton import RNRIMeanSign as RNRIMeanSign
    from rnri.solvers.newton import RNRIMinimumNorm as RNRIMinimumNorm
    from rnri.solvers.newton import RNRIPaper as RNRIPaper
    from rnri.solvers.newton import RNRISign as RNRISign
    from rnri.solvers.newton_krylov import NewtonKrylov as NewtonKrylov
    from rnri.solvers.precise_inv import PreciseInv as PreciseInv
    from rnri.solvers.renoise import ReNoise as ReNoise
    from rnri.solvers.selfix import SelFix as SelFix

__getattr__, __dir__, __all__ = lazy_names(__name__)
