//! No device: every kernel file is valid WGSL as it stands, and passes the uniformity lint; what the
//! lint and the race check accept and refuse.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common {
    pub(crate) mod races;
    pub(crate) mod reflect;
    pub(crate) mod uniformity;
}

use std::{fs, path::Path};

use common::{
    races::races,
    reflect::struct_layout,
    uniformity::{Report, check, check_source},
};

/// All files under shaders/ with the given extension, as `(path from shaders/, text)`, sorted.
fn shader_files() -> Vec<(String, String)> {
    fn visit(dir: &Path, root: &Path, out: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, root, out);
            } else if path.extension().is_some_and(|e| e == "wgsl") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                out.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut out = Vec::new();
    visit(&root, &root, &mut out);
    out.sort();
    out
}

/// Kernel files, each with all lib files appended.
fn kernels() -> Vec<(String, String)> {
    let files = shader_files();
    let lib: String = files
        .iter()
        .filter(|(name, _)| name.starts_with("lib/"))
        .map(|(_, text)| format!("\n{text}"))
        .collect();
    // a part is valid within the kernels that include it, in their order
    let part = |name: &str| {
        files.iter().any(|(_, text)| text.lines().any(|l| l == format!("// @include {name}")))
    };
    files
        .iter()
        .filter(|(name, _)| !name.starts_with("lib/") && !part(name))
        .map(|(name, text)| (name.clone(), first_parts(&included(text)) + &lib))
        .collect()
}

/// The text with the files that it includes.
fn included(text: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let line = |line: &str| match line.strip_prefix("// @include ") {
        Some(path) => fs::read_to_string(root.join(path)).unwrap(),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// The text without the `@else` parts of its `@if` blocks: what a file means as it stands.
fn first_parts(text: &str) -> String {
    // for each open block, whether its second part has begun
    let mut open: Vec<bool> = Vec::new();
    let mut out = String::new();
    for line in text.lines() {
        match line.trim() {
            "// @else" => *open.last_mut().unwrap() = true,
            "// @end" => {
                open.pop().unwrap();
            }
            mark => {
                if ["// @if ", "// @unroll ", "// @generate "].iter().any(|m| mark.starts_with(m)) {
                    open.push(false);
                }
            }
        }
        if !open.contains(&true) {
            out.push_str(line);
        }
        out.push('\n');
    }
    assert!(open.is_empty(), "a block is not closed");
    out
}

#[test]
fn every_file_is_valid_and_uniform() {
    let mut faults = Vec::new();
    for (name, text) in kernels() {
        match check_source(&text) {
            Err(message) => faults.push(format!("{name}: {message}")),
            Ok(Report { barriers, subgroups }) => {
                faults.extend(barriers.union(&subgroups).map(|f| format!("{name}: {f}")));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_lib_file_is_valid_alone() {
    for (name, text) in shader_files().iter().filter(|(name, _)| name.starts_with("lib/")) {
        if let Err(message) = check_source(text) {
            panic!("{name}: {message}");
        }
    }
}

const PREAMBLE: &str = "
    struct Params { count: u32, rows: u32, table: array<vec4<u32>, 4> }
    @group(0) @binding(0) var<uniform> params: Params;
    @group(0) @binding(1) var<storage, read> src: array<u32>;
    @group(0) @binding(2) var<storage, read_write> dst: array<u32>;
    var<workgroup> tile: array<u32, 64>;
    var<private> counter: u32;
    override STEPS: u32 = 4u;
    const CAUSAL: bool = false;
    fn sync() { workgroupBarrier(); }
    fn sync_and_half(x: u32) -> u32 { workgroupBarrier(); return x / 2u; }
    fn early(x: u32) -> u32 { if x > 3u { return 1u; } return 2u; }
    fn put(p: ptr<function, u32>, x: u32) { *p = x; }
";

/// `body` in a kernel whose ids go by the names that the lists below use.
fn kernel(body: &str) -> String {
    let builtins = [
        "@builtin(workgroup_id) wid: vec3<u32>",
        "@builtin(num_workgroups) groups: vec3<u32>",
        "@builtin(local_invocation_index) lid: u32",
        "@builtin(global_invocation_id) gid: vec3<u32>",
        "@builtin(subgroup_id) sid: u32",
        "@builtin(subgroup_invocation_id) lane: u32",
    ]
    .join(", ");
    format!("{PREAMBLE} @compute @workgroup_size(64) fn main({builtins}) {{ {body} }}")
}

fn lint(body: &str) -> Report {
    check_source(&kernel(body)).unwrap_or_else(|e| panic!("{body}: {e}"))
}

#[test]
fn lint_rejects_barriers_that_some_may_miss() {
    for body in [
        // under a condition on an id
        "if lid < 4u { workgroupBarrier(); }",
        "if gid.x < params.count { storageBarrier(); }",
        "if lane == 0u { workgroupBarrier(); }",
        // agreed within a subgroup is not enough
        "if sid == 0u { workgroupBarrier(); }",
        "let x = subgroupBroadcastFirst(lid); if x == 0u { workgroupBarrier(); }",
        "let x = subgroupAdd(lid); if x == 0u { workgroupBarrier(); }",
        // in the else branch, and in a switch
        "if lid < 4u { dst[lid] = 1u; } else { workgroupBarrier(); }",
        "switch lid { case 1u: { workgroupBarrier(); } default: {} }",
        // after a return that some take
        "if lid >= params.rows { return; } workgroupBarrier();",
        "if params.count > 3u { if lid >= params.rows { return; } } workgroupBarrier();",
        "for (var i = 0u; i < 4u; i++) { if lid == i { return; } } workgroupBarrier();",
        // in a loop that some leave early
        "for (var i = 0u; i < lid; i++) { workgroupBarrier(); }",
        "for (var i = lid; i < params.count; i += 64u) { workgroupBarrier(); }",
        "for (var i = 0u; i < params.count; i++) { if i + lid > 7u { break; } workgroupBarrier(); }",
        // the barrier stands before the break: the second iteration is the fault
        "for (var i = 0u; i < params.count; i++) { workgroupBarrier(); if i + lid > 7u { break; } }",
        "for (var i = 0u; i < params.count; i++) { if i + lid > 7u { continue; } workgroupBarrier(); }",
        "loop { workgroupBarrier(); continuing { break if lid > 3u; } }",
        "loop { if src[lid] == 0u { break; } loop { workgroupBarrier(); break; } }",
        // through a variable: by value, by control flow, by a loop that ends at different times
        "var x = 0u; x = lid; if x == 0u { workgroupBarrier(); }",
        "var x = 0u; if lid < 4u { x = 1u; } if x == 0u { workgroupBarrier(); }",
        "var n = 0u; loop { n += 1u; if n > lid { break; } } if n > 3u { workgroupBarrier(); }",
        "var a: array<u32, 4>; a[lid & 3u] = 1u; if a[0] == 0u { workgroupBarrier(); }",
        "var a: array<u32, 4>; if a[lid & 3u] == 0u { workgroupBarrier(); }",
        "var x = 0u; var y = 0u; for (var i = 0u; i < 3u; i++) { x = y; y = lid; } if x == 0u { workgroupBarrier(); }",
        "counter = lid; if counter == 0u { workgroupBarrier(); }",
        "var x = 0u; put(&x, lid); if x == 0u { workgroupBarrier(); }",
        // from memory that others write
        "if tile[0] == 0u { workgroupBarrier(); }",
        "if dst[0] == 0u { workgroupBarrier(); }",
        "if src[lid] == 0u { workgroupBarrier(); }",
        // inside a function
        "if lid < 4u { sync(); }",
        "if lid < 4u { dst[0] = sync_and_half(1u); }",
        "if sync_and_half(lid) > 1u { workgroupBarrier(); }",
        "if early(lid) == 1u { workgroupBarrier(); }",
        // the same function called well, then badly
        "sync(); if lid < 4u { sync(); }",
        // a load that is a barrier
        "if lid < 4u { dst[lid] = workgroupUniformLoad(&tile[0]); }",
        "dst[lid] = workgroupUniformLoad(&tile[lid]);",
        // both operands of a short circuit count
        "if params.count > 3u && lid < 4u { workgroupBarrier(); }",
        "if select(0u, lid, params.count > 3u) == 0u { workgroupBarrier(); }",
    ] {
        let report = lint(body);
        assert!(!report.barriers.is_empty(), "accepted: {body}");
    }
}

#[test]
fn lint_accepts_barriers_that_all_reach() {
    for body in [
        "workgroupBarrier();",
        "if params.count > 3u { workgroupBarrier(); }",
        "if STEPS > 3u { workgroupBarrier(); } if CAUSAL { workgroupBarrier(); }",
        "if wid.x >= params.count { return; } workgroupBarrier();",
        "if wid.x + groups.x * wid.y >= params.count { return; } for (var i = 0u; i < 4u; i++) { workgroupBarrier(); }",
        "for (var i = 0u; i < params.count; i++) { workgroupBarrier(); tile[lid] = i; workgroupBarrier(); }",
        "var i = 0u; while i < params.table[wid.x & 3u].y { workgroupBarrier(); i += STEPS; }",
        // read-only memory at a uniform place is the same for all
        "for (var i = src[wid.x]; i < src[wid.x + 1u]; i++) { workgroupBarrier(); }",
        "let n = min(arrayLength(&src), params.rows); for (var i = 0u; i < n; i++) { workgroupBarrier(); }",
        // what some do in between does not matter once they are back
        "if lid < 4u { dst[lid] = 1u; } workgroupBarrier();",
        "for (var i = lid; i < 64u; i += 7u) { tile[i] = 1u; } workgroupBarrier();",
        "for (var i = 0u; i < 4u; i++) { for (var j = 0u; j < lid; j++) { tile[j] = i; } workgroupBarrier(); }",
        "for (var i = 0u; i < 4u; i++) { for (var j = 0u; j < 9u; j++) { if j > lid { break; } } workgroupBarrier(); }",
        "switch lid { case 1u: { if lane == 3u { break; } dst[0] = 1u; } default: {} } workgroupBarrier();",
        // a uniform break
        "for (var i = 0u; i < 4u; i++) { if i > params.rows { break; } workgroupBarrier(); }",
        "loop { workgroupBarrier(); counter += 1u; if counter > params.rows { break; } }",
        // functions
        "sync(); if sync_and_half(params.count) > 1u { sync(); }",
        "let x = early(lid); dst[lid] = x; workgroupBarrier();",
        "if early(params.count) == 1u { workgroupBarrier(); }",
        "var x = 0u; put(&x, params.rows); if x == 0u { workgroupBarrier(); }",
        "var x = 0u; var y = 0u; put(&x, lid); put(&y, 1u); if y == 0u { workgroupBarrier(); }",
        "if workgroupUniformLoad(&tile[0]) == 0u { workgroupBarrier(); }",
        "var a: array<u32, 4>; a[1] = params.count; if a[wid.x & 3u] == 0u { workgroupBarrier(); }",
    ] {
        let report = lint(body);
        assert!(report.barriers.is_empty(), "rejected: {body}: {:?}", report.barriers);
        assert!(report.subgroups.is_empty(), "rejected: {body}: {:?}", report.subgroups);
    }
}

#[test]
fn lint_reports_subgroup_operations_apart() {
    for body in [
        "if lid < 4u { dst[lid] = subgroupAdd(lid); }",
        "if gid.x >= params.count { return; } dst[lid] = subgroupMax(lid);",
        "for (var i = 0u; i < lid; i++) { dst[i] = subgroupBroadcast(i, 0u); }",
        "if lane < 4u { dst[lid] = subgroupShuffle(lid, 0u); }",
        "if subgroupInclusiveAdd(1u) > 3u { dst[0] = subgroupBallot(true).x; }",
        "if subgroupShuffleXor(lid, 1u) > 3u { dst[0] = subgroupBroadcastFirst(lid); }",
    ] {
        let report = lint(body);
        assert!(!report.subgroups.is_empty(), "accepted: {body}");
        assert!(report.barriers.is_empty(), "no barrier here: {body}: {:?}", report.barriers);
    }
    for body in [
        "if params.count > 3u { dst[lid] = subgroupAdd(lid); }",
        "if sid < 2u { dst[lid] = subgroupAdd(lid); }",
        "let n = subgroupMax(lid); for (var i = 0u; i < n; i++) { dst[i] = subgroupBroadcast(lid, 0u); }",
        "var n = subgroupBroadcastFirst(lid); while n > 0u { n -= 1u; dst[n] = subgroupShuffle(lid, n & 3u); }",
        "if subgroupShuffle(lid, 1u) > 3u { dst[0] = subgroupBallot(true).x; }",
    ] {
        let report = lint(body);
        assert!(report.subgroups.is_empty(), "rejected: {body}: {:?}", report.subgroups);
    }
}

#[test]
fn lint_names_the_function_and_line() {
    let source = "@compute @workgroup_size(64)\n\
                  fn sweep(@builtin(local_invocation_index) lid: u32) {\n\
                  if lid < 4u {\n\
                  workgroupBarrier();\n\
                  } }";
    let report = check_source(source).unwrap();
    let found: Vec<_> = report.barriers.into_iter().collect();
    assert_eq!(found, ["sweep line 4: a barrier in non-uniform control flow"]);

    let module = naga::front::wgsl::parse_str(source).unwrap();
    let info = naga::valid::Validator::new(
        naga::valid::ValidationFlags::all(),
        naga::valid::Capabilities::all(),
    )
    .validate(&module)
    .unwrap();
    assert_eq!(check(&module, &info), ["sweep: a barrier in non-uniform control flow"]);
}

/// What the race check finds in a workgroup of 64 that is given `count` 100 and `rows` 37.
fn race(body: &str) -> Result<Vec<String>, String> {
    let source = format!(
        "struct Params {{ count: u32, rows: u32, shift: vec2<i32> }}
        @group(0) @binding(0) var<uniform> params: Params;
        @group(0) @binding(1) var<storage, read_write> data: array<f32>;
        const CELLS: u32 = 64u;
        var<workgroup> tile: array<f32, CELLS>;
        var<workgroup> wide: array<vec4<f32>, CELLS * 2u>;
        var<workgroup> deep: array<array<array<f32, 4>, 2>, 8>;
        fn put(i: u32, x: f32) {{ if i < CELLS {{ tile[i] = x; }} }}
        fn fetch(i: u32) -> f32 {{ return tile[min(i, CELLS - 1u)]; }}
        @compute @workgroup_size(8, 8)
        fn main(
            @builtin(workgroup_id) wid: vec3<u32>,
            @builtin(local_invocation_index) lid: u32,
            @builtin(local_invocation_id) at: vec3<u32>,
        ) {{ {body} }}"
    );
    let params: Vec<u8> = [100u32, 37, 1, u32::MAX].iter().flat_map(|x| x.to_le_bytes()).collect();
    races(&source, &params, [3, 1, 1], [1, 0, 0]).map(|found| found.into_iter().collect())
}

#[test]
fn race_check_refuses_what_needs_a_barrier() {
    for (body, says) in [
        ("tile[lid] = 1.0; data[lid] = tile[63u - lid];", "written at line"),
        ("tile[lid] = 1.0; data[lid] = tile[(lid + 1u) % CELLS];", "written at line"),
        // read by others, then written
        (
            "tile[lid] = 1.0; workgroupBarrier(); data[lid] = tile[63u - lid]; tile[lid] = 2.0;",
            "is read at line",
        ),
        // written by two
        ("tile[lid / 2u] = 1.0;", "written at line"),
        ("tile[0] = 1.0;", "written at line"),
        // the next trip of a loop writes what this one reads
        (
            "for (var t = 0u; t < params.count; t += CELLS) {
                tile[lid] = 1.0; workgroupBarrier(); data[lid] = tile[63u - lid]; }",
            "is read at line",
        ),
        (
            "for (var t = 0u; t < 3u; t++) {
                workgroupBarrier(); tile[lid] = 1.0; for (var i = 0u; i < CELLS; i++) { data[lid] += tile[i]; } }",
            "written at line",
        ),
        // by way of functions, vectors, components and two-dimensional ids
        ("put(lid, 1.0); data[lid] = fetch(lid + 1u);", "written at line"),
        ("wide[at.y * 8u + at.x].x = 1.0; data[lid] = wide[at.x * 8u + at.y].y;", "written at line"),
        ("wide[u32(i32(lid) + params.shift.x)] = vec4<f32>(); data[lid] = wide[lid + 2u].x;", "written at line"),
        (
            "deep[lid / 8u][lid & 1u][lid / 2u & 3u] = 1.0; data[lid] = deep[lid & 7u][0][lid / 16u];",
            "written at line",
        ),
        ("deep[lid / 8u][lid & 1u][lid / 2u & 1u] = 1.0;", "written at line"),
        ("deep[lid / 8u][lid & 1u][(lid / 2u & 3u) + 1u] = 1.0;", "past its end"),
        // a barrier on one side of a branch that all take together is one, on the other none
        (
            "tile[lid] = 1.0; if params.count < 100u { workgroupBarrier(); } data[lid] = tile[63u - lid];",
            "written at line",
        ),
        // where it depends on data, both sides count
        ("tile[lid] = 1.0; if data[0] > 0.5 { data[lid] = tile[63u - lid]; }", "written at line"),
        ("if data[lid] > 0.5 { tile[63u - lid] = 1.0; } else { tile[lid] = 1.0; }", "written at line"),
        // the tail
        ("for (var i = lid; i <= CELLS; i += 64u) { tile[i] = 1.0; }", "past its end"),
        ("if lid < params.rows { tile[lid] = 1.0; } workgroupBarrier(); data[lid] = tile[lid];", "before it is written"),
        ("tile[lid + params.rows - wid.x * 36u] = 1.0;", "past its end"),
        ("switch params.rows { case 37u, 38u: { tile[0] = 1.0; } default: {} }", "written at line"),
    ] {
        let found = race(body).unwrap_or_else(|e| panic!("{body}: {e}"));
        assert!(found.iter().any(|f| f.contains(says)), "{body}: {found:?}");
    }
}

#[test]
fn race_check_accepts_what_needs_no_barrier() {
    for body in [
        "tile[lid] = 1.0; workgroupBarrier(); data[lid] = tile[63u - lid];",
        // each invocation its own
        "tile[lid] = 1.0; data[lid] = tile[lid]; tile[lid] *= 2.0;",
        "for (var i = lid; i < CELLS * 2u; i += 64u) { wide[i] = vec4<f32>(); wide[i] += 1.0; }",
        "for (var t = 0u; t < params.count; t += CELLS) {
            workgroupBarrier(); tile[lid] = 1.0; workgroupBarrier(); data[lid] = tile[63u - lid]; }",
        "deep[lid / 8u][lid & 1u][lid / 2u & 3u] = 1.0; data[lid] = deep[lid / 8u][lid & 1u][lid / 2u & 3u];",
        // one writes, all read
        "if lid == 0u { tile[5] = 1.0; } workgroupBarrier(); data[lid] = tile[5] + tile[5];",
        "if params.rows == 37u { tile[lid] = 1.0; workgroupBarrier(); } data[lid] = tile[63u - lid];",
        "if lid < 32u { tile[lid] = 1.0; } else { tile[lid] = 2.0; } workgroupBarrier(); data[lid] = fetch(lid + 1u);",
        "put(lid + params.rows, 1.0);",
        // who has left takes no part
        "if lid > 0u { return; } tile[0] = 1.0; tile[1] = tile[0];",
        "for (var i = 0u; i < CELLS; i++) { if i != lid { continue; } tile[i] = 1.0; break; }",
        "switch lid { case 1u: { tile[1] = 1.0; } case 2u: { tile[2] = 1.0; } default: {} }",
        "tile[lid] = 1.0; data[lid] = workgroupUniformLoad(&tile[3]);",
        "tile[lid] = select(data[lid], 2.0, data[lid] > 1.0); if data[lid] > 0.5 { tile[lid] = 0.0; }",
    ] {
        assert_eq!(race(body), Ok(Vec::new()), "{body}");
    }
}

#[test]
fn race_check_says_what_it_cannot_follow() {
    for (body, says) in [
        ("for (var i = 0.0; i < data[0]; i += 1.0) { tile[lid] = i; }", "a loop on data"),
        ("tile[u32(data[0])] = 1.0;", "depends on data"),
        ("loop { tile[lid] = 1.0; if params.rows == 0u { break; } }", "a loop without end"),
    ] {
        let error = race(body).unwrap_err();
        assert!(error.contains(says), "{body}: {error}");
    }
    assert!(races("fn", &[], [1; 3], [0; 3]).is_err());
}

#[test]
fn struct_layout_reports_offsets_and_sizes() {
    let module = naga::front::wgsl::parse_str(
        "struct Params { a: vec4<u32>, b: u32, c: vec3<f32>, d: f32, e: array<vec4<u32>, 2> }
         @group(0) @binding(0) var<uniform> params: Params;",
    )
    .unwrap();
    let got = struct_layout(&module, "Params");
    let got: Vec<_> = got.iter().map(|(n, o, s)| (n.as_str(), *o, *s)).collect();
    assert_eq!(
        got,
        [("a", 0, 16), ("b", 16, 4), ("c", 32, 12), ("d", 44, 4), ("e", 48, 32), ("", 80, 0)]
    );
    assert!(struct_layout(&module, "Absent").is_empty());
}
