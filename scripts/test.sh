#!/usr/bin/env bash
# Every test: C++ through CTest, Python through pytest. The last line adds them up.
set -uo pipefail
source scripts/setup.sh

filter=${1:-}
logs=build/release/test-logs
mkdir -p "$logs"
passed=0 failed=0 skipped=0
rm -f "$logs"/*.xml # results of an earlier run must not stand in for missing ones

say "C++ tests"
ctest --test-dir build/release -j 2 --output-on-failure --no-tests=ignore \
  ${filter:+-R "$filter"} --output-junit "$PWD/$logs/ctest.xml" 2>&1 | tee "$logs/ctest.log" |
  grep -vE '^ *(Start|[0-9]+/[0-9]+ Test.* Passed)' || true
say "Python tests"
SUBSPACE_PROGRAM=$PWD/build/release/bin/subspace PYTHONPATH=$PWD/python \
  "$PYTHON" -m pytest tests/python tests/project -q -rs ${filter:+-k "$filter"} \
  --junitxml "$logs/pytest.xml" 2>&1 | tee "$logs/pytest.log"
pytest_status=${PIPESTATUS[0]}
# 1: a test failed, which the results say; 5: none matched. Anything else, pytest itself broke.
case $pytest_status in 0 | 1 | 5) ;; *) failed=$((failed + 1)) ;; esac

read -r p f s < <("$PYTHON" scripts/count_tests.py "$logs/ctest.xml" "$logs/pytest.xml")
passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
status=0
if [ "$failed" -gt 0 ]; then status=1; fi
if [ "$((passed + failed))" -eq 0 ]; then
  echo "error: no test ran${filter:+ for the filter '$filter'}" >&2
  status=1
fi
if [[ ${CI:-} =~ ^(1|true)$ ]] && [ "$skipped" -gt 0 ]; then
  echo "error: $skipped tests were skipped, which CI does not allow (see -rs above)" >&2
  failed=$((failed + skipped)) skipped=0 status=1
fi
if [ "$skipped" -gt 0 ]; then
  echo "$passed passed, $failed failed, $skipped skipped"
else
  echo "$passed passed, $failed failed"
fi
exit $status
