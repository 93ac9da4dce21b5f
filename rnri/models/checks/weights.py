"""Check of loaded weights, because diffusers and transformers initialize missing weights randomly without an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping

OTHER_CLIP_WEIGHTS = ("position_ids", "vision_model.", "logit_scale", "_projection")
"""Parts of the names of CLIP weights that a text encoder's file may contain although the text encoder ignores them."""


def check_loading_info(component: str, class_name: str, loading_info: Mapping[str, Collection[object]]) -> None:
    """Raise ValueError if weights of a component are missing, are unknown, or have a wrong shape.

    Args:
        component: name of the component, such as ``unet``.
        class_name: name of the component's class.
        loading_info: the second return value of ``from_pretrained(..., output_loading_info=True)``.
    """
    unexpected = [
        str(key) for key in loading_info["unexpected_keys"] if not any(name in str(key) for name in OTHER_CLIP_WEIGHTS)
    ]
    problems = {
        "do not contain": loading_info["missing_keys"],
        "have a wrong shape for": loading_info["mismatched_keys"],
        f"contain, in addition to those of a {class_name} with its config.json,": unexpected,
    }
    for problem, keys in problems.items():
        if keys:
            first_key = sorted(map(str, keys))[0]
            raise ValueError(
                f"the weights of the component {component!r} {problem} {first_key} ({len(keys)} such weights): "
                "download the weights and config.json of the component again."
            )
