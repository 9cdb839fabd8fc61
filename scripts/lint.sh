#!/usr/bin/env bash
# Formatting, the direction of includes, Python syntax, and a short list of clang-tidy checks.
set -euo pipefail
source scripts/setup.sh
mapfile -t sources < <(git ls-files '*.h' '*.cpp' '*.cu')
clang-format --dry-run -Werror "${sources[@]}"
"$PYTHON" scripts/check_tree.py .
git ls-files -z '*.py' | xargs -0 "$PYTHON" -m py_compile
if [ -f build/release/compile_commands.json ]; then
  # The folders without torch: a file that includes ATen takes clang-tidy half a minute.
  git ls-files 'src/base/*.cpp' 'src/kernels/*.cpp' 'src/checkpoint/*.cpp' |
    xargs -P 2 -n 4 clang-tidy --quiet -p build/release 2>/dev/null
fi
say "lint: nothing to complain of"
