#!/usr/bin/env bash
# ./run install [--prefix DIR]: the program and the libraries it needs, relocatable within DIR.
set -euo pipefail
source scripts/setup.sh
prefix=$HOME/.local
while [ $# -gt 0 ]; do
  case $1 in
    --prefix) prefix=${2:?--prefix needs a folder}; shift 2 ;;
    --prefix=*) prefix=${1#*=}; shift ;;
    *) die "usage: ./run install [--prefix DIR]" 2 ;;
  esac
done
case $prefix in /*) ;; *) prefix=$SUBSPACE_CALLER/$prefix ;; esac
library=$prefix/lib/subspace
mkdir -p "$prefix/bin" "$library"
torch=$("$PYTHON" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
# Only what the program really loads from PyTorch's folders: the rest of a wheel is Python's.
ldd build/release/bin/subspace | awk -v torch="$(dirname "$(dirname "$torch")")" \
  '$3 ~ "^"torch {print $3}' | while read -r file; do cp -L "$file" "$library/"; done
cmake -DPROGRAM="$PWD/build/release/bin/subspace" -DOUT="$prefix/bin/subspace" -P cmake/relocate.cmake
install -D -m 644 build/release/share/subspace/plotly.min.js "$prefix/share/subspace/plotly.min.js"
say "installed $prefix/bin/subspace ($(du -sh "$library" | cut -f1) of libraries in $library)"
