#!/usr/bin/env python3
"""The report of scripts/gpu-check.sh, out of the files that it left in a folder.

    scripts/gpu_check_report.py pick DEVICES.json   # the adapter to check, for the script
    scripts/gpu_check_report.py write DIR           # DIR/report.md

DIR holds facts.tsv (name, value), parts.tsv (name, outcome, seconds, limit, what), and what there is of
bench-*.json, torch.jsonl and logs/*.log. Needs no packages.
"""

import glob
import json
import os
import sys

SOFTWARE = "software on the CPU"
BACKENDS = ["default", "flash", "efficient", "cudnn", "math"]


def pick(path):
    """Kind, whether it is tilewise's own choice, name, tier, and a line about it, between tabs."""
    with open(path, encoding="utf-8") as file:
        devices = [d for d in json.load(file) if "name" in d]
    if not devices:
        return "none"
    # its own choice if that is a GPU, else the first GPU, else its own choice
    devices.sort(key=lambda d: (d["type"] == SOFTWARE, not d["default"]))
    d = devices[0]
    driver = " ".join(x for x in (d["driver"], d["driver_info"]) if x)
    subgroups = f"subgroups of {d['subgroup_min']} to {d['subgroup_max']}" if d.get("subgroup_min") else "no subgroups"
    line = f"{d['name']}, {d['type']}; {d['backend']}, {driver or 'driver without a name'}; {subgroups}, f16 arithmetic {'yes' if d['f16'] else 'no'}"
    kind = "cpu" if d["type"] == SOFTWARE else "gpu"
    return "\t".join((kind, "yes" if d["default"] else "no", d["name"], d["tier"], line))


def span(seconds):
    """A time in the unit that suits it."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def rate(x, unit):
    if x is None:
        return "none"
    return f"{x * 1e-12:.3g} T{unit}" if x >= 1e12 else f"{x * 1e-9:.3g} G{unit}"


def cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(heads, rows):
    """Lines of a table; a head that ends in a colon is of numbers."""
    lines = ["| " + " | ".join(h.rstrip(":") for h in heads) + " |",
             "|" + "|".join("---:" if h.endswith(":") else "---" for h in heads) + "|"]
    return lines + ["| " + " | ".join(cell(c) for c in row) + " |" for row in rows]


def records(path, fields):
    """Lines of a file with tabs; none if there is no file."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        rows = [line.rstrip("\n").split("\t", fields - 1) for line in file if line.strip()]
    return [row + [""] * (fields - len(row)) for row in rows]


def benches(folder):
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "bench-*.json"))):
        try:
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
        except ValueError:
            sys.exit(f"gpu_check_report: {path} is not JSON")
        if report.get("schema") != 1:
            sys.exit(f"gpu_check_report: {path}: expected schema 1 of tilewise bench, got {report.get('schema')}")
        found.append(report)
    # f32 first, then in the order of the program's list
    order = ["attention", "linear", "neighborhood", "gaunt", "fft"]
    def key(report):
        first = report["results"][0] if report["results"] else {"dtype": "", "op": ""}
        return first["dtype"] != "f32", order.index(first["op"]) if first["op"] in order else 9
    return sorted(found, key=key)


def torch_lines(folder):
    """The line about the place, and the timings by problem, type and backend."""
    path = os.path.join(folder, "torch.jsonl")
    if not os.path.exists(path):
        return None, {}
    about, found = None, {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                fields = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was cut
            if "backend" in fields:
                found[fields["shape"], fields["dtype"], fields["backend"]] = fields
            elif "torch" in fields:
                about = fields
    return about, found


def bench_part(reports):
    lines = ["", "## Benches", ""]
    if not reports:
        return lines + ["No bench ended: see the parts."]
    lines += ["Share: the time that the binding ceiling allows over the time measured, ceilings measured in the same "
              "process; more than 100 % comes out of caches. First use: planned, compiled, tensors made and uploaded, run "
              "once; compiling: what that took beyond the same again.", ""]
    rows, ceilings = [], []
    for report in reports:
        for r in report["results"]:
            first, again = r.get("first_use"), r.get("second_use")
            rows.append((r["op"], r["shape"].replace(",", ", "), r["dtype"], span(r["seconds"]),
                         f"{span(r['low'])} to {span(r['high'])}",
                         f"{100 * r['fraction']:.1f} % of {r['bound'].replace('_', '-')}",
                         "-" if first is None else span(first),
                         "-" if first is None or again is None else span(max(first - again, 0))))
        c = report["ceilings"]
        name = " ".join((report["results"][0]["op"], report["results"][0]["dtype"])) if report["results"] else "?"
        ceilings.append((name, rate(c["multiply_add_f32"], "flop/s"), rate(c["multiply_add_f16"], "flop/s"),
                         rate(c["copy"], "B/s"), rate(c["workgroup_memory"], "B/s"), span(c["dispatch"])))
    lines += table(["operator", "problem", "type", "time:", "fastest to slowest:", "share of ceiling:", "first use:",
                    "compiling:"], rows)
    clocks = sorted({r["clock"] for report in reports for r in report["results"]})
    kernels = sorted({f"{report['device']['tier']} kernels" +
                      (f" for a {report['device']['class'].upper()}" if report["device"].get("class") else "")
                      for report in reports})
    tuned = "tuned tiles" if any(report["tuned"] for report in reports) else "the planner's tiles"
    lines += ["", f"{', '.join(kernels)}; {tuned}; {', '.join(clocks)}. Ceilings:", ""]
    return lines + table(["bench", "multiply-add f32:", "f16:", "copy:", "workgroup memory:", "empty dispatch:"], ceilings)


def torch_part(reports, about, found, why):
    lines = ["", "## Attention beside PyTorch", ""]
    cases = [r for report in reports for r in report["results"] if r["op"] == "attention"]
    if about is None or not found:
        return lines + [f"Not measured: {why or 'the part did not run'}."]
    version = f"CUDA {about['cuda']}" if about.get("cuda") else f"ROCm {about['hip']}" if about.get("hip") else "no CUDA"
    lines.append(
        f"torch {about['torch']}, {version}, on {about['device']}"
        + ("" if about["same_card"] else ", **whose name is not the adapter's**")
        + f", {about['clock']}. scaled_dot_product_attention, called from Python back to back; an addition to one "
        f"number takes {span(about['launch'])} so, and no call less: near that the host is timed, not the card. \"default\" is the backend that "
        "PyTorch chooses itself; f32 without TF32. In brackets PyTorch's time over tilewise's: above 1 tilewise is the faster.")
    lines.append("")
    shown = [b for b in BACKENDS if any(key[2] == b and "seconds" in f for key, f in found.items())]
    rows, notes = [], {}

    def note(text):
        return f"[{notes.setdefault(text, len(notes) + 1)}]"
    for r in cases:
        row = [r["shape"].replace(",", ", "), r["dtype"], span(r["seconds"])]
        best = []
        for backend in BACKENDS:
            fields = found.get((r["shape"], r["dtype"], backend))
            if fields is None:
                text = "not timed " + note("no line of this problem: the part was cut, or failed")
            elif "seconds" not in fields:
                text = "- " + note(fields["skipped"])
            else:
                best.append(fields["seconds"])
                text = f"{span(fields['seconds'])} ({fields['seconds'] / r['seconds']:.2f})"
                if "note" in fields:
                    text += " " + note(fields["note"])
            if backend in shown:
                row.append(text)
        row.append(f"{min(best) / r['seconds']:.2f}" if best else "-")
        rows.append(row)
    lines += table(["problem", "type", "tilewise:"] + [f"{b}:" for b in shown] + ["fastest / tilewise:"], rows)
    if notes:
        lines.append("")
        lines += [f"- [{n}] {text}" for text, n in notes.items()]
    return lines


def failures(folder):
    """Lines of wrong results, with the command that repeats a random one, of every log."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "logs", "*.log"))):
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip() for line in file]
        wrong = [line for line in lines if line.startswith(("FAIL ", "error", "  tilewise ")) or "panicked" in line]
        if wrong:
            found += [f"{os.path.basename(path)}:"] + wrong[:20]
            if len(wrong) > 20:
                found.append(f"... and {len(wrong) - 20} lines more")
    return found


def write(folder):
    facts = records(os.path.join(folder, "facts.tsv"), 2)
    parts = records(os.path.join(folder, "parts.tsv"), 5)
    reports = benches(folder)
    about, found = torch_lines(folder)
    known = dict(facts)
    # without its kind and its driver
    name = known["adapter"].split("; ")[0].rsplit(", ", 1)[0] if "adapter" in known else "no adapter"
    lines = [f"# GPU check: {name}", ""]
    lines += table(["", ""], facts)
    count = {word: sum(1 for p in parts if p[1] == word) for word in ("ok", "FAILED", "cut", "skipped")}
    lines += ["", "## Parts", "",
              f"{count['ok']} ok, {count['FAILED']} failed, {count['cut']} cut, {count['skipped']} skipped.", ""]
    lines += table(["part", "outcome", "seconds:", "of at most:", ""],
                   [(p[0], f"**{p[1]}**" if p[1] == "FAILED" else p[1], p[2], p[3], p[4]) for p in parts])
    wrong = failures(folder) if count["FAILED"] else []
    if wrong:
        lines += ["", "## Failures", "", "```text", *wrong, "```"]
    if "adapter" in known:
        why = next((f"{p[1]}, {p[4]}" for p in parts if p[0] == "PyTorch attention"), "")
        lines += bench_part(reports) + torch_part(reports, about, found, why)
    with open(os.path.join(folder, "report.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("pick", "write"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    try:
        if sys.argv[1] == "pick":
            print(pick(sys.argv[2]))
        else:
            write(sys.argv[2])
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"gpu_check_report: {sys.argv[2]}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
