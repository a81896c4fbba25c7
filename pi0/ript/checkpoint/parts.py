"""Tensors that several processes hold in parts: each writes its own, and any number of processes reads them.

The format is that of torch.distributed.checkpoint (DCP): a directory of .distcp files, and `.metadata`, which
says where each part is. That is a pickle, so it is read by an unpickler that knows DCP's own classes alone.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pi0.ript.checkpoint.files import SnapshotError

PARTS = "parts"
"""The directory, in that of a snapshot, of what is in parts."""
_METADATA = ".metadata"
_DCP = "torch.distributed.checkpoint"
_ADMITTED = {
    f"{_DCP}.metadata": {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        *("StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    f"{_DCP}.filesystem": {"_StorageInfo"},
    "torch": {"Size", "float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "Path"},
    "pathlib._local": {"PosixPath", "Path"},
    "collections": {"OrderedDict"},
}


class _Unpickler(pickle.Unpickler):
    """Reads `.metadata`; whatever else a pickle asks for is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ADMITTED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which DCP's metadata do not need")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_index(Path(self.path))


def write_parts(directory: Path, tensors: Mapping[str, Tensor], group: Any = None) -> None:
    """Write tensors by name to a new directory; all processes of a group call it, each with its own parts.

    Raises:
        OSError: It could not be written; on all processes.
    """
    try:
        writer = FileSystemWriter(directory)
        save(dict(tensors), storage_writer=writer, process_group=group, no_dist=_is_alone())
    except CheckpointException as error:
        raise OSError(_first_reason(error)) from error


def read_parts(directory: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors, by name and in place, each process its own parts; all processes call this.

    Raises:
        SnapshotError: A file is damaged, or not what its index says; on all processes.
    """
    try:
        load(dict(targets), storage_reader=_Reader(directory), no_dist=_is_alone())
    except CheckpointException as error:
        raise SnapshotError(f"{directory}: {_first_reason(error)}") from error


def read_index(directory: Path) -> Metadata:
    """Return what the parts in a directory are, and where.

    Raises:
        SnapshotError: Its `.metadata` is not DCP's, or holds more than tensors.
    """
    file = directory / _METADATA
    try:
        with file.open("rb") as stream:
            index = _Unpickler(stream).load()
        # What is no tensor would be unpickled when it is read.
        others = [name for name, entry in index.state_dict_metadata.items() if not _is_tensor(entry)]
    except (OSError, pickle.UnpicklingError, AttributeError, EOFError, TypeError, ValueError) as error:
        raise SnapshotError(f"{file}: not an index of parts ({error})") from error
    if others:
        raise SnapshotError(f"{file}: expected tensors alone, found {others[0]}")
    return index


def shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the whole tensors in a directory, by name."""
    entries = read_index(directory).state_dict_metadata
    return {name: tuple(cast(TensorStorageMetadata, entry).size) for name, entry in entries.items()}


# Optimizer --------------------------------------------------------------------------------------------------


def split_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's tensors that are in parts, by name, and the rest of its state.

    Args:
        optimizer: What it has a state of is among `names`.
        names: The names of the parameters that are trained; the optimizer can have frozen ones besides.
    """
    tensors, rest = dict[str, Tensor](), dict[str, dict[str, Any]]()
    for parameter, values in optimizer.state.items():
        name = names[cast("nn.Parameter", parameter)]
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                tensors[f"optimizer.{key}.{name}"] = value
            else:
                rest.setdefault(name, {})[key] = value.cpu() if isinstance(value, Tensor) else value
    groups = [
        {**{key: value for key, value in group.items() if key != "params"}, "names": _names(group, names)}
        for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "rest": rest}


def join_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[nn.Parameter, str],
    rest: Mapping[str, Any],
    known: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """Put back what `split_optimizer` returned as the rest; return the tensors to fill, which are its own.

    Args:
        optimizer: An optimizer of the same groups of parameters.
        names: Their names.
        rest: The rest of its state.
        known: The shapes of the tensors that there are to read.
    """
    parameters = {name: parameter for parameter, name in names.items()}
    for group, saved in zip(optimizer.param_groups, rest["groups"], strict=True):
        if _names(group, names) != saved["names"]:
            raise SnapshotError("the optimizer has other groups of parameters than when it was saved")
        group |= {key: value for key, value in saved.items() if key != "names"}
    optimizer.state.clear()
    for name, values in rest["rest"].items():
        optimizer.state[parameters[name]] = dict(values)
    targets = {}
    for full_name in known:
        kind, _, rest_of_name = full_name.partition(".")
        if kind == "optimizer":
            key, _, name = rest_of_name.partition(".")
            # A tensor of its own: the optimizer changes it in place.
            target = torch.zeros_like(parameters[name], requires_grad=False)
            optimizer.state[parameters[name]][key] = targets[full_name] = target
    return targets


def _names(group: Mapping[str, Any], names: Mapping[nn.Parameter, str]) -> list[str]:
    """Return the names of a group's parameters; one without a name is frozen, and has no state."""
    return [names[parameter] for parameter in group["params"] if parameter in names]


def _is_tensor(entry: object) -> bool:
    return isinstance(entry, TensorStorageMetadata)


def _is_alone() -> bool:
    if not dist.is_initialized():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which DCP is told
    return not dist.is_initialized()


def _first_reason(error: CheckpointException) -> str:
    reason = next(iter(error.failures.values()))[0]
    return f"{type(reason).__name__}: {reason}"
