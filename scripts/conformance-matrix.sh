#!/usr/bin/env bash
# The conformance run on every software driver that can be had here, and one table of what came out.
#
#   scripts/conformance-matrix.sh [OPTIONS of `tilewise conformance`]
#
# Default options: --cases tests/golden --random 1 --poison. Drivers that are not installed are
# downloaded from Debian and unpacked into the cache folder, never installed; what cannot be had is
# skipped with its reason. Exits non-zero if a run failed.
#
#   TILEWISE=path          the program [target/debug/tilewise]
#   TILEWISE_ROWS=REGEX    only the rows whose names match, as in 'installed|GL'
#   TILEWISE_DRIVERS=DIR   the cache folder [~/.cache/tilewise/drivers]
#   TILEWISE_SID=DIR       a Debian root with a newer Mesa, made with
#                          debootstrap --variant=minbase sid DIR
#                          chroot DIR apt-get install -y mesa-vulkan-drivers libvulkan1 \
#                              vulkan-validationlayers
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
tilewise=${TILEWISE:-${CARGO_TARGET_DIR:-target}/debug/tilewise}
cache=${TILEWISE_DRIVERS:-${XDG_CACHE_HOME:-$HOME/.cache}/tilewise/drivers}
sid=${TILEWISE_SID:-${XDG_CACHE_HOME:-$HOME/.cache}/tilewise/sid}
options=("$@")
if [ ${#options[@]} -eq 0 ]; then options=(--cases tests/golden --random 1 --poison); fi
mkdir -p "$cache"
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}
# a cache would hand kernels of one vector width to another
export MESA_SHADER_CACHE_DISABLE=true
unset VK_DRIVER_FILES VK_ICD_FILENAMES VK_ADD_DRIVER_FILES WGPU_BACKEND WGPU_ADAPTER_NAME
log=$(mktemp)
trap 'rm -f "$log"' EXIT
only=${TILEWISE_ROWS:-.}
# how the validation layer reports, by itself or through wgpu
reported='VUID-|VALIDATION \[|Validation (Error|Warning)'
rows=()
bad=0

row() { rows+=("$(printf '%-34s %-8s %6s %6s %7s %6s  %s' "$@")"); }

run() { # NAME COMMAND...
    local name=$1 start=$SECONDS status last adapter word=ok
    shift
    if ! [[ $name =~ $only ]]; then return 0; fi
    printf '\n== %s\n' "$name"
    "$@" >"$log" 2>&1
    status=$?
    grep -E "^FAIL|^  tilewise|^error|$reported" "$log" | head -n 20
    last=$(grep -E '^[0-9]+ passed, ' "$log" | tail -n 1)
    adapter=$(grep -m 1 -E ': (portable|subgroup) kernels' "$log" | sed 's/, [0-9]* cases$//')
    # a message of the validation layer is a failure, whatever the results
    if grep -qE "$reported" "$log"; then status=1; fi
    if [ $status -ne 0 ]; then word=FAILED; bad=1; fi
    # shellcheck disable=SC2046
    set -- $(echo "${last:-0 passed, 0 failed, 0 skipped}" | grep -oE '[0-9]+')
    row "$name" $word "$1" "$2" "$3" "$((SECONDS - start))s" "${adapter:-no adapter}"
}

skip() { if [[ $1 =~ $only ]]; then row "$1" skipped - - - - "$2"; fi; }

# Unpacks a Debian package into the cache folder.
unpack() { # FOLDER URL
    local to=$cache/$1
    if [ -d "$to/usr" ]; then return 0; fi
    [ -n "$mirror" ] && command -v dpkg-deb >/dev/null && command -v curl >/dev/null || return 1
    rm -rf "$to" && mkdir -p "$to" &&
        curl -fsSL --max-time 120 -o "$to.deb" "$2" && dpkg-deb -x "$to.deb" "$to" &&
        rm "$to.deb" || { rm -rf "$to"; return 1; }
}

# the mirror that this machine uses already
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    grep -v security | head -n 1)
pool=${mirror%/}/pool/main
icd=
for file in /usr/share/vulkan/icd.d/lvp_icd.*json; do if [ -f "$file" ]; then icd=$file; fi; done
if [ -n "$icd" ]; then
    export VK_ICD_FILENAMES=$icd VK_DRIVER_FILES=$icd
    run 'lavapipe, installed' env WGPU_BACKEND=vulkan "$tilewise" conformance "${options[@]}"
    for bits in 128 256 512; do
        if [ $bits = 512 ] && ! grep -qw avx512f /proc/cpuinfo; then
            skip 'lavapipe, 512-bit vectors' 'the processor has no AVX-512'
            continue
        fi
        run "lavapipe, $bits-bit vectors" env WGPU_BACKEND=vulkan LP_NATIVE_VECTOR_WIDTH=$bits \
            "$tilewise" conformance "${options[@]}"
    done
    layer=${VK_LAYER_PATH:-/usr/share/vulkan/explicit_layer.d}
    if [ ! -f "$layer/VkLayer_khronos_validation.json" ] &&
        unpack validation "$pool/v/vulkan-validationlayers/vulkan-validationlayers_1.3.239.0-2_amd64.deb"; then
        layer=$cache/validation/usr/share/vulkan/explicit_layer.d
    fi
    if [ -f "$layer/VkLayer_khronos_validation.json" ]; then
        # WGPU_DEBUG=0: no debug information in the SPIR-V. With it naga writes OpSource WGSL, which
        # the spirv-val of that age does not know ("Invalid source language operand: 10"), and the
        # layer then looks at nothing else of the shader. The layer prints its messages itself.
        run 'lavapipe, validation layer' env WGPU_BACKEND=vulkan WGPU_DEBUG=0 \
            VK_LAYER_PATH="$layer" VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation WGPU_VALIDATION=1 \
            LD_LIBRARY_PATH="$cache/validation/usr/lib/x86_64-linux-gnu:${LD_LIBRARY_PATH:-}" \
            "$tilewise" conformance "${options[@]}"
    else
        skip 'lavapipe, validation layer' 'vulkan-validationlayers is neither installed nor to be had'
    fi
else
    skip lavapipe 'no lvp_icd in /usr/share/vulkan/icd.d'
fi

if unpack mesa25 "$pool/m/mesa/mesa-vulkan-drivers_25.0.7-2~bpo12+1_amd64.deb"; then
    lib=$(find "$cache/mesa25" -name libvulkan_lvp.so | head -n 1)
    printf '{"ICD":{"api_version":"1.4.0","library_path":"%s"},"file_format_version":"1.0.0"}\n' \
        "$lib" >"$cache/mesa25/lvp.json"
    export VK_ICD_FILENAMES=$cache/mesa25/lvp.json VK_DRIVER_FILES=$cache/mesa25/lvp.json
    run 'lavapipe 25, backports' env WGPU_BACKEND=vulkan "$tilewise" conformance "${options[@]}"
else
    skip 'lavapipe 25, backports' 'the package could not be downloaded and unpacked'
fi

swift=
for file in /usr/lib*/chromium*/vk_swiftshader_icd.json /opt/google/chrome/vk_swiftshader_icd.json; do
    if [ -f "$file" ]; then swift=$file; fi
done
if [ -n "$swift" ]; then
    export VK_ICD_FILENAMES=$swift VK_DRIVER_FILES=$swift
    run SwiftShader env WGPU_BACKEND=vulkan "$tilewise" conformance "${options[@]}"
else
    skip SwiftShader 'comes with chromium, which is not installed'
fi
unset VK_ICD_FILENAMES VK_DRIVER_FILES
run 'llvmpipe, OpenGL' env WGPU_BACKEND=gl "$tilewise" conformance "${options[@]}"

in_sid() { # NAME VARIABLES...
    local name=$1
    shift
    # shellcheck disable=SC2016
    run "$name" chroot "$sid" env WGPU_BACKEND=vulkan XDG_RUNTIME_DIR=/tmp "$@" \
        VK_DRIVER_FILES=/usr/share/vulkan/icd.d/lvp_icd.json \
        sh -c 'cd /opt/tilewise && ./tilewise conformance "$@"' sh "${options[@]}"
}
if [ -d "$sid/usr/share/vulkan/icd.d" ] && [ "$(id -u)" = 0 ]; then
    # the program and the cases are copied: a root of its own sees nothing else
    mkdir -p "$sid/opt/tilewise/tests"
    cp "$tilewise" "$sid/opt/tilewise/tilewise"
    cp -r tests/golden "$sid/opt/tilewise/tests/"
    in_sid 'lavapipe 26, Debian sid'
    if [ -f "$sid/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json" ]; then
        # a layer that knows OpSource WGSL
        in_sid 'lavapipe 26, its validation layer' RUST_LOG=wgpu_hal=warn \
            VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation WGPU_VALIDATION=1 WGPU_DEBUG=1
    else
        skip 'lavapipe 26, its validation layer' 'vulkan-validationlayers is not in the root'
    fi
else
    skip 'lavapipe 26, Debian sid' "no root at $sid, or not run as root: see the head of this script"
fi

printf '\n%s, %s, options: %s\n' "$(date -u +%F)" "$(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs)" "${options[*]}"
printf '%-34s %-8s %6s %6s %7s %6s  %s\n' driver '' passed failed skipped time adapter
printf '%s\n' "${rows[@]}"
exit $bad
