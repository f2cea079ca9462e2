"""One array as an Arrow IPC file that is laid out first and filled in later.

One record batch of one fixed-size-list column: the numbers lie in one piece, and any Arrow reader
understands the file. Shape and description stand in the schema's metadata.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_METADATA_KEY = b"fedarena"


def lay_out(file: BinaryIO, path: Path, header: dict[str, Any], dtype: np.dtype[Any]) -> int:
    """Write the whole file with zeros for numbers; the place at which the numbers start.

    ``file`` is ``path``, open and empty; ``header["shape"]`` is the array's. Real zeros, not a
    hole: a full disk shows here, before anything expensive is computed.
    """
    import pyarrow as pa

    shape = header["shape"]
    kind = pa.list_(pa.from_numpy_dtype(dtype), math.prod(shape[1:]))
    schema = pa.schema([("features", kind)], metadata={_METADATA_KEY: json.dumps(header)})
    zeros = pa.array(np.zeros(math.prod(shape), dtype=dtype))  # pages that are never touched
    column = pa.FixedSizeListArray.from_arrays(zeros, type=kind)
    with pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    file.flush()
    with pa.memory_map(str(path)) as mapped:
        whole = mapped.read_buffer()
        batch = pa.ipc.open_file(whole).get_batch(0)
        return int(batch.column(0).flatten().buffers()[1].address - whole.address)


def fill_in(file: BinaryIO, position: int, chunk: Array) -> None:
    """Write a chunk's numbers at a position of the file."""
    left = chunk.tobytes()
    while left:
        written = os.pwrite(file.fileno(), left, position)
        left, position = left[written:], position + written


def checked(
    chunks: Iterable[Array], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[tuple[int, Array]]:
    """Each chunk with the byte at which it starts. DataError unless all of them make ``shape``."""
    num_rows, row_bytes = 0, math.prod(shape[1:]) * dtype.itemsize
    for chunk in chunks:
        if chunk.dtype != dtype or chunk.shape[1:] != shape[1:] or num_rows + len(chunk) > shape[0]:
            raise DataError(
                f"features {chunk.dtype} {list(chunk.shape)} after {num_rows} rows do not fit an "
                f"entry {dtype} {list(shape)}. The encoder must give one dtype and one width."
            )
        yield num_rows * row_bytes, chunk
        num_rows += len(chunk)
    if num_rows != shape[0]:
        raise DataError(f"features ended after {num_rows} of {shape[0]} rows.")


def read(path: Path) -> tuple[Array, dict[str, Any]] | None:
    """The array, as a read-only view of the mapped file, and its header.

    None where the file is absent or damaged: one that was cut short or never finished has lost the
    footer at its end.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            reader = pa.ipc.open_file(mapped.read_buffer())
        header = json.loads(reader.schema.metadata[_METADATA_KEY])
        if reader.num_record_batches != 1:
            raise ValueError(f"it holds {reader.num_record_batches} record batches")
        flat = reader.get_batch(0).column(0).flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(header["shape"]), header
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        logger.warning("%s is damaged and counts as absent: %s", path, error)
        return None
