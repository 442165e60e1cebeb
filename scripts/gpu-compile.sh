#!/usr/bin/env bash
# Every WGSL kernel that the planner would give a GPU, compiled by the compilers of Mesa's drivers for
# AMD (RADV's ACO), NVIDIA (NVK's NAK) and Intel (ANV's brw) cards that are not there: registers, spills,
# the hot loop's instructions, a bound by counting, held against tools/gpu-compile/budgets.json; and
# written in the languages of Metal and DX12 by naga. No GPU. docs/GPUS.md says what the figures mean.
#
#   scripts/gpu-compile.sh [--cards A,B] [--op OP] [--json FILE] [--markdown FILE] [--quick]
#
#   --cards A,B       of: rdna2 rdna3 rdna4 ampere ada hopper blackwell xelp dg2 xe2 xe3 browser
#                     [default: all; browser's kernels are only written for Metal and DX12]
#   --op OP           only kernels of attention, linear, neighborhood, gaunt, fft or relative
#   --json FILE       every figure
#   --markdown FILE   the tables of docs/GPUS.md, between the markers of that file
#   --texts DIR       these texts instead, DIR/CARD/SET/ as tilewise bench --as CARD --dump-wgsl writes SET
#   --quick           rdna3, ada and dg2, kernels of the benches: two to three minutes on two slow cores;
#                     everything takes some forty
#   --assembly DIR    what the compilers wrote
#
#   TILEWISE_GPU_COMPILERS=DIR        where the drivers are unpacked, some 370 MB [default: tilewise/compilers
#                                     in the user's cache folder]; a folder that has them is used as it is
#   TILEWISE_GPU_COMPILE_SECONDS=300  patience with one kernel; a compiler that takes longer has failed
#   TILEWISE_DEBIAN_MIRROR=URL        where the drivers come from [default: this machine's mirror]
#
# The drivers are Debian's packages of its unstable release, unpacked and not installed: they run with
# a loader and a C library of their own, without root. What is missing on a machine is named and skipped.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

cards='' op='' json='' markdown='' assembly='' texts='' quick=false
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=true ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        --cards | --op | --json | --markdown | --assembly | --texts)
            if [ $# -lt 2 ]; then
                echo "gpu-compile: $1 has no value" >&2
                exit 2
            fi
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        *)
            echo "gpu-compile: unknown option $1 (see scripts/gpu-compile.sh --help)" >&2
            exit 2
            ;;
    esac
    shift
done
if [ -z "$cards" ]; then
    cards=rdna2,rdna3,rdna4,ampere,ada,hopper,blackwell,xelp,dg2,xe2,xe3,browser
    if $quick; then cards=rdna3,ada,dg2; fi
    # of texts that are given, the cards that they are of
    if [ -d "$texts" ]; then cards=$(cd "$texts" && find . -mindepth 1 -maxdepth 1 -type d -printf '%f,'); fi
fi
cards=${cards%,}
case $op in
    '' | attention | linear | neighborhood | gaunt | fft | relative) ;;
    *)
        echo "gpu-compile: no such operator: $op" >&2
        exit 2
        ;;
esac

skip() {
    echo "skipped: $*"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}

# Version of Mesa that the budgets are of; its successor is taken where it is gone.
mesa=26.2.6-1

# Unpacks the drivers below DIR, or says what is missing.
unpack() { # DIR
    local root=$1 tool mirror part
    for tool in apt-get dpkg xz; do
        command -v $tool >/dev/null || { echo "no $tool"; return 1; }
    done
    # the mirror that this machine uses already
    mirror=${TILEWISE_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 2>/dev/null | grep -v security | grep debian | head -n 1)}
    mirror=${mirror%/}
    [ -n "$mirror" ] || { echo "no mirror of Debian among the sources; TILEWISE_DEBIAN_MIRROR names one"; return 1; }
    [ -d /usr/share/keyrings ] || { echo "no keys of Debian (debian-archive-keyring)"; return 1; }
    mkdir -p "$root" || { echo "cannot make $root"; return 1; }
    # a folder that is there is whole
    part=$(mktemp -d "$root/part.XXXXXX") || { echo "cannot write in $root"; return 1; }
    mkdir -p "$part"/apt/{lists/partial,archives/partial,etc} "$part/sys"
    echo "deb $mirror sid main" >"$part/apt/etc/sources.list"
    : >"$part/apt/status"
    local apt=(apt-get -qq -o Dir::Etc::sourcelist="$part/apt/etc/sources.list"
        -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::trustedparts=/usr/share/keyrings
        -o Dir::State="$part/apt" -o Dir::State::status="$part/apt/status" -o Dir::Cache="$part/apt"
        -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o APT::Architectures=amd64
        -o APT::Architecture=amd64 -o Acquire::Languages=none -o Acquire::Retries=2 -o APT::Update::Error-Mode=any -o Debug::NoLocking=true)
    if ! "${apt[@]}" update >"$part/log" 2>&1; then
        echo "no packages from $mirror: $(grep -m 1 '^[EW]:' "$part/log")"
        rm -rf "$part"
        return 1
    fi
    # without installed packages, all that they need comes along, down to the C library
    local names=(libvulkan1 libdrm-dev linux-libc-dev) wanted
    wanted=("mesa-vulkan-drivers=$mesa" "mesa-drm-shim=$mesa")
    if ! "${apt[@]}" -y --download-only install "${wanted[@]}" "${names[@]}" >"$part/log" 2>&1; then
        echo "Mesa $mesa is not there any more: taking the one that is" >&2
        wanted=(mesa-vulkan-drivers mesa-drm-shim)
        if ! "${apt[@]}" -y --download-only install "${wanted[@]}" "${names[@]}" >"$part/log" 2>&1; then
            echo "no package ${wanted[*]} from $mirror: $(grep -m 1 '^E:' "$part/log")"
            rm -rf "$part"
            return 1
        fi
    fi
    local deb
    for deb in "$part"/apt/archives/*.deb; do
        if ! dpkg -x "$deb" "$part/sys" 2>"$part/log"; then
            echo "cannot unpack $(basename "$deb"): $(tail -n 1 "$part/log")"
            rm -rf "$part"
            return 1
        fi
    done
    rm -rf "$root/sys"
    mv "$part/sys" "$root/sys"
    rm -rf "$part"
}

[ "$(uname -sm)" = 'Linux x86_64' ] || skip "the drivers are packages for Linux on x86-64, not for $(uname -sm)"
command -v cargo >/dev/null || skip "no cargo"

target=${CARGO_TARGET_DIR:-target}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "building tools/gpu-compile"
if ! cargo build --quiet --locked --manifest-path tools/gpu-compile/Cargo.toml \
    --target-dir "$target/gpu-compile" 2>"$work/log"; then
    # a machine without a network lacks crates; anything else is a mistake
    if grep -qE 'failed to (download|get)|network|Could not resolve' "$work/log"; then
        skip "cargo cannot get what tools/gpu-compile needs: $(grep -m 1 -E 'failed to|Could not' "$work/log")"
    fi
    cat "$work/log"
    exit 1
fi
tool=$target/gpu-compile/debug/gpu-compile

compilers=${TILEWISE_GPU_COMPILERS:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/tilewise/compilers}
libraries=$compilers/sys/usr/lib/x86_64-linux-gnu
if [ ! -e "$libraries/libvulkan.so.1" ]; then
    echo "unpacking Mesa's drivers below $compilers"
    why=$(unpack "$compilers") || skip "$why"
fi

# Intel's kernel driver has no stand-in among the packages: it is built from a file of ours, with the
# kernel's headers of the packages and nothing else of theirs. Without it Intel's cards are skipped.
stub=$work/libxe_stub.so
mkdir -p "$work/include"
cp -r "$compilers"/sys/usr/include/{drm,libdrm,xf86drm.h,xf86drmMode.h} "$work/include/" 2>/dev/null
cc -O1 -Wall -shared -fPIC -I"$work/include" -I"$work/include/libdrm" -o "$stub" \
    tools/gpu-compile/xe_stub.c -ldl 2>"$work/log" || tail -n 3 "$work/log"

tilewise=${TILEWISE:-$target/debug/tilewise}
if [ -n "$texts" ]; then
    if [ ! -d "$texts" ]; then
        echo "gpu-compile: no folder $texts" >&2
        exit 2
    fi
elif [ ! -x "$tilewise" ]; then
    echo "building tilewise"
    cargo build --quiet --locked --all-features --bin tilewise || exit 1
fi

# Both kinds of elements; kernels of the golden cases too, if there is time.
dump() { # CARD SET COMMAND...
    local card=$1 dir=$work/texts/$1/$2
    shift 2
    if ! "$tilewise" "$@" --as "$card" --dump-wgsl "$dir" >"$work/log" 2>&1; then
        cat "$work/log"
        echo "gpu-compile: tilewise $* --as $card failed"
        exit 1
    fi
}
bench=${op:-all}
for card in ${cards//,/ }; do
    if [ -n "$texts" ]; then continue; fi
    # benches have none of relative attention
    if [ "$op" != relative ]; then dump "$card" bench-f32 bench "$bench"; fi
    # degrees that benches leave to --routes
    if ! $quick; then
        case $op in
            '' | gaunt)
                for dtype in f32 f16; do
                    dump "$card" "degrees-$dtype" bench gaunt --dtype $dtype --shape lmax=9 --shape lmax=10 \
                        --shape lmax=11 --shape lmax=12 --shape lmax=8,out=4 --shape lmax=5,out=10
                done
                ;;
        esac
    fi
    if ! $quick; then
        case $op in
            '' | attention)
                for dtype in f32 f16; do
                    dump "$card" "variants-$dtype" bench attention --variants --dtype $dtype
                done
                ;;
        esac
        if [ "$op" != relative ] && [ "$op" != fft ]; then dump "$card" bench-f16 bench "$bench" --dtype f16; fi
        dump "$card" golden-f32 conformance --cases tests/golden
        dump "$card" golden-f16 conformance --cases tests/golden --dtype f16
    fi
done

options=()
if [ -n "$json" ]; then options+=(--json "$json"); fi
if [ -n "$markdown" ]; then options+=(--markdown "$markdown" --date "$(date +%F)"); fi
if [ -n "$assembly" ]; then options+=(--assembly "$assembly"); fi
if [ -n "$op" ]; then options+=(--kernels "$op"); fi
"$tool" --texts "${texts:-$work/texts}" --cards "$cards" --compilers "$compilers" --stub "$stub" --work "$work" \
    --budgets tools/gpu-compile/budgets.json --seconds "${TILEWISE_GPU_COMPILE_SECONDS:-300}" \
    ${options[@]+"${options[@]}"}
