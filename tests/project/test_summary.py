"""`./run test` ends with sums that are true, whatever the two runners did."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PASS, FAIL = '<testcase name="c"/>', '<testcase name="c"><failure message="x"/></testcase>'
SKIP = '<testcase name="c"><skipped message="no oracle"/></testcase>'


def summary(tmp_path, cpp, python, *arguments, **environment):
    """Runs scripts/test.sh in a tree of its own, with a ctest that gives the results `cpp`."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for folder in ("tests/python", "tests/project", "build/release", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tests/python/test_it.py").write_text(python)
    ctest = tmp_path / "bin" / "ctest"
    write = "" if cpp is None else f"echo '<testsuite>{cpp}</testsuite>' > \"$last\""
    ctest.write_text(f'#!/bin/bash\nlast="${{@: -1}}"\n{write}\n')
    ctest.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if k != "CI" and not k.startswith("PYTEST")}
    result = subprocess.run(
        ["bash", "scripts/test.sh", *arguments],
        cwd=tmp_path, capture_output=True, text=True,
        env={**clean, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHON": sys.executable,
             "SUBSPACE_ROOT": str(tmp_path), **environment},
    )
    return result.stdout.strip().split("\n")[-1], result.returncode


GOOD = "def test_a(): pass\n"
BAD = "def test_a(): assert False\n"
SKIPPED = "import pytest\ndef test_a(): pytest.skip('no oracle')\n"


@pytest.mark.parametrize(
    "cpp, python, filter, environment, line, status",
    [
        (PASS, GOOD, [], {}, "2 passed, 0 failed", 0),
        (FAIL, GOOD, [], {}, "1 passed, 1 failed", 1),
        (PASS, BAD, [], {}, "1 passed, 1 failed", 1),
        (PASS, GOOD, ["only_cpp"], {}, "1 passed, 0 failed", 0),
        ("", GOOD, ["test_a"], {}, "1 passed, 0 failed", 0),
        ("", GOOD, ["nothing"], {}, "0 passed, 0 failed", 1),
        (None, GOOD, [], {}, "1 passed, 1 failed", 1),
        (PASS + SKIP, GOOD, [], {}, "2 passed, 0 failed, 1 skipped", 0),
        (PASS, SKIPPED, [], {}, "1 passed, 0 failed, 1 skipped", 0),
        (PASS, SKIPPED, [], {"CI": "1"}, "1 passed, 1 failed", 1),
        (PASS, SKIPPED, [], {"CI": "true"}, "1 passed, 1 failed", 1),
        (PASS, SKIPPED.replace("no oracle", "needs a GPU"), [], {"CI": "1"}, "1 passed, 0 failed", 0),
        (PASS, SKIPPED.replace("no oracle", "shared data not found"), [], {"CI": "1"}, "1 passed, 0 failed", 0),
    ],
)
def test_summary(tmp_path, cpp, python, filter, environment, line, status):
    assert summary(tmp_path, cpp, python, *filter, **environment) == (line, status)


def test_a_file_that_pytest_cannot_load_fails(tmp_path):
    line, status = summary(tmp_path, PASS, "import no_such_module\n")
    assert status == 1 and " 0 failed" not in line
