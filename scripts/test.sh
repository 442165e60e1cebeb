#!/usr/bin/env bash
# The whole check, on every adapter found: format, lints, documentation, tests, golden cases,
# benches once, examples. Ends with one summary; exits non-zero if anything failed.
#
#   scripts/test.sh
#
#   TILEWISE_ALLOW_NO_GPU=1   a machine without any adapter is no failure: what needs one is skipped
#   CI=true                   installs and tests every software driver there is
#   TILEWISE_TEST_MINUTES=86  gives up after so long
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
scripts/setup.sh || exit 1

# without a display, OpenGL asks for a runtime folder
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}

# SwiftShader comes with chromium, outside the folders where the Vulkan loader looks; added, it
# stands beside the drivers that the loader finds.
if [ -z "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}${VK_ADD_DRIVER_FILES:-}" ]; then
    for icd in /usr/lib*/chromium*/vk_swiftshader_icd.json /opt/google/chrome/vk_swiftshader_icd.json; do
        if [ -f "$icd" ]; then export VK_ADD_DRIVER_FILES=$icd; fi
    done
fi

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
deadline=$((SECONDS + 60 * ${TILEWISE_TEST_MINUTES:-86}))
summary=()
passed=0
failed=0
skipped=0

# Sum of the numbers before a word, over the lines of a log that match a pattern.
count() { # LOG PATTERN WORD
    grep -E "$2" "$1" | grep -oE "[0-9]+ $3" | awk '{ n += $1 } END { print n + 0 }'
}

# Runs one step. Its tests and golden cases are counted from what it prints; a step that prints no
# counts is one check.
step() { # NAME COMMAND...
    local name=$1 log=$logs/step start=$SECONDS status p f s
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    local left=$((deadline - SECONDS))
    if [ $left -le 0 ]; then
        echo "out of time"
        status=124
        : >"$log"
    else
        timeout --kill-after=10 $left "$@" 2>&1 | tee "$log"
        status=${PIPESTATUS[0]}
    fi
    local lines='^(test result: .*|[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped)'
    p=$(count "$log" "$lines" passed)
    f=$(count "$log" "$lines" failed)
    s=$(($(count "$log" "$lines" skipped) + $(count "$log" "$lines" ignored)))
    if [ $((p + f + s)) -eq 0 ] && [ "$status" -eq 0 ]; then p=1; fi
    # a step that broke before it could count is a failure all the same
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p))
    failed=$((failed + f))
    skipped=$((skipped + s))
    local word=ok
    if [ "$f" -ne 0 ]; then word=FAILED; fi
    if [ "$status" -eq 124 ]; then word='OUT OF TIME'; fi
    summary+=("$(printf '%-34s %-11s %5d passed %3d failed %3d skipped %5d s' "$name" "$word" "$p" "$f" "$s" $((SECONDS - start)))")
    [ "$f" -eq 0 ]
}

# The first call resolves the dependencies from the committed lock file and no other. It builds the
# tests and with them the program: one set of dependency features for all that follows.
if step build cargo test --locked --all-features --no-run; then
    step format cargo fmt --check
    step lints cargo clippy --locked --all-features --all-targets -- -D warnings
    RUSTDOCFLAGS='-D warnings' step documentation cargo doc --locked --all-features --no-deps
    step tests cargo test --locked --all-features --no-fail-fast
    tilewise=${CARGO_TARGET_DIR:-target}/debug/tilewise
    step devices "$tilewise" devices
    adapters=("$tilewise" conformance --cases tests/golden --adapter all)
    adapters+=(--dump-wgsl "$logs/wgsl")
    step 'golden cases, f32, poisoned' "${adapters[@]}" --dtype f32 --poison
    # the same kernels with other ways to read a word: on the machine's own choice of adapter
    for dtype in f16 bf16; do
        step "golden cases, $dtype" env -u VK_ADD_DRIVER_FILES \
            "$tilewise" conformance --cases tests/golden --dump-wgsl "$logs/wgsl" --dtype $dtype
    done
    step 'golden cases, portable kernels' "${adapters[@]}" --tier portable
    step 'random problems, poisoned' env -u VK_ADD_DRIVER_FILES \
        "$tilewise" conformance --random 1 --seed 1 --poison
    step 'texts of the benches' env -u VK_ADD_DRIVER_FILES \
        "$tilewise" bench all --tuning off --dump-wgsl "$logs/wgsl"
    step 'texts through a browser' scripts/tint.sh "$logs/wgsl"
    step 'texts through GPU compilers' scripts/gpu-compile.sh --quick
    gpu_compile=(--manifest-path tools/gpu-compile/Cargo.toml)
    step 'its program, format' cargo fmt "${gpu_compile[@]}" --check
    gpu_compile+=(--locked --target-dir "${CARGO_TARGET_DIR:-target}/gpu-compile")
    step 'its program, tests' cargo test "${gpu_compile[@]}"
    # stand-ins for tilewise and torch
    if command -v python3 >/dev/null; then
        step 'check of GPUs, its own tests' python3 tests/gpu_check.py
    else
        printf '\n== check of GPUs, its own tests: skipped, no python3\n'
        skipped=$((skipped + 1))
    fi
    # on the machine's own choice of adapter
    step demo env -u VK_ADD_DRIVER_FILES "$tilewise" demo --out "$logs/demo"
    if compgen -G 'benches/*.rs' >/dev/null; then
        step 'benches, once' cargo test --locked --all-features --bench '*'
    fi
    for example in examples/*.rs; do
        if [ -f "$example" ]; then
            name=$(basename "$example" .rs)
            step "example $name" cargo run --locked --all-features --example "$name"
        fi
    done
fi

printf '\n== summary (%d min %d s)\n' $((SECONDS / 60)) $((SECONDS % 60))
printf '%s\n' "${summary[@]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
