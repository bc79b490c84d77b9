#!/usr/bin/env bash
# Everything that is to be seen on a GPU, in stages of less than eight minutes. Usage: scripts/gpu-check.sh [STAGE…|short]
#
#   info       the machine, and what its memory and its matrix units give at most
#   kernels    kernels/tests against their twins, on the GPU (kernels/gpu_run), three seeds
#   sanitize   the same, and two golden models, under compute-sanitizer: memcheck, racecheck, synccheck, initcheck
#   goldens    the golden models on the GPU, by own products and by cuBLASLt: tests/goldens/cuda.rs
#   attention  decode's bandwidth; prefill beside torch's scaled_dot_product_attention
#   gemm       our tiles beside torch.matmul, in the shapes of an 8B model, then with quantised weights
#   model      `garrick bench` on a random checkpoint of an 8B shape (16 GB, made there from a seed), by cuBLASLt where there
#              is one and with engine.batch_invariant
#   peer       transformers with the same shape
#   serve      `garrick serve` on that checkpoint under `garrick load`, and idle
#   short      what matters most of all of these but sanitize and peer, in nine minutes and a half: the list is below
#   pack       beforehand, where there is Rust: what goldens, model and serve run, stripped and gzipped, in target/gpu-pack
#              (17 MB); only where it is named
#
# All but pack run where no stage is named. Without a usable GPU a stage says so and ends with 69; a stage that fails does
# not stop those after it, and the end is 1.
#
# A machine for it needs an NVIDIA GPU of compute capability 8.0 or later with a driver for CUDA 12.4 or later (garrick
# itself: 580), g++, Python with PyTorch, nvcc where neither Python's zstandard or pyarrow nor `zstd` is there, and a copy of
# this tree with target/gpu-pack; no network, no Rust. Where a quarter of an hour is to be had, `pack` where Rust is, then
# `short`, then with what is left `LIMIT_S=150 scripts/gpu-check.sh peer`. Where a command may run eight minutes (none of it
# has run yet):
#
#   scripts/gpu-check.sh pack                                   # where Rust is
#   scripts/gpu-check.sh info kernels goldens                   # there
#   scripts/gpu-check.sh sanitize
#   scripts/gpu-check.sh attention
#   scripts/gpu-check.sh gemm
#   LIMIT_S=230 scripts/gpu-check.sh model serve                # one command, since the checkpoint is made once a machine
#   scripts/gpu-check.sh peer
#   python3 scripts/gpu/summary.py */results.jsonl >summary.md  # where each command left its $OUT
#
# Environment:
#   OUT       results.jsonl (a figure a line, as it comes), log.txt, summary.md (tables for docs/benchmarks.md): three files,
#             added to by each run; default target/gpu-check
#   SCRATCH   the checkpoint; default /tmp/gpu-check
#   LIMIT_S   seconds of a stage, after which it is cut; default 450
#   GARRICK   the program; default what was packed, else target/release/garrick
#   GOLDENS   the golden tests' binary; default what was packed, else the newest target/debug/deps/goldens-*
#   PYTHON    default python3
set -euo pipefail
cd "$(dirname "$0")/.."

UNAVAILABLE=69
STAGES=(info kernels sanitize goldens attention gemm model peer serve)
# Stage, seconds after which it is cut, what it is narrowed to: of what a GPU can refute first, then of what it is to reach.
SHORT=(
    "info 40"
    "kernels 70 1"
    "goldens 80"
    "attention 80 --contexts 8192,131072 --batches 1,64 --lengths 2048,8192"
    "gemm 60 --rows 1,16,64,2048 --shapes qkv,gate+up --formats int4,fp8 --quantised-rows 1,64"
    "model 170 --batches 1,16,64 --output-tokens 32 --repeat 1 --ways default,fp8"
    "serve 70 --streams 1,64 --duration 10 --greedy-only"
)
TESTS=(rows rotate_and_store moe sample gemm gemm_quant attention attention_spans)
BUILD=target/gpu-build
PYTHON=${PYTHON:-python3}
export OUT=${OUT:-target/gpu-check} SCRATCH=${SCRATCH:-/tmp/gpu-check} LIMIT_S=${LIMIT_S:-450} PYTHONUNBUFFERED=1
# Where PyTorch is, there is its cuBLASLt.
VIRTUAL_ENV=${VIRTUAL_ENV:-$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[4])' 2>/dev/null || true)}
export VIRTUAL_ENV
export GARRICK_CUBINS=$BUILD/cubins GARRICK_PROJECT=$PWD GARRICK_GOLDENS_ON=gpu

# unpacked NAME DEFAULT: a packed program, unpacked; DEFAULT where it was not packed.
unpacked() {
    local packed=target/gpu-pack/$1.gz
    [ -e "$packed" ] || { echo "$2"; return; }
    if [ ! "$BUILD/$1" -nt "$packed" ]; then
        mkdir -p "$BUILD"
        gunzip -c "$packed" >"$BUILD/$1"
        chmod +x "$BUILD/$1"
    fi
    echo "$BUILD/$1"
}
GARRICK=${GARRICK:-$(unpacked garrick target/release/garrick)}
export GARRICK

# record STAGE TABLE COLUMN VALUE…
record() { "$PYTHON" scripts/gpu/results.py "$@"; }

# left: seconds until the stage is cut.
left() { echo $((LIMIT_S - SECONDS + began)); }

# within SECONDS COMMAND…: the command, for so long and no longer than the stage has; its status, 124 where it was cut.
within() {
    local most=$1 remaining
    shift
    remaining=$(left)
    [ "$remaining" -gt 5 ] || return 124
    timeout -k 5 "$((remaining < most ? remaining : most))" "$@"
}

# build_tests DIR FLAG…: kernels/tests over kernels/gpu_run.
build_tests() {
    local dir=$BUILD/$1 test
    shift
    mkdir -p "$dir"
    local flags=(-std=c++17 -O2 -Wall -DGARRICK_ON_GPU -Ikernels -Ikernels/cpu_shim -Ikernels/gpu_run "$@")
    "${CXX:-g++}" "${flags[@]}" -c kernels/gpu_run/driver.cpp -o "$dir/driver.o" || return
    for test in "${TESTS[@]}"; do printf '%s\0' "$test"; done |
        xargs -0 -P "$(nproc)" -I '{}' "${CXX:-g++}" "${flags[@]}" -o "$dir/{}" "kernels/tests/{}.cpp" "$dir/driver.o" -ldl || return
    "$PYTHON" scripts/gpu/device.py cubins
}

# outcome STATUS FOUND: what a status means; FOUND is that of a checker that found something.
outcome() {
    case $1 in
    0) echo ok ;;
    "$2") echo FAILED ;;
    124 | 137) echo "cut" ;;
    *) echo "ended with $1" ;;
    esac
}

goldens_binary() {
    local binary=${GOLDENS:-$(unpacked goldens "")} built
    if [ -z "$binary" ]; then
        for built in target/debug/deps/goldens-*; do
            if [ -x "$built" ] && [ "$built" -nt "$binary" ]; then binary=$built; fi
        done
    fi
    [ -x "$binary" ] || { echo "the golden tests are not built: scripts/gpu-check.sh pack, or GOLDENS=path" >&2; return 1; }
    echo "$binary"
}

info() {
    within "$LIMIT_S" "$PYTHON" scripts/gpu/limits.py || return
    [ ! -x "$GARRICK" ] || within 60 "$GARRICK" check --cuda
}
attention() { within "$LIMIT_S" "$PYTHON" scripts/gpu/attention.py "$@"; }
gemm() { within "$LIMIT_S" "$PYTHON" scripts/gpu/gemm.py "$@"; }
model() { within "$LIMIT_S" "$PYTHON" scripts/gpu/model.py "$@"; }
peer() { within "$LIMIT_S" "$PYTHON" scripts/gpu/peer.py "$@"; }
serve() { within "$LIMIT_S" "$PYTHON" scripts/gpu/serve.py "$@"; }

# kernels SEED…
kernels() {
    local seed test status failed=0
    [ $# -gt 0 ] || set -- 1 2 3
    build_tests plain || return
    for seed in "$@"; do
        for test in "${TESTS[@]}"; do
            status=0
            within 90 "$BUILD/plain/$test" "$seed" random || status=$?
            record kernels twins test "$test" seed "$seed" result "$(outcome $status 1)"
            [ $status = 0 ] || failed=1
        done
    done
    return $failed
}

# checked TOOL WHAT COMMAND…
checked() {
    local tool=$1 what=$2 status=0 options=(--tool "$1" --error-exitcode 9 --print-limit 5)
    shift 2
    # A kernel is looked for in one cubin after the other; that most do not have it is no finding.
    if [ "$tool" = memcheck ]; then options+=(--report-api-errors no); fi
    within 100 compute-sanitizer "${options[@]}" "$@" || status=$?
    record sanitize compute-sanitizer tool "$tool" program "$what" result "$(outcome $status 9)"
    [ $status = 0 ] || failed=1
}

# Where buffers have no guards, memcheck knows their ends. All that a test's buffers hold is copied there, so that initcheck
# has something to find in the golden models only.
sanitize() {
    local test tool binary failed=0
    command -v compute-sanitizer >/dev/null || PATH=$PATH:/usr/local/cuda/bin
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not here"; return 1; }
    build_tests unguarded -DGARRICK_NO_GUARDS || return
    for tool in memcheck racecheck synccheck; do
        for test in "${TESTS[@]}"; do checked "$tool" "$test" "$BUILD/unguarded/$test" 1 random; done
    done
    binary=$(goldens_binary) || return
    for tool in memcheck initcheck; do
        for test in cuda::llama:: cuda::mixtral::; do checked "$tool" "goldens $test" "$binary" "$test" --test-threads 1; done
    done
    return $failed
}

goldens() {
    local binary status=0 text worst
    binary=$(goldens_binary) || return
    text=$BUILD/goldens.txt
    mkdir -p "$BUILD"
    within "$LIMIT_S" "$binary" cuda:: --test-threads 4 --nocapture 2>&1 | tee "$text" || status=$?
    worst=$(sed -nE 's/.* ([0-9.]+) of the bound$/\1/p' "$text" | sort -g | tail -1)
    record goldens "golden models" result "$(outcome $status 101)" "largest share of the bound" "${worst:-none}" \
        "on" "$(grep -m 1 -oE 'on .* with the kernels for .*' "$text" || echo nothing)" \
        tests "$(grep -oE '[0-9]+ passed; [0-9]+ failed' "$text" || echo none)"
    return $status
}

pack() {
    local binary
    cargo build --release || return
    binary=$(cargo test --no-run --test goldens --message-format=short 2>&1 | sed -nE 's/.*\((target.*goldens-[^)]*)\).*/\1/p') || return
    mkdir -p target/gpu-pack
    strip -o target/gpu-pack/garrick target/release/garrick || return
    strip -o target/gpu-pack/goldens "$binary" || return
    gzip -9f target/gpu-pack/garrick target/gpu-pack/goldens || return
    ls -lh target/gpu-pack
}

# run_stage STAGE ARGUMENT…; ends all where there is no GPU.
run_stage() {
    local stage=$1 status=0
    shift
    began=$SECONDS
    printf '\n── %s: %s\n' "$stage" "$(sed -nE "s/^#   $stage +//p" "$0" | head -1)" | tee -a "$OUT/log.txt"
    if [ "$stage" != pack ]; then "$PYTHON" scripts/gpu/device.py 2>&1 | tee -a "$OUT/log.txt" || status=$?; fi
    if [ $status = 0 ]; then "$stage" "$@" 2>&1 | tee -a "$OUT/log.txt" || status=$?; fi
    echo "$stage: $((SECONDS - began)) s, status $status" | tee -a "$OUT/log.txt"
    if [ -e "$OUT/results.jsonl" ]; then "$PYTHON" scripts/gpu/summary.py "$OUT/results.jsonl" >"$OUT/summary.md"; fi
    [ $status != $UNAVAILABLE ] || exit $UNAVAILABLE
    [ $status = 0 ] || result=1
}

[ $# -gt 0 ] || set -- "${STAGES[@]}"
for stage in "$@"; do
    case " ${STAGES[*]} pack short " in *" $stage "*) ;; *)
        echo "no stage is called $stage: ${STAGES[*]}, short, pack" >&2
        exit 2
        ;;
    esac
done
mkdir -p "$OUT"
result=0
for stage in "$@"; do
    if [ "$stage" != short ]; then
        run_stage "$stage"
        continue
    fi
    for line in "${SHORT[@]}"; do
        read -ra words <<<"$line"
        LIMIT_S=${words[1]} run_stage "${words[0]}" "${words[@]:2}"
    done
done
exit $result
