"""Running the built program."""

import subprocess

from oracle.attention import load_views


def run(program, *arguments):
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def export(program, folder, layer, out, *more):
    result = run(program, "export", folder, "--layer", layer, "--out", out, *more)
    assert result.returncode == 0, result.stderr
    return load_views(out)
