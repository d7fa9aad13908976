"""The types of the arrays that numpy and llama.cpp share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
Bytes = NDArray[np.uint8]
