#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention on the problems that `tilewise bench attention --json` timed.

    scripts/gpu_check_torch.py [--adapter NAME] [--json FILE] BENCH.json..

One JSON line for the place, then one for each problem and backend: its seconds, or why there are none.
Without torch, or without a card that it reaches, one line says so and the exit status is 0.
Tensors are [batch, heads, seq, dim], contiguous: PyTorch's own order.
"""

import argparse
import json
import statistics
import sys
import time
import warnings

# what `tilewise bench` does: samples, seconds of one at the least, bytes that are gone round
SAMPLES, LEAST, FILL, MOST_SETS, MOST_CALLS = 9, 1e-2, 256e6, 64, 256
BACKENDS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION",
            "cudnn": "CUDNN_ATTENTION", "math": "MATH"}


def problems(paths):
    """The attention cases of the bench files, each once."""
    found = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        if report.get("schema") != 1:
            sys.exit(f"gpu_check_torch: {path}: expected schema 1 of tilewise bench")
        for case in report["results"]:
            if case["op"] == "attention":
                found[case["shape"], case["dtype"]] = None
    return list(found)


def sizes(shape):
    """What `key=value,..` says."""
    values = dict(part.split("=", 1) for part in shape.split(","))
    return {key: value if key == "mask" else int(value) for key, value in values.items()}


def place(torch, adapter):
    """The kind of device, the device, its name, and whether it is the adapter; or why there is none."""
    def same(name):
        return name.lower() in adapter.lower() or adapter.lower() in name.lower()

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        index = next((i for i, name in enumerate(names) if same(name)), 0)
        torch.cuda.set_device(index)
        return "cuda", f"cuda:{index}", names[index], same(names[index])
    xpu = getattr(torch, "xpu", None)
    if xpu and xpu.is_available():
        name = xpu.get_device_name(0)
        return "xpu", "xpu:0", name, same(name)
    mps = getattr(torch.backends, "mps", None)
    if mps and mps.is_available():
        return "mps", "mps", "Apple GPU", "apple" in adapter.lower()
    return None


def timer(torch, kind):
    """A function that gives the seconds of a call of another: events on CUDA and ROCm, else the host's clock."""
    if kind == "cuda":
        def events(work):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) * 1e-3
        return events, "CUDA events"
    wait = getattr(torch, kind).synchronize

    def clock(work):
        wait()
        start = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - start
    return clock, "wall clock"


def measured(seconds_of, calls):
    """Median, fastest and slowest sample of one call; calls go round."""
    turn = 0

    def run(times):
        nonlocal turn
        for _ in range(times):
            calls[turn % len(calls)]()
            turn += 1
    run(len(calls))
    seconds_of(lambda: run(len(calls)))
    once = seconds_of(lambda: run(3)) / 3
    repeats = int(min(max(LEAST / max(once, 1e-9), 1), MOST_CALLS))
    all_of = sorted(seconds_of(lambda: run(repeats)) / repeats for _ in range(SAMPLES))
    return {"seconds": statistics.median(all_of), "low": all_of[0], "high": all_of[-1]}


def calls_of(torch, device, shape, dtype, expand):
    """Calls on sets of tensors of their own, more than caches hold."""
    s = sizes(shape)
    batch, seq, keys, heads, heads_kv, dim = (
        s[k] for k in ("batch", "seq", "keys", "heads", "heads_kv", "dim"))
    element = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    options = {}
    if s["mask"] == "causal" and seq > 1:
        if seq == keys:
            options["is_causal"] = True
        else:
            # the last query sees every key; is_causal lets the first see the first only
            from torch.nn.attention.bias import causal_lower_right
            options["attn_mask"] = causal_lower_right(seq, keys)
    if heads != heads_kv and not expand:
        options["enable_gqa"] = True
    size = 4 if dtype == "f32" else 2
    count = 2 * size * batch * dim * (seq * heads + keys * heads_kv)
    sets = int(min(max(-(-FILL // count), 1), MOST_SETS))
    attention = torch.nn.functional.scaled_dot_product_attention
    calls = []
    for _ in range(sets):
        q = torch.randn(batch, heads, seq, dim, device=device, dtype=element)
        k, v = (torch.randn(batch, heads_kv, keys, dim, device=device, dtype=element) for _ in range(2))
        if expand and heads != heads_kv:
            k, v = (x.repeat_interleave(heads // heads_kv, 1) for x in (k, v))
        calls.append(lambda q=q, k=k, v=v: attention(q, k, v, **options))
    return calls


def timed(torch, kind, device, seconds_of, backend, shape, dtype):
    """Fields of one line."""
    if backend == "flash" and dtype == "f32":
        return {"skipped": "flash: not for f32"}
    if kind != "cuda" and backend != "default":
        return {"skipped": f"{backend}: chosen on CUDA and ROCm only"}
    s = sizes(shape)
    why = []
    # keys that several heads share: as they are, else repeated beforehand, which is more memory to read
    for expand in [False, True] if s["heads"] != s["heads_kv"] else [False]:
        with warnings.catch_warnings(record=True) as said, torch.no_grad():
            warnings.simplefilter("always")
            try:
                calls = calls_of(torch, device, shape, dtype, expand)
                if backend == "default":
                    fields = measured(seconds_of, calls)
                else:
                    from torch.nn.attention import SDPBackend, sdpa_kernel
                    with sdpa_kernel(getattr(SDPBackend, BACKENDS[backend])):
                        fields = measured(seconds_of, calls)
                if expand:
                    fields["note"] = "keys repeated for every head beforehand"
                return fields
            except (RuntimeError, TypeError, ImportError, AttributeError) as error:
                why = [str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__]
                # PyTorch warns of the reasons, and raises that there is no kernel
                why += [str(w.message).split(" (Triggered")[0].strip() for w in said]
                # a device that is gone, or a kernel that breaks it, is no missing backend
                if any(word in why[0] for word in ("CUDA error", "HIP error", "device-side")):
                    raise
    return {"skipped": f"{backend}: {'; '.join(dict.fromkeys(why[:3]))}"[:240]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="+", metavar="BENCH.json")
    parser.add_argument("--adapter", default="", help="name of the adapter that tilewise ran on")
    parser.add_argument("--json", help="write the lines here, too")
    args = parser.parse_args()
    cases = problems(args.bench)
    file = open(args.json, "w", encoding="utf-8") if args.json else None

    def say(**fields):
        line = json.dumps(fields)
        print(line, flush=True)
        if file:
            print(line, file=file, flush=True)

    if not cases:
        return say(skipped_all="no case of attention in the bench")
    try:
        import torch
    except ImportError as error:
        return say(skipped_all=f"no torch for {sys.executable}: {error}".replace('"', "'"))
    try:
        where = place(torch, args.adapter)
    except RuntimeError as error:
        return say(skipped_all=f"torch {torch.__version__} reaches no card: {error}".replace('"', "'").splitlines()[0])
    if where is None:
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        why = f"built for {built}, but it finds no card" if built else "built for CPUs only"
        return say(skipped_all=f"torch {torch.__version__} has no GPU: {why}")
    kind, device, name, same = where
    # f32 means f32: no products in TF32
    if kind == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(1)
    seconds_of, clock = timer(torch, kind)
    little = torch.zeros(1, device=device)
    launch = measured(seconds_of, [lambda: little.add_(1)])["seconds"]
    say(torch=torch.__version__, cuda=torch.version.cuda, hip=getattr(torch.version, "hip", None),
        device=name, same_card=bool(same), clock=clock, launch=launch)
    for shape, dtype in cases:
        for backend in ["default", *BACKENDS]:
            fields = timed(torch, kind, device, seconds_of, backend, shape, dtype)
            say(shape=shape, dtype=dtype, backend=backend, **fields)


if __name__ == "__main__":
    main()
