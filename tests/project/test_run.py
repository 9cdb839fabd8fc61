"""What scripts rely on in ./run: exit statuses, and sums that count what they should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    return subprocess.run(
        [str(ROOT / "run"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def count(tmp_path, *cases):
    file = tmp_path / "junit.xml"
    file.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "count_tests.py"), str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


def test_help_names_every_command():
    text = run("help").stdout
    for command in "demo test build bench lint format fuzz subspace python install".split():
        assert f"./run {command}" in text


@pytest.mark.parametrize("arguments", [["nonsense"], ["build", "nonsense"], ["fuzz", "nonsense"]])
def test_wrong_usage_is_status_2_and_says_so(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert "error:" in result.stderr and ("nonsense" in result.stderr or "usage" in result.stderr)


def test_python_is_the_project_s_and_keeps_the_caller_s_folder(tmp_path):
    result = subprocess.run(
        [str(ROOT / "run"), "python", "-c", "import os, torch; print(os.getcwd())"],
        cwd=tmp_path, capture_output=True, text=True,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == tmp_path


def test_status_of_a_program_is_kept():
    assert run("python", "-c", "raise SystemExit(7)").returncode == 7


def test_counting(tmp_path):
    ok = '<testcase name="a"/>'
    bad = '<testcase name="b"><failure message="x"/></testcase>'
    error = '<testcase name="c"><error message="x"/></testcase>'
    skipped = '<testcase name="d"><skipped message="no chromium"/></testcase>'
    gpu = '<testcase name="e"><skipped message="needs a GPU"/></testcase>'
    disabled = '<testcase name="f" status="disabled"/>'
    assert count(tmp_path, ok, ok, bad, error, skipped, gpu, disabled) == ["2", "2", "2"]


def test_a_missing_result_file_is_a_failure(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "count_tests.py"), str(tmp_path / "none.xml")],
        capture_output=True, text=True, check=True,
    )
    assert result.stdout.split() == ["0", "1", "0"]


def test_a_missing_debian_package_is_listed_and_nothing_else_happens(tmp_path):
    """As an ordinary user without sudo, on a machine where dpkg knows no package."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "dpkg-query": "exit 1",
        "id": "echo 1000",
        "sudo": "exit 1",
        "apt-get": f"touch {tmp_path}/installed",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    result = run("build", PATH=f"{tools}:{os.environ['PATH']}", SUBSPACE_NO_PACKAGES="")
    assert result.returncode == 1
    assert "sudo apt-get install" in result.stderr and "nlohmann-json3-dev" in result.stderr
    assert not (tmp_path / "installed").exists()
