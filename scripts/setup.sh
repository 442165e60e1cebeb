#!/usr/bin/env bash
# Installs what building and running tilewise needs and this machine lacks: a C linker, root
# certificates, and a software Vulkan driver where there is no GPU. Says what it does; a second run
# finds nothing to do.
#
#   scripts/setup.sh [--with-swiftshader] [--with-gl] [--dry-run]
#
#   --with-swiftshader   also a second, independent Vulkan driver (it comes with chromium)
#   --with-gl            also Mesa's OpenGL driver
#   --dry-run            only say what would be installed
#
# CI=true turns on both extras.
set -euo pipefail

swiftshader=${CI:-false}
gl=${CI:-false}
dry_run=false
for arg in "$@"; do
    case $arg in
        --with-swiftshader) swiftshader=true ;;
        --with-gl) gl=true ;;
        --dry-run) dry_run=true ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        *)
            echo "setup: unknown option $arg (see scripts/setup.sh --help)" >&2
            exit 2
            ;;
    esac
done

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

have_library() {
    local dir
    if { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep -q "$1"; then return 0; fi
    for dir in /usr/lib /usr/lib64 /usr/lib/*-linux-gnu /usr/local/lib; do
        if [ -e "$dir/$1" ]; then return 0; fi
    done
    return 1
}

have_file() { compgen -G "$1" >/dev/null; }

# Vulkan drivers announce themselves in these folders.
driver_folders=(/usr/share/vulkan/icd.d /usr/local/share/vulkan/icd.d /etc/vulkan/icd.d)
have_driver() {
    local dir
    for dir in "${driver_folders[@]}"; do
        if have_file "$dir/$1"; then return 0; fi
    done
    return 1
}

# A GPU that a Vulkan driver could use: a render node, or NVIDIA's own device file.
have_gpu() { have_file '/dev/dri/renderD*' || have_file '/dev/nvidia[0-9]*'; }

have_vulkan() {
    have_library libvulkan.so.1 || return 1
    if [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ]; then return 0; fi
    have_driver 'lvp_icd*.json' || { have_gpu && have_driver '*.json'; }
}

have_certificates() {
    [ -n "${SSL_CERT_FILE:-}${CARGO_HTTP_CAINFO:-}" ] ||
        [ -s /etc/ssl/certs/ca-certificates.crt ] ||
        [ -s /etc/pki/tls/certs/ca-bundle.crt ] ||
        [ -s /etc/ssl/cert.pem ]
}

have_swiftshader() {
    have_file '/usr/lib*/chromium*/vk_swiftshader_icd.json' ||
        have_file '/opt/google/chrome/vk_swiftshader_icd.json'
}

have_gl() { have_library libEGL.so.1 && have_library libEGL_mesa.so.0; }

if ! command -v cargo >/dev/null; then
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
        fail "cargo is in $HOME/.cargo/bin, which is not on PATH: run '. \$HOME/.cargo/env' first"
    fi
    fail "cargo is missing: install Rust from https://rustup.rs, then run this again"
fi

if [ "$(uname -s)" != Linux ]; then
    # macOS has Metal and Windows DirectX 12; the Rust toolchain brings or names its linker.
    command -v cc >/dev/null || say "no C linker 'cc' on PATH: on macOS, 'xcode-select --install' brings it"
    say "nothing to install on $(uname -s)"
    exit 0
fi

manager=none
if command -v apt-get >/dev/null; then
    manager=apt
elif command -v dnf >/dev/null; then
    manager=dnf
fi

packages=()
# want WHAT "DEBIAN PACKAGES" "FEDORA PACKAGES"
want() {
    local chosen=$2
    if [ "$manager" = dnf ]; then chosen=$3; fi
    say "$1 is missing: needs $chosen"
    # shellcheck disable=SC2206 # a list of package names, split on purpose
    packages+=($chosen)
}

command -v cc >/dev/null || want "a C linker" "gcc libc6-dev" "gcc glibc-devel"
have_certificates || want "a set of root certificates" ca-certificates ca-certificates
have_vulkan || want "a Vulkan driver" "mesa-vulkan-drivers libvulkan1" "mesa-vulkan-drivers vulkan-loader"
if [ "$swiftshader" = true ] && ! have_swiftshader; then
    if grep -qs '^ID=ubuntu' /etc/os-release; then
        say "SwiftShader is passed over: Ubuntu's chromium is a snap, without the driver's files"
    else
        want "SwiftShader" chromium chromium
    fi
fi
if [ "$gl" = true ]; then
    have_gl || want "Mesa's OpenGL" "libegl1 libegl-mesa0 libgl1-mesa-dri libgles2" "mesa-libEGL mesa-dri-drivers libglvnd-gles"
fi

if [ ${#packages[@]} -eq 0 ]; then
    say "everything needed is here, nothing to do"
    exit 0
fi

case $manager in
    apt) install="apt-get install -y --no-install-recommends ${packages[*]}" ;;
    dnf) install="dnf install -y --setopt=install_weak_deps=False ${packages[*]}" ;;
    none) fail "no apt-get or dnf here: install the packages named above (or your system's equivalents: a C compiler, the Vulkan loader, and Mesa's lavapipe driver) and run this again" ;;
esac
if [ "$dry_run" = true ]; then
    say "would run: $install"
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "needs root and there is no sudo: run as root: $install"
    as_root=(sudo)
fi

if [ "$manager" = apt ]; then
    say "apt-get update"
    "${as_root[@]}" apt-get update -qq
fi
say "$install"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # a command line, split on purpose
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $install >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    fail "the installation failed; its last lines are above"
}
say "installed ${packages[*]}"

command -v cc >/dev/null || fail "still no C linker 'cc'"
have_vulkan || fail "still no Vulkan driver that this script can find"
