"""Every published method of the register names its paper and the code that it was compared with, and has a test."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from rnri.methods import ALL_METHODS
from rnri.methods.registry import (
    NO_CODE,
    NO_LICENSE,
    NOT_COMPARED,
    methods_table,
    register_method,
    unregister_method,
)

METHODS = "rnri/methods/test_"
SOLVERS = "rnri/solvers/test_"
BY_HAND = {
    "aidi": f"{SOLVERS}solvers.py::test_fixed_point_by_hand",
    "aidi_a": f"{SOLVERS}solvers.py::test_anderson_with_one_difference_is_the_secant_method",
    "aidi_e": f"{SOLVERS}solvers.py::test_averaged_fixed_point_by_hand",
    "bdia": f"{METHODS}published_methods.py::test_bdia_with_gamma_one_half",
    "ddim": f"{SOLVERS}solvers.py::test_fixed_point_by_hand",
    "direct": f"{METHODS}published_methods.py::test_direct_inversion_stores_the_guided_samplers_error",
    "edict": f"{METHODS}published_methods.py::test_edict_alternates_updates_and_mixes_x_first",
    "edit_friendly": f"{METHODS}published_methods.py::TestEditFriendly",
    "edit_friendly_exact": f"{METHODS}published_methods.py::TestEditFriendly",
    "exact_dpm": f"{SOLVERS}published_solvers.py::test_forward_step_starts_at_f_and_is_damped",
    "fireflow": f"{METHODS}flow_methods.py::test_fireflow_by_hand",
    "flow_opt": f"{METHODS}methods_of_2026.py::test_flow_opt_by_hand",
    "gnri": f"{SOLVERS}published_solvers.py::test_gnri_by_hand",
    "ledits": f"{METHODS}ledits.py::test_second_order_step_by_hand",
    "negative_prompt": f"{METHODS}published_methods.py::test_negative_prompt_is_ddim_without_guidance",
    "newton_krylov": f"{SOLVERS}solvers.py::test_newton_krylov_is_exact_on_linear_problems",
    "newton_naive": f"{SOLVERS}solvers.py::test_zero_prior_weight_leaves_the_residual",
    "null_text": f"{METHODS}published_methods.py::TestNullText",
    "obelm": f"{METHODS}published_methods.py::test_obelm",
    "pmi": f"{METHODS}methods_of_2026.py::test_pmi_by_hand",
    "precise_inv": f"{METHODS}methods_of_2026.py::test_precise_inv_by_hand",
    "renoise": f"{SOLVERS}published_solvers.py::test_renoise_averages_the_published_window",
    "renoise_ancestral": f"{METHODS}ancestral.py::test_noise_correction_by_hand",
    "renoise_one_window": f"{SOLVERS}published_solvers.py::test_renoise_returns_the_mean_of_its_values",
    "rex": f"{METHODS}methods_of_2026.py::test_rex_in_data_form_by_hand",
    "rex_midpoint": f"{METHODS}methods_of_2026.py::test_rex_midpoint_by_hand",
    "rf_inversion": f"{METHODS}flow_methods.py::test_rf_inversion_by_hand",
    "rf_solver": f"{METHODS}flow_methods.py::test_rf_solver_by_hand",
    "rnri": f"{SOLVERS}solvers.py::test_rnri_by_hand",
    "rnri_ancestral": f"{METHODS}ancestral.py::test_ancestral_steps_by_hand",
    "rnri_minimum_norm": f"{SOLVERS}solvers.py::test_rnri_minimum_norm_by_hand",
    "rnri_paper": f"{SOLVERS}solvers.py::test_rnri_paper_by_hand",
    "rnri_sign": f"{SOLVERS}published_solvers.py::test_rnri_sign_matches_published_code",
    "rnri_sign_euler": (
        f"{SOLVERS}published_solvers.py::test_rnri_sign_matches_published_code_in_the_coordinates_of_euler"
    ),
    "sdedit": f"{METHODS}published_methods.py::test_sdedit_noises_and_samples_half_of_the_steps",
    "selfix": f"{METHODS}methods_of_2026.py::test_selfix_by_hand",
    "slerp_flow": f"{METHODS}methods_of_2026.py::test_slerp_flow_by_hand",
    "taba": f"{METHODS}methods_of_2026.py::test_taba_by_hand",
    "uni_inv": f"{METHODS}flow_methods.py::test_uni_inv_by_hand",
}
"""The test that compares each published method with steps that are computed by hand."""

UNPUBLISHED = ("ours", "–", "seeds of ")
"""Beginnings of ``Method.paper`` for methods without a publication of their own."""

CODE = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{7} [\w./-]+:\d+-\d+(,\d+-\d+)*")
"""``owner/name@commit path:lines``."""
PAPER = re.compile(r"arXiv \d{4}\.\d{5}|NeurIPS 20\d\d|ICML 20\d\d, poster \d+|Knoll & Keyes 2004")
EQUATION = re.compile(r"``[^`]*\w[^`=]* (=|<-) [^`]*[^`\d. ][^`]*``|::\n\n +\w.*(=|<-|:) ")
"""A formula in the text, or a block of formulas."""

PUBLISHED = [name for name, method in ALL_METHODS.items() if not method.paper.startswith(UNPUBLISHED)]


def documentation(name: str) -> str:
    """Return the docstrings of a method's class, of its solver and of its factory."""
    method = ALL_METHODS[name]
    inverter = method()
    parts = [inverter, getattr(inverter, "solver", None), getattr(inverter, "inverter", None), method.factory]
    return "\n".join(part.__doc__ or "" for part in parts if part is not None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_method_names_its_paper_equation_and_code(name):
    method = ALL_METHODS[name]
    assert PAPER.search(method.paper), method.paper
    assert EQUATION.search(documentation(name))
    assert method.source in (NO_CODE, NO_LICENSE, NOT_COMPARED) or CODE.fullmatch(method.source), method.source


@pytest.mark.parametrize("name", PUBLISHED)
def test_docstring_names_the_paper_and_the_code(name):
    method = ALL_METHODS[name]
    code = method.source if CODE.fullmatch(method.source) else f"steps computed by hand ({method.source})"
    assert inspect.getdoc(method.factory).count(f"\n\nPaper: {method.paper}.\nChecked against: {code}.") == 1


def test_docstrings_without_a_source_are_unchanged():
    assert all("Checked against" not in ALL_METHODS[name].factory.__doc__ for name in ("accelerated", "midpoint"))


def test_source_is_not_appended_twice_or_to_a_lambda():
    class Documented:
        """A method."""

    def plain():
        return Documented()

    factories = {"toy": Documented, "toy_again": Documented, "toy_lambda": lambda: Documented(), "toy_plain": plain}
    for name, factory in factories.items():
        register_method(name, factory, paper="none", source=NO_CODE)
        unregister_method(name)
    assert (
        inspect.getdoc(Documented)
        == "A method.\n\nPaper: none.\nChecked against: steps computed by hand (no public code)."
    )
    assert factories["toy_lambda"].__doc__ is None and plain.__doc__ is None


def test_every_published_method_has_a_case_by_hand():
    assert set(BY_HAND) == set(PUBLISHED)
    for location in sorted(set(BY_HAND.values())):
        path, name = location.split("::")
        nodes = ast.parse(Path("tests", path).read_text()).body
        assert name in {getattr(node, "name", None) for node in nodes}, location


def test_table_shows_the_code_that_a_method_was_compared_with():
    (row,) = (line for line in methods_table().splitlines() if line.startswith("| `flow_opt` |"))
    assert "orronai/FlowOpt@ee3577b utils/flux.py:353-371" in row
