"""The table of the memory that one training update takes."""

from collections.abc import Mapping
from typing import Any

from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import Column, Table

COLUMNS = ("model", "width", "size", "norm", "groups", "memory_bytes", "largest_batch", "counted")


def memory_table(
    rows: list[dict[str, Any]],
    title: str,
    columns: Mapping[int, str],
    memory_gb: float,
    most: int,
    measured: bool,
) -> Table:
    """Return the table of bytes per norm and batch size.

    columns: {batch size: column of rows}. most: the largest batch that is looked for. measured: by
    PyTorch's allocator on a device, not counted tensor by tensor.
    """
    shown = [
        Column("norm", norm_label, False),
        *(
            Column(f"batch {batch} (MiB)", lambda row, name=name: _mebibytes(row.get(name)))
            for batch, name in columns.items()
        ),
        Column(f"fits {memory_gb:g} GiB", lambda row: _largest(row["largest_batch"], most)),
    ]
    how = "the peak of PyTorch's allocator" if measured else "counted tensor by tensor"
    caption = (
        f"Memory of one training update in float32, {how}: weights, momentum, gradients and what"
        " the backward pass needs; without what an allocator rounds up."
    )
    return Table("cost", title, caption, [*COLUMNS, *columns.values()], shown, rows)


def _mebibytes(value: int | None) -> str:
    return "does not fit" if value is None else f"{value / 2**20:,.1f}"


def _largest(batch: int, most: int) -> str:
    if batch == most:
        return f"{most} or more"
    return str(batch) if batch else "not even 1"
