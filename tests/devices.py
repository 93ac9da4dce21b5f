"""A fake device with the limits of Apple's MPS: no float64, and no operations between tensors of two devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("mps", 0)  # with an index, because PyTorch would query the missing device for it
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations on a device tensor that accept indices on the CPU."""


class FakeTensor(Tensor):
    """A tensor that reports to be on the fake device; its ``data_on_cpu`` is never float64."""

    data_on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cpu = property(lambda self: False)
    is_mps = property(lambda self: True)

    @staticmethod
    def __new__(cls, data_on_cpu: Tensor) -> FakeTensor:
        if data_on_cpu.dtype in (torch.float64, torch.complex128):
            raise TypeError(NO_FLOAT64)
        options = {
            "strides": data_on_cpu.stride(),
            "storage_offset": data_on_cpu.storage_offset(),
            "dtype": data_on_cpu.dtype,
        }
        self = Tensor._make_wrapper_subclass(cls, data_on_cpu.shape, **options)
        self.data_on_cpu = data_on_cpu
        return self

    def __repr__(self) -> str:
        return f"OnDevice({self.data_on_cpu})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


class _Transfer(torch.autograd.Function):
    """Transfers a tensor to the device or back; its gradient is transferred the other way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.data_on_cpu.clone() if isinstance(tensor, FakeTensor) else FakeTensor(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Transfer.apply(gradient)


class _TransferMode(TorchFunctionMode):
    """Makes ``.to`` and ``.cpu`` transfer tensors between the fake device and the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (Tensor.tolist, Tensor.__format__) and isinstance(args[0], FakeTensor):
            return function(args[0].data_on_cpu, *args[1:])
        if function is Tensor.cpu:
            return transfer(args[0], torch.device("cpu"), None)
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return transfer(function(*args, **kwargs | {"device": "cpu"}), DEVICE, None)
        if function is Tensor.new_tensor and isinstance(args[0], FakeTensor):
            return transfer(torch.tensor(args[1], dtype=args[0].dtype), DEVICE, None)
        if function is Tensor.to:
            other = next((value for value in args[1:] if isinstance(value, Tensor)), None)
            if other is not None:
                return transfer(args[0], other.device, other.dtype)
            kwargs.pop("copy", None)
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **kwargs)
            return transfer(args[0], device, dtype)
        return function(*args, **kwargs)


def transfer(tensor: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """Return ``tensor.to(device, dtype)``; a conversion from float64 is done before the transfer to the device."""
    if device is None or device.type == tensor.device.type:
        return tensor if dtype in (None, tensor.dtype) else tensor.type(dtype)
    if device.type != DEVICE.type:
        on_cpu = _Transfer.apply(tensor)
        return on_cpu if dtype is None else on_cpu.type(dtype)
    return _Transfer.apply(tensor if dtype is None else tensor.type(dtype))


class _FactoryMode(TorchDispatchMode):
    """Creates tensors with ``device=DEVICE`` on the fake device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Run an operation on the CPU; the result is on the fake device if an input or ``device`` is."""
    tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    fakes = {id(value.data_on_cpu): value for value in tensors if isinstance(value, FakeTensor)}
    _check_devices(operation, args, tensors, has_fakes=bool(fakes))
    device = kwargs.get("device")
    on_fake = bool(fakes) or (device is not None and torch.device(device).type == DEVICE.type)
    if on_fake and device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    cpu_args, cpu_kwargs = pytree.tree_map_only(FakeTensor, lambda value: value.data_on_cpu, (args, kwargs))
    result = operation(*cpu_args, **cpu_kwargs)
    if not on_fake or operation.name().startswith("aten::_local_scalar_dense"):
        return result

    def to_fake(value: Tensor) -> FakeTensor:  # in-place operations return their input
        return fakes[id(value)] if id(value) in fakes else FakeTensor(value)

    return pytree.tree_map_only(Tensor, to_fake, result)


def _check_devices(operation: Any, args: tuple, tensors: list[Tensor], *, has_fakes: bool) -> None:
    """Raise RuntimeError if an operation mixes tensors of the fake device and of the CPU."""
    name = operation.name().partition(".")[0]
    if not has_fakes or name == "aten::copy_":
        return
    if name in INDEXING:
        tensors = [value for value in (args[0], *args[2:3]) if isinstance(value, Tensor)]
    if any(not isinstance(value, FakeTensor) and value.ndim > 0 for value in tensors):
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, but found at least two, mps and cpu"
        )


class FakeAccelerator(CPUAccelerator):
    """Lightning's accelerator for the fake device."""

    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE


def _synchronize(device: torch.device) -> None:
    """Replace ``torch.accelerator.synchronize``. The fake device has no queue, because it computes on the CPU."""
    assert device == DEVICE


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """Enable the fake device: ``.to(device)`` and ``device=device`` work, and operations that MPS lacks raise."""
    previous = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _TransferMode(), _FactoryMode(), patch("torch.accelerator.synchronize", _synchronize):
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(previous)
