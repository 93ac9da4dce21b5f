"""A stand-in for a device that this machine lacks: Apple's MPS, which has no float64 and mixes with no other device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("mps", 0)  # with its number, or PyTorch asks the device itself for it
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations on a device's tensor that take indices on the CPU."""


class OnDevice(Tensor):
    """A tensor that says that it lies on the device; what it ``held`` is computed on the CPU, in no float64."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cpu = property(lambda self: False)
    is_mps = property(lambda self: True)

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError(NO_FLOAT64)
        options = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        self = Tensor._make_wrapper_subclass(cls, held.shape, **options)
        self.held = held
        return self

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


class _Brought(torch.autograd.Function):
    """A tensor carried to the device or back, and its gradient the other way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.held.clone() if isinstance(tensor, OnDevice) else OnDevice(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Brought.apply(gradient)


class _Carrying(TorchFunctionMode):
    """``.to`` and ``.cpu`` carry tensors between the device and the CPU, which PyTorch takes for one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (Tensor.tolist, Tensor.__format__) and isinstance(args[0], OnDevice):
            return function(args[0].held, *args[1:])
        if function is Tensor.cpu:
            return _carried(args[0], torch.device("cpu"), None)
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return _carried(function(*args, **kwargs | {"device": "cpu"}), DEVICE, None)
        if function is Tensor.new_tensor and isinstance(args[0], OnDevice):
            return _carried(torch.tensor(args[1], dtype=args[0].dtype), DEVICE, None)
        if function is Tensor.to:
            other = next((value for value in args[1:] if isinstance(value, Tensor)), None)
            if other is not None:
                return _carried(args[0], other.device, other.dtype)
            kwargs.pop("copy", None)
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **kwargs)
            return _carried(args[0], device, dtype)
        return function(*args, **kwargs)


def _carried(tensor: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """As ``tensor.to(device, dtype)``: the dtype changes first where it can, for float64 may leave but not arrive."""
    leaves = device is not None and device.type != DEVICE.type
    if device is None or device.type == tensor.device.type:
        return tensor if dtype in (None, tensor.dtype) else tensor.type(dtype)
    if leaves:
        found = _Brought.apply(tensor)
        return found if dtype is None else found.type(dtype)
    return _Brought.apply(tensor if dtype is None else tensor.type(dtype))


class _Factories(TorchDispatchMode):
    """Makes tensors on the device where one is asked for there."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


def _compute(operation: Any, args: tuple, kwargs: dict) -> Any:
    given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    here = {id(value.held): value for value in given if isinstance(value, OnDevice)}
    _check_mixture(operation, args, given, bool(here))
    asked = kwargs.get("device")
    there = bool(here) or (asked is not None and torch.device(asked).type == DEVICE.type)
    if there and asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    held_args, held_kwargs = pytree.tree_map_only(OnDevice, lambda value: value.held, (args, kwargs))
    found = operation(*held_args, **held_kwargs)
    if not there or operation.name().startswith("aten::_local_scalar_dense"):
        return found
    return pytree.tree_map_only(Tensor, lambda value: here[id(value)] if id(value) in here else OnDevice(value), found)


def _check_mixture(operation: Any, args: tuple, given: list[Tensor], here: bool) -> None:
    name = operation.name().partition(".")[0]
    if not here or name == "aten::copy_":
        return
    if name in INDEXING:
        given = [value for value in (args[0], *args[2:3]) if isinstance(value, Tensor)]
    if any(not isinstance(value, OnDevice) and value.ndim > 0 for value in given):
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, but found at least two, mps and cpu"
        )


class StandIn(CPUAccelerator):
    """Lightning's view of the device."""

    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """Within it, ``.to(device)`` and ``device=device`` work, and what MPS cannot do raises as there."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Carrying(), _Factories():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
