"""Reading the description of a checkpoint in parts without running what a stranger may have put into it.

torch keeps names, shapes and places of the parts in `.metadata`, a pickle, and unpickles it without a check. Here only
the classes that such a description is made of can be named in it.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from vitp.core.errors import DamagedError
from vitp.core.reading import read_bytes

_LARGEST = 1 << 30

_CLASSES: dict[tuple[str, str], Any] = {
    **{
        (metadata.__name__, name): getattr(metadata, name)
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    # The folder that the checkpoint was written into.
    **{
        # Python 3.13 has its paths in `pathlib._local`; pure ones can be made on any system, and touch no disk.
        (module, f"{pure}{kind}"): getattr(pathlib, f"Pure{kind}")
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for kind in ("PosixPath", "WindowsPath")
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _CLASSES.get((module, name))
        # Types of tensors are pickled by their names in torch.
        if found is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint holds")
        return found


class PartsReader(FileSystemReader):
    """torch's reader of a checkpoint in parts, but for how it reads `.metadata`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the description of the parts.

        Raises:
            DamagedError: It is missing or damaged, or names something that no checkpoint holds.
        """
        found = read_parts(Path(self._get_metadata_path(kwargs.get("rank"))))
        found.storage_meta = StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


def read_parts(path: Path) -> Metadata:
    """Return the description in a `.metadata` file; nothing in it can run.

    Raises:
        DamagedError: It is missing or damaged, or names something that no checkpoint holds.
    """
    try:
        found: Metadata = _Unpickler(io.BytesIO(read_bytes(path, largest=_LARGEST))).load()
        if (wrong := _wrong(found)) is not None:
            raise pickle.UnpicklingError(wrong)
    except Exception as error:  # what a cut-off or forged pickle raises depends on where it was cut
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(
            f"can't be read ({reason})",
            where=str(path),
            fix="remove this checkpoint to use the one before it",
        ) from error
    return found


def _wrong(found: Any) -> str | None:
    """Return what makes an object no description of tensors in this folder."""
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        return "it describes no checkpoint"
    for name, stored in found.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(stored, TensorStorageMetadata):
            return f"{name!r} is no tensor"
        if not isinstance(stored.properties.dtype, torch.dtype) or not isinstance(stored.size, torch.Size):
            return f"{name} has no type or shape"
    for place in found.storage_data.values():
        if not isinstance(place, filesystem._StorageInfo):
            return "it places a tensor nowhere"
        file = place.relative_path
        if not isinstance(file, str) or PurePath(file).name != file:
            return f"it places a tensor outside of its folder ({file!r})"
        if getattr(place, "transform_descriptors", None):
            return "its parts are packed in a way that vitp never writes"
    return None
