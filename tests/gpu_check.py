#!/usr/bin/env python3
"""Tests of scripts/gpu-check.sh and its programs, without a GPU and without torch: stand-ins answer for both.

    python3 tests/gpu_check.py
"""

import json
import os
import stat
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, "scripts", "gpu-check.sh")
REPORT = os.path.join(ROOT, "scripts", "gpu_check_report.py")
TORCH = os.path.join(ROOT, "scripts", "gpu_check_torch.py")

# A program that answers as tilewise does; what is wrong with it is said by variables.
STAND_IN = r'''#!/usr/bin/env bash
is() { case " $STAND_IN " in *" $1 "*) ;; *) false ;; esac; }
all=" $* " op=${2:-}
while [ $# -gt 0 ]; do
    case $1 in --dtype) dtype=$2 ;; --json) json=$2 ;; --plot) plot=$2 ;; --adapter) adapter=$2 ;; esac
    shift
done
card() { # NAME TYPE DEFAULT
    tier=subgroup
    if is portable; then tier=portable; fi
    printf '{"name": "%s", "type": "%s", "default": %s, "backend": "vulkan", "driver": "glide", "driver_info": "3.1",
        "tier": "%s", "subgroup_min": 32, "subgroup_max": 32, "f16": true}' "$1" "$2" "$3" $tier
}
case $all in
    ' --version ') echo 'tilewise 9.9.9' ;;
    *' --help '*) is old || echo --first-use ;;
    ' devices '*)
        if [ "${adapter:-Voodoo 2}" != 'Voodoo 2' ]; then
            echo "error: no adapter matches \"$adapter\"; there are: Voodoo 2" >&2
            exit 1
        fi
        if is none; then echo '[]'
        elif is soft; then echo "[$(card soft 'software on the CPU' true)]"
        elif is second; then echo "[$(card soft 'software on the CPU' true), $(card 'Voodoo 2' 'discrete GPU' false)]"
        else echo "[$(card 'Voodoo 2' 'discrete GPU' true)]"; fi
        ;;
    ' conformance '*)
        echo 'a_case: pass, 0.1 of the tolerance'
        if is hang && [[ $all = *--random* ]]; then exec sleep 60; fi
        if is fail && [ $dtype = f16 ]; then
            printf 'FAIL b_case: off by one\n1 passed, 1 failed, 0 skipped\n'
            exit 1
        fi
        echo '1 passed, 0 failed, 0 skipped'
        ;;
    *)
        if is crash && [ $op = fft ]; then kill -ABRT $$; fi
        if is second && [ "$adapter" != 'Voodoo 2' ]; then exit 1; fi
        sed "s/\"op\": \"attention\"/\"op\": \"$op\"/g; s/\"dtype\": \"f32\"/\"dtype\": \"$dtype\"/g" "$CANNED" >"$json"
        echo '<html>' >"$plot"
        ;;
esac
'''

# As much of torch as the program asks for; a call costs what its backend says.
FAKE_TORCH = r'''
import contextlib, types, warnings
__version__ = "0.0.fake"
float32, float16, bfloat16 = "f32", "f16", "bf16"
now, backend, log = 0.0, None, []
class Tensor:
    def __init__(self, *shape): self.shape = shape
    def add_(self, x):
        global now
        now += 1e-5
    def repeat_interleave(self, n, axis): return Tensor(self.shape[0], self.shape[1] * n, *self.shape[2:])
def randn(*shape, device, dtype): return Tensor(*shape)
def zeros(n, device): return Tensor(n)
def manual_seed(n): pass
no_grad = contextlib.nullcontext
class Event:
    def __init__(self, enable_timing): pass
    def record(self): self.at = now
    def synchronize(self): pass
    def elapsed_time(self, end): return (end.at - self.at) * 1e3
cuda = types.SimpleNamespace(is_available=lambda: True, device_count=lambda: 2,
    get_device_name=lambda i: ["Another", "Voodoo 2"][i], set_device=lambda i: log.append(i), Event=Event)
backends = types.SimpleNamespace(cuda=types.SimpleNamespace(matmul=types.SimpleNamespace(allow_tf32=True)))
version = types.SimpleNamespace(cuda="1.0", hip=None)
def sdpa(q, k, v, is_causal=False, enable_gqa=False, attn_mask=None):
    global now
    assert not is_causal or q.shape[2] == k.shape[2]
    if backend == "EFFICIENT_ATTENTION" and enable_gqa:
        warnings.warn("Efficient has no groups. (Triggered internally)")
        raise RuntimeError("No available kernel. Aborting execution.")
    if backend == "CUDNN_ATTENTION":
        warnings.warn("cuDNN is not built. (Triggered internally)")
        raise RuntimeError("No available kernel. Aborting execution.")
    assert enable_gqa or q.shape[1] == k.shape[1]
    now += {"MATH": 4e-3, "FLASH_ATTENTION": 1e-3}.get(backend, 2e-3)
nn = types.SimpleNamespace(functional=types.SimpleNamespace(scaled_dot_product_attention=sdpa))
'''
FAKE_ATTENTION = r'''
import contextlib, types, torch
SDPBackend = types.SimpleNamespace(**{n: n for n in
    ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")})
@contextlib.contextmanager
def sdpa_kernel(which):
    torch.backend = which
    yield
    torch.backend = None
'''

CAUSAL = "batch=1,seq=512,keys=512,heads=8,heads_kv=8,dim=64,mask=causal"
DECODE = "batch=4,seq=1,keys=4096,heads=32,heads_kv=8,dim=128,mask=causal"


def canned():
    """What `tilewise bench attention --first-use --json` writes."""
    case = {"op": "attention", "dtype": "f32", "tier": "subgroup", "series": "", "axis": "keys", "x": 512.0,
            "low": 1.9e-3, "high": 2.2e-3, "samples": 9, "repeats": 5, "copies": 64, "clock": "GPU timestamps",
            "flops": 1e9, "bytes": 1e6, "bound": "multiply_add", "fraction": 0.625, "error": 1e-7,
            "first_use": 0.75, "second_use": 0.25}
    return {
        "schema": 1, "tilewise": "9.9.9", "time": 0, "quick": False, "tuned": False,
        "device": {"name": "Voodoo 2", "backend": "vulkan", "driver": "glide", "tier": "subgroup", "class": "gpu",
                   "subgroup": [32, 32], "workgroup_storage": 32768, "clock": "GPU timestamps"},
        "ceilings": {"multiply_add_f32": 5e13, "multiply_add_f16": None, "copy": 2e12, "workgroup_memory": 9e12,
                     "dispatch": 2e-6},
        "results": [dict(case, id="a", shape=CAUSAL, seconds=2e-3), dict(case, id="b", shape=DECODE, seconds=5e-4)]}


class Check(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="gpu check ")
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        self.tilewise = self.file("tile wise", STAND_IN, True)
        self.canned = self.file("canned.json", json.dumps(canned()))

    def file(self, name, text, program=False):
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        if program:
            os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
        return path

    def read(self, *names):
        with open(os.path.join(self.dir, *names), encoding="utf-8") as file:
            return file.read()

    def run_it(self, command, **variables):
        env = {k: v for k, v in os.environ.items() if k not in ("TILEWISE", "PYTHONPATH", "STAND_IN")}
        env.update({"CANNED": self.canned, "PYTHON": sys.executable, **variables})
        done = subprocess.run(command, env=env, cwd=self.dir, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def check(self, *args, **variables):
        # names of the caller's folder, with spaces in them
        variables = {"TILEWISE": "tile wise", **variables}
        return self.run_it([SCRIPT, "--out", "the report", *args], **variables)

    def torch(self):
        """A folder that has a torch."""
        self.file("lib/torch/__init__.py", FAKE_TORCH)
        self.file("lib/torch/nn/__init__.py", "")
        self.file("lib/torch/nn/attention/__init__.py", FAKE_ATTENTION)
        # what stands in for the module of that name is in torch itself
        text = self.read("lib", "torch", "__init__.py")
        self.file("lib/torch/__init__.py", "_make = None\n" + text +
                  "\n_nn = nn\nimport torch.nn as nn\nnn.functional = _nn.functional\n")
        return os.path.join(self.dir, "lib")

    def no_torch(self):
        self.file("none/torch.py", "raise ImportError('there is no torch here')")
        return os.path.join(self.dir, "none")

    def test_mistakes_are_named(self):
        for args, want in [
            (["--fast"], "unknown option --fast (see scripts/gpu-check.sh --help)"),
            (["--minutes"], "--minutes has no value"),
            (["--minutes", "0"], "expected a number from 1 to 999, got 0"),
            (["--minutes", "x y"], "got x y"),
            (["--random", "-3"], "--random: expected a number from 1 to 9999, got -3"),
            (["--out", ""], "--out has no value"),
        ]:
            status, _, said = self.run_it([SCRIPT, *args])
            self.assertEqual((status, want in said), (2, True), f"{args}: {said}")
        status, _, said = self.check(TILEWISE="no such program")
        self.assertEqual(status, 2)
        self.assertIn("TILEWISE=no such program is no program: build it with cargo build --release", said)
        status, _, said = self.check(PYTHON="no-such-python")
        self.assertEqual((status, "no no-such-python" in said), (2, True), said)
        status, _, said = self.check("--adapter", "Banshee")
        self.assertEqual((status, "there are: Voodoo 2" in said), (2, True), said)
        blocked = self.file("blocked", "")
        status, _, said = self.run_it([SCRIPT, "--out", blocked + "/x"], TILEWISE=self.tilewise)
        self.assertEqual((status, "name another folder by --out" in said), (2, True), said)

    def test_help_is_the_head_of_the_script(self):
        status, said, _ = self.run_it([SCRIPT, "--help"])
        self.assertEqual(status, 0)
        for word in ("--out DIR", "--minutes N", "--adapter NAME", "--random N", "--quick", "--any", "TILEWISE=path"):
            self.assertIn(word, said)
        self.assertNotIn("set -uo", said)

    def test_a_whole_run(self):
        status, said, complaint = self.check("--minutes", "1", PYTHONPATH=self.torch())
        self.assertEqual(status, 0, said + complaint)
        report = self.read("the report", "report.md")
        self.assertTrue(said.endswith("0 failed, 0 cut, 0 skipped\n"), said)
        self.assertIn(report, said)
        for line in [
            "# GPU check: Voodoo 2",
            "16 ok, 0 failed, 0 cut, 0 skipped.",
            "| tilewise | tilewise 9.9.9 |",
            # first use 0.75 s, of which 0.5 s are compiling
            "| 2 ms | 1.9 ms to 2.2 ms | 62.5 % of multiply-add | 750 ms | 500 ms |",
            "| attention f32 | 50 Tflop/s | none | 2 TB/s | 9 TB/s | 2 us |",
            # joined by problem and type: 2 ms and 4 ms against 2 ms; f32 has no flash
            "| f32 | 2 ms | 2 ms (1.00) | - [1] | 2 ms (1.00) | 4 ms (2.00) | 1.00 |",
            "| f16 | 2 ms | 2 ms (1.00) | 1 ms (0.50) | 2 ms (1.00) | 4 ms (2.00) | 0.50 |",
            "- [1] flash: not for f32",
            "2 ms (4.00) [3]",
            "- [3] keys repeated for every head beforehand",
            "cudnn: No available kernel. Aborting execution.; cuDNN is not built.",
        ]:
            self.assertIn(line, report)
        self.assertNotIn("name is not the adapter's", report)

    def test_what_cannot_run_says_why(self):
        status, said, _ = self.check(STAND_IN="portable old", PYTHONPATH=self.no_torch())
        self.assertEqual(status, 0, said)
        report = self.read("the report", "report.md")
        self.assertIn("| golden cases, subgroup, f32 | skipped | 0 | 0 | no subgroup tier on this adapter |", report)
        self.assertIn("| first uses | skipped |", report)
        self.assertRegex(report, r"PyTorch attention \| skipped \|.*there is no torch here")
        self.assertRegex(report, r"Not measured: skipped, no torch for .*there is no torch here")
        self.assertTrue(said.endswith("0 failed, 0 cut, 4 skipped\n"), said)

    def test_without_a_gpu_nothing_runs_unless_asked(self):
        for wrong, why in [("none", "no adapter at all"), ("soft", "no GPU: the only adapter is soft, ")]:
            status, said, _ = self.check(STAND_IN=wrong)
            self.assertEqual(status, 0, said)
            self.assertIn(why, said)
            self.assertNotIn("## Benches", said)
        status, said, _ = self.check("--any", STAND_IN="soft", PYTHONPATH=self.no_torch())
        self.assertEqual(status, 0, said)
        self.assertIn("judged with the kernels of GPUs", said)
        self.assertIn("| PyTorch attention | skipped | 0 | 0 | the adapter is no GPU |", said)
        # a GPU that is not the first choice is taken, and named to every part
        status, said, _ = self.check(STAND_IN="second", PYTHONPATH=self.no_torch())
        self.assertEqual((status, "# GPU check: Voodoo 2" in said), (0, True), said)

    def test_failures_fail(self):
        status, said, _ = self.check(STAND_IN="fail crash", PYTHONPATH=self.no_torch())
        self.assertEqual(status, 1, said)
        report = self.read("the report", "report.md")
        self.assertRegex(report, r"golden cases, portable, f16 \| \*\*FAILED\*\* \|.*1 passed, 1 failed, 0 skipped")
        self.assertIn("FAIL b_case: off by one", report)
        self.assertRegex(report, r"bench fft, f32 \| \*\*FAILED\*\* \|.*crashed, signal 6")
        self.assertTrue(said.endswith("3 failed, 0 cut, 1 skipped\n"), said)

    def test_a_part_has_its_share_of_time(self):
        status, said, _ = self.check(STAND_IN="hang", GPU_CHECK_SECONDS="14", PYTHONPATH=self.no_torch())
        self.assertEqual(status, 0, said)
        report = self.read("the report", "report.md")
        self.assertRegex(report, r"random problems, f32 \| cut \| .* \| 1 passed, 0 failed, 0 skipped until it was cut")
        self.assertIn("| bench fft, f32 | ok |", report)

    def test_timings_of_a_torch(self):
        for lib, adapter, same in [(self.torch(), "Voodoo 2 (vulkan)", True), (self.torch(), "Banshee", False)]:
            status, said, complaint = self.run_it(
                [sys.executable, TORCH, "--adapter", adapter, self.canned], PYTHONPATH=lib)
            self.assertEqual(status, 0, complaint)
            lines = [json.loads(line) for line in said.splitlines()]
            self.assertEqual((lines[0]["same_card"], lines[0]["device"]), (same, "Voodoo 2" if same else "Another"))
            self.assertEqual(len(lines), 1 + 2 * 5)
            math = [line for line in lines if line.get("backend") == "math"]
            self.assertAlmostEqual(math[0]["seconds"], 4e-3)
        status, said, _ = self.run_it([sys.executable, TORCH, self.canned], PYTHONPATH=self.no_torch())
        self.assertEqual((status, "skipped_all" in said), (0, True), said)

    def test_reports_of_half_a_run(self):
        self.file("half/facts.tsv", "adapter\tVoodoo 2, discrete GPU; glide\n")
        self.file("half/parts.tsv", "bench attention, f32\tok\t3\t9\t\nPyTorch attention\tcut\t9\t9\tafter 9 s\n")
        self.file("half/bench-attention-f32.json", json.dumps(canned()))
        about = {"torch": "1", "cuda": "1", "hip": None, "device": "x", "same_card": False, "clock": "c", "launch": 1e-5}
        line = {"shape": CAUSAL, "dtype": "f32", "backend": "math", "seconds": 1e-3}
        self.file("half/torch.jsonl", json.dumps(about) + "\n" + json.dumps(line) + "\n{\"shape\": ")
        status, _, complaint = self.run_it([sys.executable, REPORT, "write", os.path.join(self.dir, "half")])
        self.assertEqual(status, 0, complaint)
        report = self.read("half", "report.md")
        self.assertIn("| f32 | 2 ms | 1 ms (0.50) | 0.50 |", report)
        self.assertIn("not timed [", report)
        self.assertIn("whose name is not the adapter's", report)
        self.file("half/bench-fft-f32.json", '{"schema": 2}')
        status, _, complaint = self.run_it([sys.executable, REPORT, "write", os.path.join(self.dir, "half")])
        self.assertEqual((status, "expected schema 1" in complaint), (1, True), complaint)


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    bad = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - bad - len(result.skipped)} passed, {bad} failed, {len(result.skipped)} skipped")
    sys.exit(bad > 0)
