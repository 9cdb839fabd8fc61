# Sourced by ./run: what a fresh machine needs, installed once, checked quickly ever after.

say() { printf '== %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-1}"
}

# setup_packages build|test|lint: Debian packages for that purpose. Installed where that is allowed
# (root, or sudo without a password); otherwise listed with the command, and nothing else happens.
setup_packages() {
  local wanted missing=() package as_root=()
  case $1 in
    build) wanted="cmake ninja-build g++ ccache nlohmann-json3-dev libcli11-dev libfmt-dev zlib1g-dev libgtest-dev python3-venv" ;;
    test) wanted="chromium chromium-driver" ;;
    lint) wanted="clang clang-format clang-tidy" ;;
    fuzz) wanted="clang" ;;
  esac
  command -v dpkg-query >/dev/null || return 0 # not Debian: CMake says what it does not find
  [ "${SUBSPACE_NO_PACKAGES:-}" ] && return 0
  if [ "$1" = fuzz ]; then
    # libFuzzer and the sanitizers are a package of their own, named after clang's version.
    package=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1)
    wanted+=" ${package:+libclang-rt-$package-dev}"
  fi
  for package in $wanted; do
    # A compiler, CMake or Python that did not come as a package serves as well.
    case $package in
      cmake) command -v cmake >/dev/null && continue ;;
      g++) command -v g++ >/dev/null && continue ;;
      ninja-build) command -v ninja >/dev/null && continue ;;
      python3-venv) python3 -c 'import venv, ensurepip' 2>/dev/null && continue ;;
    esac
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      die "these packages are missing; install them and run again:
  sudo apt-get install ${missing[*]}"
    fi
    as_root=(sudo -n)
  fi
  say "installing ${missing[*]}"
  local log
  log=$(mktemp)
  { "${as_root[@]}" apt-get update -q && DEBIAN_FRONTEND=noninteractive \
      "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; die "installing ${missing[*]} failed"; }
  rm -f "$log"
}

has_torch() { # PYTHON: is its PyTorch 2.11 or newer?
  "$1" - 2>/dev/null <<'PY'
import sys, torch
sys.exit(tuple(int(p) for p in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11))
PY
}

# A virtual environment made from within another sees the system's packages, not the other's: the
# folders that the active Python looks in are named to it, after its own.
adopt_environment() {
  local own
  own=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  python3 -c 'import site, sys; sys.prefix != sys.base_prefix and print(*site.getsitepackages(), sep="\n")' \
    >"$own/active-environment.pth"
}

# setup_python runtime|test: sets PYTHON. The PyTorch that the active Python already has is used
# (.venv then only adds to it); without one, PyTorch is installed into .venv as pip is configured.
setup_python() {
  PYTHON=$SUBSPACE_ROOT/.venv/bin/python
  export PYTHON
  local requirements=scripts/requirements-$1.txt stamp
  stamp=.venv/.subspace-$1-$(cat scripts/requirements-{torch,runtime}.txt "$requirements" | sha256sum | cut -c1-16)
  [ -f "$stamp" ] && [ -x "$PYTHON" ] && return 0
  (
    flock 8
    [ -f "$stamp" ] && exit 0
    if [ ! -x "$PYTHON" ] || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
      rm -rf .venv
      if has_torch "$(command -v python3)"; then
        say "using the PyTorch of $(command -v python3)"
        python3 -m venv --system-site-packages .venv
        adopt_environment
      else
        python3 -m venv .venv
      fi
    fi
    if ! has_torch "$PYTHON"; then
      say "installing PyTorch (the longest step: some hundred megabytes)"
      "$PYTHON" -m pip install -q "$(cat scripts/requirements-torch.txt)" </dev/null
    fi
    say "installing Python packages ($1)"
    "$PYTHON" -m pip install -q -r scripts/requirements-runtime.txt -r "$requirements" </dev/null
    touch "$stamp"
  ) 8>.venv.lock || die "setting up Python failed; running the same command again repairs what is there"
}
