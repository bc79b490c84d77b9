#!/usr/bin/env bash
# Everything that must pass: format, lints, tests. The last lines are cargo's own.
# Usage: scripts/test.sh [arguments for cargo test]
#
# Sets up what some tests need beyond Rust: Debian's packages for nginx, Prometheus and the like (installed as root, else
# only looked for), Python with the OpenAI SDK, schemathesis, k6 and linters (target/venv), and SmolLM2's weights
# (target/smollm2, 94 MB, fetched once), compiles the CUDA kernels for the CPU (target/kernels), and fetches NVRTC
# (target/nvrtc-venv, 90 MB). Where that cannot be had, those tests are skipped and say so; with CI=true it is a failure,
# but for NVRTC.
set -euo pipefail
cd "$(dirname "$0")/.."

took=()
skipped=()

# stage NAME COMMAND…: runs it and keeps its time.
stage() {
    local name=$1 began=$SECONDS
    shift
    printf '\n── %s\n' "$name"
    "$@"
    took+=("$name $((SECONDS - began)) s")
}

# optional NAME COMMAND…: a failure is a skip, except in CI.
optional() {
    local name=$1 began=$SECONDS
    shift
    printf '\n── %s\n' "$name"
    if "$@"; then
        took+=("$name $((SECONDS - began)) s")
    elif [ "${CI:-}" = true ]; then
        echo "$name could not be set up, which is a failure in CI" >&2
        exit 1
    else
        skipped+=("$name")
    fi
}

set_up_python() {
    local venv=target/venv
    command -v python3 >/dev/null || { echo "python3 is missing"; return 1; }
    if ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
        rm -rf $venv
        mkdir -p target
        python3 -m venv $venv || return 1
    fi
    cmp -s scripts/sdk-requirements.txt $venv/installed && return 0
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/sdk-requirements.txt || return 1
    cp scripts/sdk-requirements.txt $venv/installed
}

set_up_linters() {
    local venv=target/venv
    cmp -s scripts/lint-requirements.txt $venv/installed-linters && return 0
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/lint-requirements.txt || return 1
    cp scripts/lint-requirements.txt $venv/installed-linters
}

find_prometheus() {
    { command -v prometheus && command -v promtool; } || { echo "Debian's package prometheus has them"; return 1; }
}

fetch_smollm2() {
    # The environment's own pip, where there is one: a system's Python often has none.
    PATH="$PWD/target/venv/bin:$PATH" scripts/fetch-smollm2.sh
}

report() {
    local status=$?
    printf '\n%s\n' "$(IFS=,; echo "times: ${took[*]:-none}" | sed 's/,/, /g')"
    for name in ${skipped[@]+"${skipped[@]}"}; do
        echo "skipped: the tests that need: $name"
    done
    exit $status
}

stage "format" cargo fmt --check
stage "lints" cargo clippy --all-targets -- -D warnings
optional "Debian packages" scripts/install-packages.sh
optional "Python with the OpenAI SDK, schemathesis and k6" set_up_python
optional "linters for deploy/ and Python" set_up_linters
optional "Prometheus and promtool" find_prometheus
optional "SmolLM2-135M-Instruct" fetch_smollm2
optional "CUDA kernels on the CPU" scripts/check-kernels.sh shim
stage "NVRTC" scripts/check-kernels.sh nvrtc-wheel
[ -e target/nvrtc-venv/installed ] || skipped+=("NVRTC")
trap report EXIT
stage "tests" cargo test --no-fail-fast "$@"
