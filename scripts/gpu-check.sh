#!/usr/bin/env bash
# What to run on a machine with a GPU: the adapters; golden cases and random problems with either tier
# of kernels, f32 and f16; the benches with first uses; and PyTorch's scaled_dot_product_attention on the
# same card, if python3 has a torch for it. One report in Markdown, written and printed.
#
#   scripts/gpu-check.sh [--out DIR] [--minutes N] [--adapter NAME] [--random N] [--quick] [--any]
#
#   --out DIR         where report.md goes, with the figures and what was printed [default: out/gpu-check]
#   --minutes N       ends within so long, the building of tilewise aside [default: 8]. Each part has a
#                     share of what is left; what takes longer is cut, and the report says so
#   --adapter NAME    as of tilewise [default: its choice, or the first GPU if that is none]
#   --random N        random problems for each operator [default: 3]
#   --quick           the short lists of the benches
#   --any             no GPU is needed: a driver on the CPU is judged with the kernels of GPUs (--class gpu),
#                     and timed with its own and the short lists; it says nothing about the speed of GPUs
#
#   TILEWISE=path     the program [default: target/release/tilewise, built if it is not there]
#   GPU_CHECK_SECONDS=N  seconds instead of --minutes, for tests of this script
#   PYTHON=path       for the report, without packages, and for torch [default: python3]
#
# Exits with 1 if a case is wrong or a program fails, with 0 if all that ran is right: what cannot run,
# or is cut, is named. The caches that drivers keep of compiled kernels are switched off where a variable
# does that (Mesa, NVIDIA), so that first uses are first.
set -uo pipefail

# names that a user gives are of the user's folder
from=$PWD
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$from" "$1" ;; esac; }
mistake() { echo "gpu-check: $*" >&2; exit 2; }

out='' minutes=8 adapter='' random=3 quick=false any=false
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=true ;;
        --any) any=true ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
            exit 0
            ;;
        --out | --minutes | --adapter | --random)
            [ $# -ge 2 ] && [ -n "$2" ] || mistake "$1 has no value"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        *) mistake "unknown option $1 (see scripts/gpu-check.sh --help)" ;;
    esac
    shift
done
[[ $minutes =~ ^[1-9][0-9]{0,2}$ ]] || mistake "--minutes: expected a number from 1 to 999, got $minutes"
[[ $random =~ ^[1-9][0-9]{0,3}$ ]] || mistake "--random: expected a number from 1 to 9999, got $random"
tilewise=${TILEWISE:+$(absolute "$TILEWISE")}
if [ -n "$out" ]; then out=$(absolute "$out"); fi
cd "$(dirname "$0")/.." || exit 1
out=${out:-$PWD/out/gpu-check}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || mistake "no $python, which writes the report: install python3, or name one by PYTHON=path"
timeout=$(command -v timeout || command -v gtimeout) || mistake "no timeout, which keeps the time: install coreutils"
if [ -n "$tilewise" ]; then
    [ -f "$tilewise" ] && [ -x "$tilewise" ] ||
        mistake "TILEWISE=$TILEWISE is no program: build it with cargo build --release --features cli --bin tilewise"
else
    tilewise=${CARGO_TARGET_DIR:-target}/release/tilewise
    if [ ! -x "$tilewise" ]; then
        command -v cargo >/dev/null || mistake "no $tilewise and no cargo to build it: name a program by TILEWISE=path"
        echo "building tilewise"
        cargo build --quiet --release --locked --features cli --bin tilewise || exit 1
    fi
fi
mkdir -p "$out/logs" || mistake "cannot make $out/logs: name another folder by --out"
# figures of an earlier run would pass for this one's
rm -f "$out"/logs/*.log "$out"/bench-*.json "$out"/bench-*.html "$out"/{parts,facts}.tsv "$out"/{torch.jsonl,devices.json,report.md} ||
    mistake "cannot write in $out: name another folder by --out"

export MESA_SHADER_CACHE_DISABLE=1 __GL_SHADER_DISK_CACHE=0
# without a display, OpenGL asks for a runtime folder
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}

# The last seconds are for the report, and for programs that do not end when they are told to.
started=$SECONDS
seconds=${GPU_CHECK_SECONDS:-$((60 * minutes))}
deadline=$((started + seconds - (seconds > 150 ? 15 : seconds / 10)))
weights=0
failed=0 cut=0 skipped=0

fact() { printf '%s\t%s\n' "$1" "$2" >>"$out/facts.tsv"; }
row() { # NAME OUTCOME SECONDS LIMIT WHAT
    printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "${5//$'\t'/ }" >>"$out/parts.tsv"
    printf '%-32s %-8s %5s s  %s\n' "$1" "$2" "$3" "$5"
}

# Counts of a log of `tilewise conformance --verbose`, whole or cut.
counts() { # LOG
    local last
    last=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$1" | tail -n 1)
    if [ -z "$last" ]; then
        last="$(grep -cE '^[^ ]+: pass, ' "$1") passed, $(grep -cE '^FAIL ' "$1") failed, $(grep -cE '^[^ ]+: skipped, ' "$1") skipped"
    fi
    printf '%s' "$last"
}

# Runs one part in its share of the time that is left: what earlier parts did not use, later ones get.
part() { # NAME WEIGHT COMMAND...
    local name=$1 weight=$2 log="$out/logs/${1//[ ,]/-}.log" left limit start=$SECONDS status word what
    shift 2
    left=$((deadline - SECONDS))
    limit=$((left > 0 ? left * weight / weights : 0))
    weights=$((weights - weight))
    if [ $limit -lt 2 ]; then
        cut=$((cut + 1))
        row "$name" cut 0 0 "no time was left"
        return
    fi
    "$timeout" -k 5 $limit "$@" >"$log" 2>&1 </dev/null
    status=$?
    # killed before its time: not by us
    if [ $status -eq 137 ] && [ $((SECONDS - start)) -lt $limit ]; then status=265; fi
    what=''
    # counts of a log that has any
    if grep -qE '^[0-9]+ passed, |^[^ ]+: pass, |^FAIL ' "$log"; then what=$(counts "$log"); fi
    case $status in
        0) word=ok ;;
        124 | 137)
            word=cut
            what="${what:+$what until it was }cut after its share of the time, $limit s"
            # a wrong result is wrong, whether or not the rest had time
            if grep -q '^FAIL ' "$log"; then word=FAILED; fi
            ;;
        *)
            word=FAILED
            if [ $status -gt 128 ]; then what="${what:+$what; }crashed, signal $((status == 265 ? 9 : status - 128))"; fi
            what="${what:+$what; }$(grep -E '^(error|FAIL|gpu_check)|panicked|Error' "$log" | tail -n 1 | cut -c 1-300)"
            ;;
    esac
    if [ $word = ok ] && grep -q '"skipped_all"' "$log"; then
        word=skipped
        what=$(sed -n 's/.*"skipped_all": "\(.*\)".*/\1/p' "$log" | head -n 1)
    fi
    case $word in
        FAILED) failed=$((failed + 1)) ;;
        cut) cut=$((cut + 1)) ;;
        skipped) skipped=$((skipped + 1)) ;;
    esac
    row "$name" $word $((SECONDS - start)) "$limit" "$what"
}

# A part that cannot run.
pass_over() { # NAME WEIGHT WHY
    weights=$((weights - $2))
    skipped=$((skipped + 1))
    row "$1" skipped 0 0 "$3"
}

finish() {
    fact took "$(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s of at most $((seconds / 60)) min $((seconds % 60)) s"
    if ! "$python" scripts/gpu_check_report.py write "$out"; then
        echo "gpu-check: the report could not be written" >&2
        exit 1
    fi
    printf '\n'
    cat "$out/report.md"
    if [ $cut -gt 0 ]; then printf '\n%s\n' 'a part that was cut gets more time by --minutes, and less to do by --quick'; fi
    printf '\nreport in %s\n%s failed, %s cut, %s skipped\n' "$out/report.md" $failed $cut $skipped
    [ $failed -eq 0 ]
    exit
}

fact date "$(date -u '+%F %H:%M UTC')"
fact tilewise "$("$tilewise" --version 2>/dev/null || echo 'does not say its version')"
if command -v git >/dev/null && revision=$(git describe --always --dirty --abbrev=10 2>/dev/null); then
    fact checkout "$revision (the program may be of another)"
fi
fact system "$(uname -sm)"
if command -v nvidia-smi >/dev/null; then
    smi=$("$timeout" 10 nvidia-smi --query-gpu=name,driver_version,power.limit,clocks.max.sm --format=csv,noheader 2>&1) ||
        smi='fails'
    fact nvidia-smi "$(printf '%s' "$smi" | tr '\n\t' '; ')"
fi

# Which adapter, and what of it matters here.
start=$SECONDS
TILEWISE_ALLOW_NO_GPU=1 "$timeout" -k 5 30 "$tilewise" devices --json ${adapter:+--adapter "$adapter"} \
    2>"$out/logs/devices.log" >"$out/devices.json"
status=$?
if [ -n "$adapter" ] && grep -q 'no adapter matches' "$out/logs/devices.log"; then
    cat "$out/logs/devices.log" >&2
    mistake "--adapter $adapter: name one of these"
fi
if ! picked=$("$python" scripts/gpu_check_report.py pick "$out/devices.json" 2>>"$out/logs/devices.log"); then
    failed=1
    row devices FAILED $((SECONDS - start)) 30 "status $status; $(tail -n 1 "$out/logs/devices.log" | cut -c 1-300)"
    finish
fi
IFS=$'\t' read -r kind is_default name tier what <<<"$picked"
case $kind in
    none)
        skipped=1
        row devices skipped $((SECONDS - start)) 30 'no adapter at all: no driver of Vulkan, Metal or DX12 is found (scripts/setup.sh installs one for the CPU)'
        finish
        ;;
    cpu)
        if ! $any; then
            skipped=1
            row devices skipped $((SECONDS - start)) 30 "no GPU: the only adapter is $what, on the CPU (--any runs on it all the same)"
            finish
        fi
        ;;
esac
row devices ok $((SECONDS - start)) 30 "$what"
fact adapter "$what"

on=()
if [ -n "$adapter" ]; then on=(--adapter "$adapter"); elif [ "$is_default" = no ]; then on=(--adapter "$name"); fi
bench=(--tuning off) class=()
if [ $kind = cpu ]; then
    # benches of that class measure ceilings with what keeps a GPU busy: many minutes on a CPU
    class=(--class gpu)
    quick=true
    fact class 'cases are judged with the kernels of GPUs, benches have those of CPUs: no time here says anything about a GPU'
fi
if $quick; then
    bench+=(--quick)
    fact lists 'the short lists of the benches, --quick'
fi
if "$tilewise" bench --help 2>/dev/null | grep -q -- --first-use; then
    bench+=(--first-use)
else
    skipped=$((skipped + 1))
    row 'first uses' skipped 0 0 'this program has no bench --first-use: it is older than this script'
fi

golden() { # WEIGHT TIER DTYPE
    local name="golden cases, $2, $3"
    if [ "$2" = subgroup ] && [ "$tier" != subgroup ]; then
        pass_over "$name" "$1" 'no subgroup tier on this adapter'
        return
    fi
    part "$name" "$1" "$tilewise" conformance --cases tests/golden --poison --verbose --tier "$2" --dtype "$3" \
        ${on[@]+"${on[@]}"} ${class[@]+"${class[@]}"}
}
# One operator a process: one that is slow, or fails, does not take the figures of others with it.
bench() { # WEIGHT OPERATOR DTYPE
    part "bench $2, $3" "$1" "$tilewise" bench "$2" --dtype "$3" "${bench[@]}" ${on[@]+"${on[@]}"} \
        --json "$out/bench-$2-$3.json" --plot "$out/bench-$2-$3.html"
    # a bench that did not end leaves an empty file
    for file in "$out/bench-$2-$3".{json,html}; do if [ ! -s "$file" ]; then rm -f "$file"; fi; done
}

# What matters most comes first; the sum of all weights below.
weights=132
golden 14 subgroup f32
golden 14 portable f32
bench 14 attention f32
bench 10 attention f16
lists=()
for file in "$out"/bench-attention-*.json; do if [ -s "$file" ]; then lists+=("$file"); fi; done
if [ ${#lists[@]} -eq 0 ]; then
    pass_over 'PyTorch attention' 14 'no bench of attention to stand beside'
elif [ $kind = cpu ]; then
    pass_over 'PyTorch attention' 14 'the adapter is no GPU'
else
    part 'PyTorch attention' 14 "$python" scripts/gpu_check_torch.py --adapter "$name" --json "$out/torch.jsonl" "${lists[@]}"
fi
golden 10 subgroup f16
golden 10 portable f16
part 'random problems, f32' 10 "$tilewise" conformance --random "$random" --poison --verbose \
    ${on[@]+"${on[@]}"} ${class[@]+"${class[@]}"}
bench 6 linear f32
bench 6 neighborhood f32
bench 5 gaunt f32
bench 6 fft f32
bench 5 linear f16
bench 5 neighborhood f16
bench 3 gaunt f16
finish
