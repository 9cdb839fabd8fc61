"""Where the tests find the program, and what they share."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "python"))
sys.path.insert(0, str(ROOT / "python"))


@pytest.fixture(scope="session")
def program():
    """The built program. Missing, it is an error and not a skip: nothing would be tested."""
    path = Path(os.environ.get("SUBSPACE_PROGRAM", ROOT / "build" / "release" / "bin" / "subspace"))
    if not path.exists():
        raise FileNotFoundError(f"{path}: not built; ./run build builds it")
    return str(path)
