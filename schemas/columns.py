"""Types of columns: which ones a manifest may have, and how they become those of the schema.

Every writer of Parquet has its own: polars `large_string` or `string_view`, pandas `float64`,
DuckDB decimals, a categorical becomes a dictionary. Arrow computes with some of them only, so
readers convert first.
"""

from collections.abc import Callable

import pyarrow as pa

_Test = Callable[[pa.DataType], bool]

_LISTS: tuple[_Test, ...] = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list,
    pa.types.is_list_view, pa.types.is_large_list_view,
)  # fmt: skip
_KINDS: dict[str, tuple[_Test, ...]] = {
    "integer": (pa.types.is_integer,),
    "float": (pa.types.is_floating, pa.types.is_decimal, pa.types.is_integer),
    "string": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "binary": (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    ),
}  # fmt: skip
NEEDED = "bytes"  # of an image; its path is for people


def fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of type `found` can be read as `wanted`, a type of `PATCHES`.

    Any width and any layout of the same kind fits, decimals and integers fit where floats are
    wanted, and the null type, of a column without any value, fits everywhere.
    """
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return fits(found.value_type, wanted)
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(found) and _fields_fit(found, wanted)
    if pa.types.is_list(wanted):
        is_list = any(test(found) for test in _LISTS)
        return is_list and fits(found.value_type, wanted.value_type)
    kind = next(kind for kind, tests in _KINDS.items() if any(test(wanted) for test in tests))
    return any(test(found) for test in _KINDS[kind])


def _fields_fit(found: pa.StructType, wanted: pa.StructType) -> bool:
    names = [field.name for field in found]
    return names.count(NEEDED) == 1 and all(
        fits(field.type, wanted.field(field.name).type)
        for field in found
        if wanted.get_field_index(field.name) >= 0
    )


def convert(table: pa.Table | pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """Give the columns of a table that are in `schema` the types they have there.

    Columns of other names stay as they are. Structs get exactly the fields of the schema. Raises
    ArrowInvalid: a value is out of range.
    """
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    for index, name in enumerate(table.schema.names):
        if name in schema.names and table.schema.types[index] != schema.field(name).type:
            column = convert_column(table.column(index), schema.field(name).type)
            table = table.set_column(index, name, column)
    return table


def convert_column(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    """Convert a column whose type `fits`. Raises ArrowInvalid: a value is out of range."""
    return pa.chunked_array([_convert(chunk, wanted) for chunk in column.chunks], wanted)


def _convert(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if array.type == wanted:
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), wanted)
    if pa.types.is_dictionary(array.type):
        # Values first: Arrow cannot take from a dictionary of views.
        return pa.DictionaryArray.from_arrays(
            array.indices, _convert(array.dictionary, wanted)
        ).dictionary_decode()
    if pa.types.is_struct(wanted):
        names = [field.name for field in array.type]
        children = [
            _convert(array.field(names.index(field.name)), field.type)
            if field.name in names
            else pa.nulls(len(array), field.type)
            for field in wanted
        ]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(wanted), mask=mask)
    return array.cast(wanted)
