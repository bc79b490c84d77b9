#!/usr/bin/env bash
# Checks kernels/ on a machine without a GPU. Usage: scripts/check-kernels.sh [stage…]; all stages where none is named.
#
#   shim      builds target/kernels/libgarrick_kernels_shim.so, the kernels run by g++ (needs g++ 12 or later), and beside
#             it a stand-in for cuBLASLt
#   run       the tests against it, each in three orders of threads; SEED=n repeats a run
#   sanitize  the same under AddressSanitizer and UndefinedBehaviorSanitizer, in one order
#   mutants   plants the bugs of kernels/tests/mutants.txt one by one; the tests must find each
#   compile   every kernel for every chip: no more registers and stack than kernels/tests/budget.txt allows, and the
#             instructions it asks for. nvcc comes from PyPI, once, into target/cuda-venv (110 MB); where it cannot be
#             had, the stage is skipped and says so; with CI=true that is a failure. What comes out is compared with
#             kernels/prebuilt, which the program carries
#   nvrtc     the program's own way to make kernels for a chip that it has none for: NVRTC comes from PyPI, once, into
#             target/nvrtc-venv (90 MB), and the program's tests compile all kernels with it, and find them again; where it
#             cannot be had, the stage is skipped and says so. `cargo test` has these tests too
#   nvrtc-wheel  the first half of that
#   prebuilt  puts what compile made into kernels/prebuilt (only where it is named)
#
# Everything it makes is under target/. JOBS=n does n things at a time (default: as many as there are processors).
set -euo pipefail
cd "$(dirname "$0")/.."

# Every part is pinned: nvidia-cuda-nvcc does not pin nvidia-nvvm, and a newer one writes PTX that ptxas does not take.
# 13.0 is what drivers from 580 on load.
WHEELS=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86 zstandard==0.25.0)
# An architecture, whose PTX is compiled once, and the chips that ptxas makes it into code for. From 10.0 on there is packed
# arithmetic, which older PTX does not ask for; otherwise the code is that of each chip's own PTX.
CHIPS_OF_PTX=("80 80 86 89 90a" "100 100a 120")
# The longest first, as all processors share them.
TESTS=(attention attention_spans gemm_quant sample gemm faults rows rotate_and_store moe)
export NVCC_FLAGS="-std=c++17 -O3 -ptx" PTXAS_FLAGS="-O3"
OUT=target/kernels
JOBS=${JOBS:-$(nproc)}
export CXX_FLAGS="-std=c++17 -Wall -Werror -Wno-unknown-pragmas -fPIC -fvisibility=hidden -fno-strict-aliasing"
CXX_FLAGS+=" -DGARRICK_CPU_SHIM"
export CXX=${CXX:-g++}

# compile_object FLAGS SOURCE OBJECT, unless the object is newer than its sources.
compile_object() {
    local flags=$1 source=$2 object=$3
    if [ "$object" -nt "$source" ] && [ "$object" -nt "$OUT/newest-header" ]; then return 0; fi
    # shellcheck disable=SC2086 # flags are several words
    $CXX -x c++ $CXX_FLAGS $flags -Ikernels -Ikernels/cpu_shim -c "$source" -o "$object"
}
export -f compile_object
export OUT

# build DIR FLAGS: the library, and the tests beside it. The tests' own library has the faulty kernels too.
build() {
    local dir=$1 flags=$2 source objects=()
    mkdir -p "$dir/with-faults"
    touch -r "$(ls -t kernels/*.h kernels/*/*.h scripts/check-kernels.sh | head -1)" "$OUT/newest-header"
    for source in kernels/*.cu kernels/cpu_shim/shim.cpp kernels/tests/*.c*; do
        printf '%s\0%s\0%s\0' "$flags" "$source" "$dir/$(basename "$source").o"
    done | xargs -0 -n 3 -P "$JOBS" bash -c 'compile_object "$@" || exit 255' _
    for source in kernels/*.cu kernels/cpu_shim/shim.cpp; do objects+=("$dir/$(basename "$source").o"); done
    # shellcheck disable=SC2086
    $CXX $flags -shared -o "$dir/libgarrick_kernels_shim.so" "${objects[@]}"
    # shellcheck disable=SC2086
    $CXX $flags -shared -o "$dir/with-faults/libgarrick_kernels_shim.so" "${objects[@]}" "$dir/faulty.cu.o"
    mkdir -p "$dir/stand-in"
    # shellcheck disable=SC2086
    $CXX $flags -shared -Wl,-soname,libcublasLt.so.13 -o "$dir/stand-in/libcublasLt.so.13" "$dir/cublaslt_stand_in.cpp.o"
    for test in "${TESTS[@]}"; do
        # shellcheck disable=SC2086
        $CXX $flags -o "$dir/$test" "$dir/$test.cpp.o" -L"$dir/with-faults" -lgarrick_kernels_shim -pthread
    done
}

# run_tests DIR ORDER…: every test in each of these orders of threads.
run_tests() {
    local seed=${SEED:-$((RANDOM * 3 + RANDOM))} dir=$1 test order
    shift
    for test in "${TESTS[@]}"; do
        for order in "$@"; do printf '%s\0%s\0%s\0' "$dir/$test" "$seed" "$order"; done
    done | LD_LIBRARY_PATH=$dir/with-faults xargs -0 -n 3 -P "$JOBS" bash -c '"$@"' _
}

shim() {
    build "$OUT" -O2
    # What runs the tests on a GPU (scripts/gpu-check.sh) compiles too.
    # shellcheck disable=SC2086
    $CXX $CXX_FLAGS -DGARRICK_ON_GPU -DGARRICK_NO_GUARDS -Ikernels/cpu_shim -Ikernels/gpu_run -fsyntax-only \
        kernels/gpu_run/driver.cpp kernels/tests/moe.cpp
}

run() {
    shim
    run_tests "$OUT" forward reverse random
}

sanitize() {
    # Null pointers are AddressSanitizer's to find too, and checks of each pointer would take the compiler long.
    build "$OUT/sanitized" "-O1 -g1 -fsanitize=address,undefined -fno-sanitize=null -fno-sanitize-recover=all"
    # Fibers that a fault leaves behind are not leaks, and stacks change under the sanitizer's feet.
    ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 run_tests "$OUT/sanitized" random
}

# mutant NUMBER FILE SOURCE TEST EXPRESSION: whether the test finds what the sed expression does to FILE.
mutant() {
    local number=$1 file=$2 source=$3 test=$4 expression=$5 dir=$OUT/mutants/$1 other objects=()
    rm -rf "$dir"
    mkdir -p "$dir/kernels"
    cp -r kernels/*.h kernels/*.cu kernels/cpu_shim "$dir/kernels/"
    sed -i -E "$expression" "$dir/kernels/$file"
    if cmp -s "kernels/$file" "$dir/kernels/$file"; then
        echo "mutant $number changes nothing: $file $expression"
        return 1
    fi
    # Compiled once for a part of one test: what optimising takes is not won back.
    # shellcheck disable=SC2086
    $CXX -x c++ $CXX_FLAGS -w -O0 -I"$dir/kernels" -I"$dir/kernels/cpu_shim" \
        -c "$dir/kernels/$source" -o "$dir/mutant.o" ||
        { echo "mutant $number does not compile: $file $expression"; return 1; }
    for other in kernels/*.cu kernels/cpu_shim/shim.cpp; do
        [ "$other" = "kernels/$source" ] || objects+=("$OUT/$(basename "$other").o")
    done
    $CXX -shared -o "$dir/libgarrick_kernels_shim.so" "${objects[@]}" "$dir/mutant.o"
    if { LD_LIBRARY_PATH=$dir timeout 120 "$OUT/$test" 1 first; } >"$dir/log" 2>&1; then
        echo "mutant $number lives: $file $expression"
        return 1
    fi
    rm -rf "$dir"
}
export -f mutant

mutants() {
    shim
    local lines number=0 file source test expression
    lines=$(grep -cvE '^(#|$)' kernels/tests/mutants.txt)
    while read -r file source test expression; do
        number=$((number + 1))
        printf '%s\0%s\0%s\0%s\0%s\0' "$number" "$file" "$source" "$test" "$expression"
    done < <(grep -vE '^(#|$)' kernels/tests/mutants.txt) |
        xargs -0 -n 5 -P "$JOBS" bash -c 'mutant "$@"' _
    echo "all $lines mutants were found"
}

set_up_nvcc() {
    local venv=target/cuda-venv
    command -v python3 >/dev/null || { echo "python3 is missing"; return 1; }
    if [ "$(cat $venv/installed 2>/dev/null)" != "${WHEELS[*]}" ]; then
        rm -rf $venv
        python3 -m venv $venv || return 1
        $venv/bin/python -m pip install --quiet --disable-pip-version-check "${WHEELS[@]}" || return 1
        echo "${WHEELS[*]}" >$venv/installed
    fi
    PATH=$(echo "$PWD"/$venv/lib/python3*/site-packages/nvidia/cu13/bin):$PATH
}

compile() {
    if ! set_up_nvcc; then
        echo "skipped: nvcc cannot be had"
        [ "${CI:-}" != true ]
        return
    fi
    rm -rf "$OUT/ptx" "$OUT/cubins"
    mkdir -p "$OUT/ptx" "$OUT/cubins"
    local source chips chip
    # The slowest files first.
    for source in $(ls -S kernels/*.cu); do
        for chips in "${CHIPS_OF_PTX[@]}"; do printf '%s %s\n' "$source" "${chips%% *}"; done
    done | xargs -n 2 -P "$JOBS" bash -c 'nvcc $NVCC_FLAGS -arch "compute_$2" -Ikernels "$1" \
        -o "$OUT/ptx/$(basename "$1" .cu).$2.ptx" || exit 255' _
    for source in $(ls -S kernels/*.cu); do
        for chips in "${CHIPS_OF_PTX[@]}"; do
            for chip in ${chips#* }; do printf '%s %s %s\n' "$(basename "$source" .cu)" "${chips%% *}" "$chip"; done
        done
    done | xargs -n 3 -P "$JOBS" bash -c 'ptxas $PTXAS_FLAGS -arch "sm_$3" "$OUT/ptx/$1.$2.ptx" \
        -o "$OUT/cubins/$1.sm_$3.cubin" || exit 255' _
    python3 kernels/tests/check_cubins.py kernels/tests/budget.txt "$OUT"/cubins/*.cubin
    # Before `prebuilt` they may differ.
    [[ " $STAGES " == *" prebuilt "* ]] || pack check
}

# Needed by a few tests, large and from outside: CI goes on without it, and says so.
nvrtc-wheel() {
    local venv=target/nvrtc-venv wheel=nvidia-cuda-nvrtc==13.0.88
    [ "$(cat $venv/installed 2>/dev/null)" != $wheel ] || return 0
    rm -rf $venv
    if python3 -m venv $venv && $venv/bin/python -m pip install --quiet --disable-pip-version-check $wheel; then
        echo $wheel >$venv/installed
    else
        rm -rf $venv
        printf '\n***** SKIPPED: %s cannot be had, so nothing is compiled with NVRTC *****\n\n' $wheel
        return "${1:-0}"
    fi
}

nvrtc() {
    nvrtc-wheel 9 || return 0
    cargo test --lib exec::cuda::kernels
}

# pack write|check
pack() {
    target/cuda-venv/bin/python kernels/prebuilt/pack.py "$1" "$OUT/cubins" "nvcc ${WHEELS[0]#*==} $NVCC_FLAGS, ptxas $PTXAS_FLAGS"
}

prebuilt() { pack write; }

[ $# -gt 0 ] || set -- run sanitize mutants compile nvrtc
STAGES=$*
for stage in "$@"; do
    case $stage in shim | run | sanitize | mutants | compile | nvrtc | nvrtc-wheel | prebuilt) ;; *)
        echo "no stage is called $stage: shim, run, sanitize, mutants, compile, nvrtc, nvrtc-wheel, prebuilt" >&2
        exit 2
        ;;
    esac
done
for stage in "$@"; do
    began=$SECONDS
    printf '\n── %s\n' "$stage"
    "$stage"
    echo "$stage: $((SECONDS - began)) s"
done
