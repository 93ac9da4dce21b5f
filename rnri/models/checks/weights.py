"""Check of loaded weights: diffusers and transformers replace missing weights by random ones and drop unknown ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

OTHER_CLIP_WEIGHTS = ("position_ids", "vision_model.", "logit_scale", "_projection")
"""Parts of names of CLIP weights that may be stored with a text encoder and are not needed."""


def check_loading_info(component: str, class_name: str, loading_info: Mapping[str, Iterable[object]]) -> None:
    """Raise ValueError if weights of a component are missing, unknown, or of another shape.

    Args:
        component: name of the component, such as ``unet``.
        class_name: class of the component.
        loading_info: second result of ``from_pretrained(..., output_loading_info=True)``.
    """
    unexpected = [
        str(key) for key in loading_info["unexpected_keys"] if not any(name in str(key) for name in OTHER_CLIP_WEIGHTS)
    ]
    problems = {
        "do not contain": loading_info["missing_keys"],
        "have another shape of": loading_info["mismatched_keys"],
        f"contain, in addition to those of a {class_name} with its config.json,": unexpected,
    }
    for problem, keys in problems.items():
        if keys:
            first_key = sorted(map(str, keys))[0]
            raise ValueError(
                f"the weights of its component {component!r} {problem} {first_key} ({len(keys)} such weights): "
                "download the file and its config.json again."
            )
