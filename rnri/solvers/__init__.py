"""Solvers of the implicit equation ``z = f(z)`` of one inversion step. Solvers do not access prompts or schedules."""

from typing import TYPE_CHECKING

from rnri.lazy import lazy_names

if TYPE_CHECKING:
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
