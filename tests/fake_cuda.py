"""A GPU that is not there: tensors on "cuda" without contents, and a record of what would make the host wait for it.

torch's FakeTensorMode computes shapes, types and devices. `Watch` sees each operation on the way and notes those that
would stop the host until the device has caught up, and copies between host and device that wait. What it can't see:
kernels (whether one waits inside of itself), allocations, streams, and what happens in libraries outside of torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
_WAITS = {
    *("_local_scalar_dense", "item", "nonzero", "nonzero_static", "masked_select", "equal", "is_nonzero"),
    *("unique_dim", "_unique2", "unique_consecutive", "bincount", "histc", "nms"),
}
"""Operations whose result the host needs before it can go on."""


class Watch(TorchDispatchMode):
    """Notes waits and copies.

    Args:
        device: Whose waits are noted: "cpu" counts on real tensors what would be waits on a GPU.

    Attributes:
        waits: What made the host wait, in the order of the operations.
        copies: Copies from the host that don't wait.
        mixed: Operations on tensors of several devices that torch lets pass, beside numbers.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device
        self.waits: list[str] = []
        self.copies: list[str] = []
        self.mixed: list[str] = []
        self.types: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {
            tensor.device.type for tensor in tensors if tensor.ndim or name.startswith(("copy", "_to"))
        }
        if name in _WAITS and self.device in devices | {t.device.type for t in tensors}:
            self.waits.append(name)
        # One number of the host that goes to all places of a mask is a `masked_fill` to torch.
        if name in ("index", "index_put", "index_put_") and any(
            t.dtype == torch.bool for t in tree_leaves(args[1]) if isinstance(t, Tensor)
        ):
            filled = name != "index" and args[2].numel() == 1 and args[2].device.type == "cpu"
            self.waits += [] if filled else [f"{name} by a mask"]
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.waits.append(name)
        self._copy(name, args, kwargs, tensors)
        found = func(*args, **kwargs)
        if len(devices) > 1 and not name.startswith(("copy", "_to")):
            self.mixed.append(f"{name} {sorted(devices)}")
        if name in ("mm", "addmm", "bmm"):
            kind = str(tensors[-1].dtype)
            self.types[kind] = self.types.get(kind, 0) + 1
        return found

    def _copy(self, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        if name == "_to_copy":
            source, target = (
                tensors[0].device.type,
                torch.device(kwargs.get("device") or tensors[0].device).type,
            )
            waits = not kwargs.get("non_blocking", False)
        elif name == "copy_":
            source, target = args[1].device.type, args[0].device.type
            waits = not (len(args) > 2 and args[2])
        else:
            return
        if source == target or "meta" in (source, target):
            return
        said = f"{source} → {target} {list(tensors[-1].shape)}"
        (self.waits if waits or target == "cpu" else self.copies).append(said)


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Within the context new tensors are fake, "cuda" may be named, and autocast to bf16 works on it."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        mock.patch(
            "torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False
        ),
        mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),
        mock.patch("torch.cuda.get_device_capability", lambda *_, **__: (9, 0)),
        mock.patch("torch.backends.cudnn.version", lambda: None),
    ):
        yield mode


def on_fake_cuda(value: Tensor, mode: FakeTensorMode) -> Tensor:
    """Return a tensor without contents on "cuda" that has the shape of another."""
    made = mode.from_tensor(value) if not isinstance(value, FakeTensor) else value
    return made.to(CUDA)
