"""Rows that a Python program holds in memory, as the files that the stages of a run read."""

import hashlib
import io
from collections.abc import Mapping
from os import PathLike
from typing import Any

from checkpoints.errors import UserError
from checkpoints.fingerprint import fingerprint
from checkpoints.store import replaced
from pipeline.plan import RUNS


def as_files(data: Any) -> str:
    """The path of some rows. Those in memory are written to runs/.cache/tables, under a name made of their content.

    Args:
        data: a path; or a pandas DataFrame, a `datasets.Dataset`, a list of dicts or any other table that pyarrow reads,
            with the rows of train; or a mapping of splits to such tables, as `datasets.DatasetDict` is.

    Raises:
        UserError: a table is none of these, or is empty.
    """
    if isinstance(data, str | PathLike):
        return str(data)
    splits = data if isinstance(data, Mapping) else {"train": data}
    written = {f"{split}.parquet": _parquet(rows, split) for split, rows in splits.items()}
    content = fingerprint({name: hashlib.sha256(file).hexdigest() for name, file in written.items()})
    directory = RUNS / ".cache" / "tables" / content[:20]
    directory.mkdir(parents=True, exist_ok=True)
    for name, file in written.items():
        if not (directory / name).exists():
            with replaced(directory / name) as path:
                path.write_bytes(file)
    return str(directory)


def _parquet(rows: Any, split: str) -> bytes:
    """Some rows as a Parquet file; classes of `datasets` keep their names."""
    import datasets
    import pandas
    import pyarrow.parquet

    buffer = io.BytesIO()
    try:
        if isinstance(rows, datasets.Dataset):
            schema = rows.features.arrow_schema
            table = rows.with_format("arrow")[:].replace_schema_metadata(schema.metadata)
        elif isinstance(rows, pandas.DataFrame):
            table = pyarrow.Table.from_pandas(rows, preserve_index=False)
        else:
            table = pyarrow.table(_columns(rows) if isinstance(rows, list) else rows)
        pyarrow.parquet.write_table(table, buffer)
    except (pyarrow.ArrowException, TypeError, ValueError, AttributeError) as error:
        why = ": ".join(map(str, reversed(error.args)))
        if isinstance(rows, pandas.DataFrame) or isinstance(rows, list) and isinstance(rows[0], Mapping):
            raise UserError(
                f"the {split} table has a column that cannot be written ({why}); give each column its own name and values "
                "of one type",
                argument="data",
            ) from error
        raise UserError(
            f"the {split} rows are of type {type(rows).__name__}, no table ({why}); give a path, a pandas DataFrame, a "
            "datasets.Dataset or a list of dicts, or a dict of splits of these",
            argument="data",
        ) from error
    if not table.num_columns and len(rows):
        raise UserError(
            f"the {split} table has no columns (its index is not read); give it some, as with reset_index()",
            argument="data",
        )
    if not table.num_rows:
        raise UserError(f"the {split} table has no rows; leave it out", argument="data")
    return buffer.getvalue()


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns of rows; what a row lacks is None."""
    names = dict.fromkeys(name for row in rows for name in row.keys())
    return {name: [row.get(name) for row in rows] for name in names}
