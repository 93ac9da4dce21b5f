"""Check that a network's output does not depend on the network's earlier calls."""

from __future__ import annotations

from torch import nn


def check_no_cache(name: str, network: nn.Module) -> None:
    """Raise ValueError if ``network`` has a cache for fast sampling, which reuses results of earlier calls.

    Caches for fast sampling assume one call of the network per step and the same samples in every call. In an
    inversion, the solver determines the number of calls per step and the samples of each call. Caches are detected by
    diffusers' stateful hooks and by attributes and replaced forward methods with "cache" in their names (DeepCache,
    TeaCache, cache-dit).

    Args:
        name: name of the pipeline component, such as ``transformer``.
        network: the pipeline component.
    """
    cache, remedy = _cache(name, network)
    if cache is not None:
        raise ValueError(
            f"the pipeline's {name} has a cache ({cache}), so that its output depends on earlier calls and cannot be "
            f"inverted: {remedy}."
        )


def _cache(name: str, network: nn.Module) -> tuple[str | None, str]:
    """Return the name of the cache of ``network`` (None if there is none), and advice on how to remove the cache."""
    config = getattr(network, "_cache_config", None)
    if config is not None:
        return type(config).__name__, f"call pipe.{name}.disable_cache()"
    for module in network.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook_name, hook in getattr(registry, "hooks", {}).items():
            if getattr(hook, "_is_stateful", False):
                registry_class = f"{type(registry).__module__}.{type(registry).__qualname__}"
                return hook_name, (
                    f"call {registry_class}.check_if_exists_or_initialize(pipe.{name}).remove_hook({hook_name!r}, "
                    "recurse=True)"
                )
        forward = vars(module).get("forward")
        qualified_name = f"{getattr(forward, '__module__', '')}.{getattr(forward, '__qualname__', '')}"
        if "cache" in qualified_name.lower():
            return qualified_name, "disable this cache, or load the pipeline again without it"
    for attribute, value in {**vars(type(network)), **vars(network)}.items():
        if "cache" in attribute.lower() and isinstance(value, bool | int) and value:
            return attribute, f"disable this cache, or set pipe.{name}.{attribute} to False"
    return None, ""
