"""Models of which every process holds a part: FSDP2, within all processes or within groups of them.

The trained model is a sharded *twin* of the objective. The objective itself stays a plain module, on rank 0 only,
and gets the current weights when somebody wants to look at them. So probes, exports and tasks need not know of
sharding, and may run on one rank alone, which a sharded model can't.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vitp.core import distributed
from vitp.core.errors import ConfigError
from vitp.engine.config import TrainSettings
from vitp.models.compilation import is_compiled
from vitp.objectives.base import Objective

REPLICATE, SHARD = "replicate", "shard"


def is_wanted(config: TrainSettings) -> bool:
    """Return whether the configuration asks for shards, and there are processes to share them."""
    return config.parallel != "ddp" and distributed.world_size() > 1


def make_mesh(config: TrainSettings, device: torch.device) -> DeviceMesh:
    """Return the processes as a line (`fsdp`), or as a grid of copies × parts (`hybrid`).

    Raises:
        ConfigError: The processes can't be cut into groups of the wanted size.
    """
    world = distributed.world_size()
    if config.parallel == "fsdp":
        return init_device_mesh(device.type, (world,), mesh_dim_names=(SHARD,))
    size = config.shard_size or distributed.local_world_size()
    if world % size:
        raise ConfigError(
            f"{world} processes can't be cut into groups of {size}",
            where="train.shard_size",
            fix="choose a divisor of the number of processes",
        )
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=(REPLICATE, SHARD))


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the layers that the model repeats: the members of lists of at least two modules of one class.

    They are what is gathered and freed as one; lists within them are left alone.
    """
    blocks: list[nn.Module] = []
    for child in module.children():
        members = list(child.children())
        kinds = {type(member) for member in members}
        alike = isinstance(child, nn.ModuleList | nn.Sequential) and len(members) > 1 and len(kinds) == 1
        if alike and all(any(True for _ in member.parameters()) for member in members):
            blocks += members
        else:
            blocks += repeated_blocks(child)
    return blocks


def shard(
    objective: Objective, config: TrainSettings, device: torch.device, dtype: torch.dtype | None = None
) -> Objective:
    """Return the sharded twin of an objective, with the weights that rank 0 has.

    Every process must run the same modules in every forward pass: a module that one leaves out is one that the
    others wait for.

    Args:
        objective: Any weights; the plain module keeps them on rank 0 and has none on the others.
        config: Configuration of the run.
        device: Device of this process.
        dtype: In which autocast computes; None: in that of the weights.

    Raises:
        ConfigError: The processes can't be cut into groups of the wanted size, or a part of the objective reads
            weights of layers outside of them.
    """
    for module in objective.modules():
        if reader := getattr(module, "reads_weights", ""):
            raise ConfigError(
                f"{reader} reads weights that a sharded model doesn't hold at that moment",
                where="train.parallel",
                fix=f"choose ddp, or do without {reader}",
            )
    mesh = make_mesh(config, device)
    distributed.broadcast_state(objective.cpu())
    twin = copy.deepcopy(objective)
    if distributed.rank() > 0:
        # Only rank 0's plain objective is ever looked at; elsewhere its weights would be memory for nothing.
        objective.to("meta")
    # One number has no parts: each process keeps it whole, and `Gradients` averages what it learns.
    scalars = {parameter for parameter in twin.parameters() if parameter.ndim == 0}
    for block in repeated_blocks(twin):
        _shard_block(block, mesh, dtype, scalars)
    fully_shard(twin, mesh=mesh, ignored_params=scalars)
    set_unused = getattr(twin, "set_reduce_scatter_unused_params", None)
    # Newer releases: parameters that only some processes used count as zero elsewhere.
    if set_unused is not None:
        set_unused(True)
    return twin.to(device)


def _shard_block(
    block: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None, scalars: set[nn.Parameter]
) -> None:
    """Shard a block; its matrices are gathered in `dtype`, half of the bytes, and their gradients summed in fp32.

    Autocast would cast the matrices anyway, and leaves norms and scales as they are; so do we, and results stay those
    of one process. Within a compiled block nothing can be gathered on the way: all of it is gathered in `dtype`.
    """
    if dtype is None:
        fully_shard(block, mesh=mesh, ignored_params=scalars)
        return
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    if is_compiled(block):
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=scalars)
        return
    matrices: list[nn.Module] = [part for part in block.modules() if type(part) is nn.Linear]
    # What is frozen beside what is trained, as with LoRA, is not one group.
    if matrices and len({p.requires_grad for part in matrices for p in part.parameters()}) == 1:
        fully_shard(matrices, mesh=mesh, mp_policy=policy)
    if any(parameter not in scalars for parameter in _own_parameters(block, matrices)):
        fully_shard(block, mesh=mesh, ignored_params=scalars)


def _own_parameters(block: nn.Module, apart: list[nn.Module]) -> Iterator[nn.Parameter]:
    """Return the parameters of a block that are in none of its modules `apart`."""
    elsewhere = {id(parameter) for part in apart for parameter in part.parameters()}
    yield from (parameter for parameter in block.parameters() if id(parameter) not in elsewhere)


def held_gradients(model: nn.Module, hold: bool) -> contextlib.AbstractContextManager[None]:
    """Within the context gradients stay on this process; without `hold` they are averaged over all."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not hold)
        # FSDP waits for its reductions, and forgets the order of its gathers, after the last pass alone.
        model.set_is_last_backward(not hold)
    elif hold and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_group(tensor: Tensor) -> ProcessGroup | None:
    """Return the processes whose parts make up a tensor, None where it is not sharded."""
    return tensor.device_mesh.get_group(SHARD) if isinstance(tensor, DTensor) else None


def all_finite(model: nn.Module) -> bool:
    """Return whether the state of all processes is finite. A collective call."""
    parts = [local(tensor) for tensor in model.state_dict().values() if torch.is_floating_point(tensor)]
    return all(distributed.gather(all(bool(torch.isfinite(part).all()) for part in parts)))


@contextlib.contextmanager
def published(
    twin: nn.Module, plain: nn.Module, device: torch.device, average: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Within the block rank 0's plain objective has the twin's weights and is on the device. A collective call.

    Weights that are in `average` are those.
    """
    main = distributed.rank() == 0
    if main:
        plain.to(device)
    target = plain.state_dict() if main else {}
    with torch.no_grad():
        for name, own in twin.state_dict().items():
            tensor = own if average is None else average.get(name, own)
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if main:
                target[name].copy_(whole)
    yield
    if main:
        plain.cpu()
