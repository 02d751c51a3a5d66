"""numpy, imported when it is first used: to import it takes a third of a second, and a run is planned without it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:

    class _NumPy:
        def __getattr__(self, name: str) -> Any:
            import numpy

            return getattr(numpy, name)

    np = _NumPy()

__all__ = ["np"]
