#!/usr/bin/env bash
# Shows what tilewise does, on whatever adapter this machine has. Pictures go to out/.
#
#   scripts/demo.sh [OPTIONS OF `tilewise demo`]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
# without a display, OpenGL asks for a runtime folder
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}
exec cargo run --locked --release --features cli -- demo "$@"
