"""The include check must notice what it is there for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(tree):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_tree.py"), str(tree)],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "name, text, complaint",
    [
        ("src/base/a.h", '#include "checkpoint/dtype.h"', "src/base may not include src/checkpoint"),
        ("src/kernels/a.cpp", "#include <ATen/ATen.h>", "src/kernels does without torch"),
        ("src/report/a.cpp", '#include "spectrum/run.h"', "src/report may not include src/spectrum"),
        ("src/base/a.cpp", "fs::remove_all(path);", "remove_tree of base/atomic_file.h"),
        ("src/unknown/a.h", "", "not in the list of folders"),
        ("docs/a.md", "see /" + "home/somebody/models", "a path of one machine"),
    ],
)
def test_a_violation_is_found(tmp_path, name, text, complaint):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    (tmp_path / "src").mkdir(exist_ok=True)
    path.write_text(text + "\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    result = check(tmp_path)
    assert result.returncode == 1
    assert complaint in result.stdout


def test_this_tree_is_clean():
    result = check(ROOT)
    assert result.returncode == 0, result.stdout
