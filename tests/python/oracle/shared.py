"""Data that is no part of the repository: real models and texts to check against."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def shared(path):
    """A path below $SUBSPACE_SHARED, or `../shared` beside the checkout; the test is skipped where
    there is none."""
    found = Path(os.environ.get("SUBSPACE_SHARED", ROOT.parent / "shared")) / path
    if not found.exists():
        pytest.skip("shared data not found")
    return found
