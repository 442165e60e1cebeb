#!/usr/bin/env bash
# Every WGSL text of the golden and random cases and of the benches, compiled by a browser's WebGPU
# (Tint), which is stricter than naga: subgroup operations and barriers in uniform control flow,
# constants that overflow. Headless Chromium on SwiftShader; no GPU, no network.
#
#   scripts/tint.sh [DIR]       DIR: texts that are there already, instead of the program's own
#
#   CHROMIUM=/path/to/chromium  the browser
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

browser=${CHROMIUM:-}
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if [ -z "$browser" ]; then browser=$(command -v "$name" || true); fi
done
if [ -z "$browser" ]; then
    echo "skipped: no chromium (set CHROMIUM)"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
if ! command -v python3 >/dev/null; then
    echo "skipped: no python3"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi

dir=${1:-}
if [ -z "$dir" ]; then
    dir=$work/wgsl
    tilewise=${TILEWISE:-${CARGO_TARGET_DIR:-target}/debug/tilewise}
    # both kinds of kernels, both kinds of elements; on every adapter, for kernels that read 64-bit words
    # are no WGSL and not among the texts
    for options in '--dtype f32' '--dtype f16' '--dtype f32 --tier portable'; do
        # shellcheck disable=SC2086
        "$tilewise" conformance --cases tests/golden --adapter all --random 2 $options --dump-wgsl "$dir" |
            tail -n 1
        # shellcheck disable=SC2086
        "$tilewise" bench all --tuning off $options --dump-wgsl "$dir" | tail -n 1
    done
    # what GPUs get, which need not be here: cut for large registers, and for what a browser tells
    for card in ada browser; do
        "$tilewise" bench attention --variants --as $card --dump-wgsl "$dir" | tail -n 1
        "$tilewise" bench all --as $card --dtype f16 --dump-wgsl "$dir" | tail -n 1
        "$tilewise" conformance --cases tests/golden --as $card --dump-wgsl "$dir" | tail -n 1
    done
fi
count=$(find "$dir" -name '*.wgsl' 2>/dev/null | wc -l)
if [ "$count" -eq 0 ]; then
    echo "no text to compile: no kernel was built"
    if [ "${TILEWISE_ALLOW_NO_GPU:-}" = 1 ]; then
        echo "0 passed, 0 failed, 1 skipped"
        exit 0
    fi
    exit 1
fi

BROWSER=$browser DIR=$dir WORK=$work python3 - <<'PYTHON'
import http.server, json, os, pathlib, subprocess, sys, threading

texts = {}
for path in sorted(pathlib.Path(os.environ["DIR"]).glob("*.wgsl")):
    texts[path.name] = path.read_text()

PAGE = """<!doctype html><title>tint</title><script type="module">
const say = (to, what) => fetch(to, {method: "POST", body: JSON.stringify(what)});
try {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Error("no WebGPU adapter");
  const wanted = ["subgroups", "shader-f16"].filter((f) => adapter.features.has(f));
  const big = {};
  for (const name of ["maxStorageBufferBindingSize", "maxBufferSize",
      "maxComputeWorkgroupStorageSize", "maxComputeInvocationsPerWorkgroup",
      "maxComputeWorkgroupSizeX", "maxStorageBuffersPerShaderStage"])
    big[name] = adapter.limits[name];
  const device = await adapter.requestDevice({requiredFeatures: wanted, requiredLimits: big});
  await say("/start", {features: wanted, agent: navigator.userAgent});
  const texts = await (await fetch("/texts")).json();
  for (const [name, code] of Object.entries(texts)) {
    device.pushErrorScope("validation");
    const module = device.createShaderModule({code});
    const info = await module.getCompilationInfo();
    const error = await device.popErrorScope();
    const messages = info.messages.map((m) => `${m.type}: ${m.lineNum}: ${m.message}`);
    if (error && !messages.some((m) => m.startsWith("error"))) messages.push("error: " + error.message);
    await say("/result", {name, messages});
  }
  await say("/end", {});
} catch (error) {
  await say("/end", {failure: String(error)});
}
</script>"""

results, state = {}, {}
started, done = threading.Event(), threading.Event()

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/texts":
            self.answer(json.dumps(texts).encode(), "application/json")
        elif self.path == "/":
            self.answer(PAGE.encode(), "text/html")
        else:
            self.answer(b"", "text/plain")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path == "/result":
            results[body["name"]] = body["messages"]
        else:
            state.update(body)
        self.answer(b"", "text/plain")
        started.set()
        if self.path == "/end":
            done.set()

# localhost is a secure context, which WebGPU asks for
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
browser = subprocess.Popen(
    [os.environ["BROWSER"], "--headless", "--no-sandbox", "--disable-gpu-sandbox",
     "--enable-unsafe-webgpu", "--enable-features=Vulkan,WebGPU",
     "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader", "--use-angle=swiftshader",
     "--ignore-gpu-blocklist", "--disable-background-networking", "--disable-component-update",
     "--disable-sync", "--no-first-run", f"--user-data-dir={os.environ['WORK']}/profile",
     f"http://localhost:{server.server_port}/"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    finished = started.wait(90) and done.wait(float(os.environ.get("TINT_SECONDS", "600")))
finally:
    browser.terminate()
    try:
        browser.wait(10)
    except subprocess.TimeoutExpired:
        browser.kill()
        browser.wait()

if not started.is_set() or state.get("failure") == "Error: no WebGPU adapter":
    print("skipped: the browser", "has no WebGPU adapter" if started.is_set() else "does not start here")
    print("0 passed, 0 failed, 1 skipped")
    sys.exit(0)
features = state.get("features", [])
print(state.get("agent", "no answer from the browser"), features)
passed = failed = skipped = 0
seen = {}
for name, text in texts.items():
    messages = results.get(name)
    # what the browser's device lacks says nothing of the text
    lacks = [f for f, word in [("shader-f16", "enable f16;"), ("subgroups", "enable subgroups;")]
             if word in text and f not in features]
    errors = [m for m in messages or [] if m.startswith("error")]
    if messages is None:
        failed += 1
        seen.setdefault("no answer", []).append(name)
    elif lacks:
        skipped += 1
    elif errors:
        failed += 1
        seen.setdefault(errors[0], []).append(name)
    else:
        passed += 1
        for m in messages:
            seen.setdefault(m, []).append(name)
for message, names in sorted(seen.items()):
    print(f"{len(names)} x {message} ({names[0]})")
if not finished or state.get("failure"):
    print("the browser did not finish:", state.get("failure", "out of time"))
    failed = max(failed, 1)
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(1 if failed else 0)
PYTHON
