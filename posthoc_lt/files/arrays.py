"""Arrays in other programs' files: npy, npz, pt, safetensors, Parquet and CSV read, npz written."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.files.atomic import replacing

Array: TypeAlias = "Tensor | NDArray[Any]"

_WANTED = "a whole .npy, .npz, .pt, .safetensors, .parquet or .csv file that holds arrays and no code"
_BLOCK_ROWS_BYTES = 1 << 24


def read_arrays(path: Path | str) -> dict[str, Array]:
    """Every array of a file by name; no code in it runs.

    Those of .npy, uncompressed .npz, .pt and .safetensors files stay on disk, memory-mapped. An array without a name
    has the empty one; the parts of nested dictionaries and tuples are joined by a dot. A table gives ``label``,
    where it has such a column, and the other columns, in their order, as ``features``.

    Raises:
        PosthocError: no such file, another suffix, damaged, or it pickles objects.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PosthocError(f"{show(path)}", _WANTED, "rename or convert it")
    try:
        return reader(path)
    except ImportError:
        raise PosthocError(
            f"{show(path)}, and pyarrow, which reads Parquet, is not installed",
            "the extra for data",
            "install it with: pip install 'posthoc-lt[data]', or give a .csv",
        ) from None
    except FileNotFoundError:
        raise PosthocError(f"{show(path)}, which does not exist", _WANTED, "correct the name") from None
    except Exception as error:  # on a damaged or hostile file each library raises what it likes
        raise PosthocError(
            f"{show(path)}, which cannot be read ({type(error).__name__}: {show(error)})", _WANTED, "write it again"
        ) from None


def write_npz(path: Path, arrays: Mapping[str, Array], force: bool = False) -> None:
    """Write an uncompressed .npz block by block, whole or not at all; equal input gives equal bytes.

    bfloat16, which numpy does not have, is written as float32.

    Raises:
        PosthocError: the place cannot be written to, or holds another file and not `force`.
    """
    with replacing(path, force) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as file:
                _write_npy(file, array)


def _write_npy(file: Any, array: Array) -> None:
    first = _block(array, 0, 1)
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": tuple(array.shape)}
    np.lib.format.write_array_header_1_0(file, header)
    step = max(1, _BLOCK_ROWS_BYTES // max(1, first.nbytes))
    for start in range(0, len(array), step):
        file.write(_block(array, start, start + step).tobytes())


def _block(array: Array, start: int, stop: int) -> NDArray[Any]:
    block = array[start:stop]
    if isinstance(block, Tensor):
        block = (block.float() if block.dtype == torch.bfloat16 else block).cpu().numpy()
    return block


def _npy(path: Path) -> dict[str, Array]:
    return {"": np.load(path, mmap_mode="r", allow_pickle=False)}


def _npz(path: Path) -> dict[str, Array]:
    found: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file, np.load(path, allow_pickle=False) as loaded:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            stored = info.compress_type == zipfile.ZIP_STORED
            found[name] = _mapped(path, file, info) if stored and info.file_size > _BLOCK_ROWS_BYTES else loaded[name]
    return found


def _mapped(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> NDArray[Any]:
    """A member of an uncompressed .npz where it lies in the file, which numpy itself would read whole."""
    file.seek(info.header_offset)
    name, extra = struct.unpack("<26xHH", file.read(30))
    file.seek(info.header_offset + 30 + name + extra)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("pickled objects")
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _pt(path: Path) -> dict[str, Array]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True)
    return _flat(content)


def _flat(content: object, name: str = "") -> dict[str, Array]:
    if isinstance(content, Tensor):
        return {name: content}
    parts = dict(enumerate(content)) if isinstance(content, tuple | list) else content
    found: dict[str, Array] = {}
    for key, value in parts.items() if isinstance(parts, dict) else ():
        found |= _flat(value, f"{name}.{key}" if name else str(key))
    return found


def _safetensors(path: Path) -> dict[str, Array]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _table(path: Path) -> dict[str, Array]:
    import pandas as pd  # here, since no other format needs it

    frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)
    labels = {"label": frame.pop("label").to_numpy()} if "label" in frame else {}
    return {"features": frame.to_numpy(np.float32), **labels}


_READERS: Mapping[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".pth": _pt,
    ".safetensors": _safetensors,
    ".parquet": _table,
    ".csv": _table,
}
