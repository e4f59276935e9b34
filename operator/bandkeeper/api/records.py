"""`dataclass` and `replace` for records of which every tick makes many: frozen for the type checker alone.

To make a frozen dataclass takes three times as long as another one, and the standard `replace` asks each field for more
than these records use: together that was a quarter of a decision's time. mypy takes both for the standard ones, and
refuses an assignment to such a record as ever.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass, replace
else:

    def dataclass(*, frozen: bool = False, **options: Any) -> Any:
        """As `dataclasses.dataclass`; `frozen` means equality and a hash by the fields, and no check of assignments."""
        return dataclasses.dataclass(unsafe_hash=frozen, **options)

    def replace(record, /, **changes: Any) -> Any:
        """As `dataclasses.replace`, where all fields are arguments of the class."""
        return type(record)(**{name: getattr(record, name) for name in record.__dataclass_fields__} | changes)


__all__ = ["dataclass", "replace"]
