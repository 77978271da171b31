"""Types of the native module; what the names mean stands in _wire.pyx."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

WHOLE: Final[int]
TRUNCATED: Final[int]
LATER: Final[int]
IMPOSSIBLE: Final[int]

def scan(
    data: Buffer, payload_max: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], int, int]: ...
