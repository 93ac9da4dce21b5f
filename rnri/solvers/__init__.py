"""Solvers of the implicit equation ``z = f(z)`` of one inversion step. Solvers do not access prompts or schedules."""

from rnri.solvers.anderson import Anderson, SafeguardedAnderson
from rnri.solvers.gradient import ForwardStep, GradientDescent
from rnri.solvers.implicit import ImplicitStep, Solution, Solver
from rnri.solvers.iterative import AveragedFixedPoint, FixedPoint, IterativeSolver
from rnri.solvers.newton import GNRI, RNRIMeanSign, RNRIMinimumNorm, RNRIPaper, RNRISign
from rnri.solvers.newton_krylov import NewtonKrylov
from rnri.solvers.renoise import ReNoise

__all__ = [
    "GNRI",
    "Anderson",
    "AveragedFixedPoint",
    "FixedPoint",
    "ForwardStep",
    "GradientDescent",
    "ImplicitStep",
    "IterativeSolver",
    "NewtonKrylov",
    "RNRIMeanSign",
    "RNRIMinimumNorm",
    "RNRIPaper",
    "RNRISign",
    "ReNoise",
    "SafeguardedAnderson",
    "Solution",
    "Solver",
]
