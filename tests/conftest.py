"""What holds for every test."""

from __future__ import annotations

import os

# Before llama.cpp is loaded, and for child processes too: threads that spin while they wait for
# each other make small models ten times slower on a machine that other programs use.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
