//! The `tilewise` program as a user meets it: what it says and how it exits.
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn tilewise(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tilewise")).args(args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder of its own under the target folder, emptied.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("the target folder is writable");
    dir
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Runs a command that must fail without a panic, and returns what it said.
fn refused(args: &[&str]) -> String {
    let output = tilewise(args);
    let said = text(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?}: {said}", output.status);
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn mistakes_are_named() {
    let golden = golden();
    let golden = golden.to_str().expect("a plain path");
    let empty = folder("cli-empty");
    let empty = empty.to_str().expect("a plain path");
    let bench = folder("cli-bench-mistakes");
    let file = |name: &str, text: &str| {
        let path = bench.join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a plain path").to_string()
    };
    let (broken, foreign) =
        (file("broken.json", "{\"schema\": 1"), file("foreign.json", "{\"schema\": 99}"));
    let (broken, foreign) = (broken.as_str(), foreign.as_str());
    let table: [(&[&str], &str); 40] = [
        (&["conformance"], "--cases <DIR>"),
        (&["conformance", "--cases", golden, "--report", "a.txt"], "ends in .html or .json"),
        (&["conformance", "--cases", golden, "--poison=0"], "0 is not in 1..=4096"),
        (&["conformance", "--cases", golden, "--seed", "3"], "--random <N>"),
        (&["conformance", "--cases", golden, "--expected-failures", "no/such"], "error: no/such: "),
        (&["conformance", "--cases", "no/such"], "error: no/such: "),
        (&["conformance", "--cases", empty], "no .safetensors file"),
        (
            &["conformance", "--cases", golden, "--op", "sdp"],
            "no case has op \"sdp\"; there are: axial",
        ),
        (
            &["conformance", "--cases", golden, "--family", "x"],
            "no case has family \"x\"; there are: gaunt",
        ),
        (
            &["conformance", "--cases", golden, "--op", "sdpa", "--family", "gaunt"],
            "no case has both",
        ),
        (
            &["conformance", "--cases", golden, "--dtype", "f64"],
            "[possible values: f32, f16, bf16]",
        ),
        (
            &["conformance", "--cases", golden, "--tier", "fast"],
            "[possible values: portable, subgroup]",
        ),
        (&["conformance", "--cases", golden, "--as", "ada"], "--dump-wgsl <DIR>"),
        (&["bench", "fft", "--variants", "--as", "ada", "--dump-wgsl", empty], "is of attention"),
        (&["bench", "attention", "--variants"], "--as <CARD>"),
        (&["inspect", "attention"], "--shape"),
        (&["inspect", "all", "--shape", "seq=4"], "one operator"),
        (&["inspect", "fft", "--shape", "m=4"], "there is no key \"m\""),
        (&["inspect", "fft", "--shape", "n=64", "--as", "voodoo"], "no such card"),
        (
            &["bench", "fft", "--as", "voodoo", "--dump-wgsl", empty],
            "no such card; there are: rdna2 rdna3",
        ),
        (
            &["bench", "fft", "--as", "ada", "--dump-wgsl", empty, "--class", "cpu"],
            "cannot be used with",
        ),
        (&["devices", "--class", "tpu"], "[possible values: gpu, cpu]"),
        (&["demo", "--part", "paint"], "[possible values: denoise"),
        (&["bench", "gaunt", "--routes", "--lmax", "17"], "17 is not in 1..=16"),
        (&["bench", "fft", "--routes"], "--routes is of gaunt, not of fft"),
        (&["bench", "convolution"], "[possible values: attention, linear"),
        (&["bench", "--shape", "seq=64"], "--shape needs one operator"),
        (
            &["bench", "linear", "--shape", "length=64"],
            "there is no key \"length\"; keys are rule, batch, seq, heads, dim",
        ),
        (&["bench", "attention", "--shape", "seq=0"], "seq: expected numbers from 1 to 2^28"),
        (&["bench", "neighborhood", "--shape", "map=8x8,window=3"], "have the same 1 to 3 axes"),
        (&["bench", "fft", "--baseline", "no/such.json"], "error: --baseline no/such.json: "),
        (&["bench", "fft", "--baseline", broken], "not JSON"),
        (&["bench", "fft", "--baseline", foreign], "expected schema 1 of tilewise bench, got 99"),
        (&["bench", "fft", "--json", "no/such/place.json"], "error: no/such/place.json: "),
        (&["tune", "--op", "fft"], "fft has no tiles to choose"),
        (&["tune", "--op", "linear", "--shape", "seq=x"], "seq: expected numbers"),
        (&["simulate", "na", "--map", "56x56"], "--kernel <K[xK[xK]]>"),
        (&["simulate", "na", "--map", "8x8", "--kernel", "9"], "kernel_size[0]"),
        (&["simulate", "na", "--map", "8x8", "--kernel", "3x3x3"], "--kernel has 3 axes"),
        (&["simulate", "na", "--map", "8", "--kernel", "3", "--causal", "1"], "axes are 0..=0"),
    ];
    for (args, want) in table {
        let said = refused(args);
        assert!(said.contains(want), "{args:?}: wanted {want:?} in {said}");
    }
    for command in
        [&["devices"][..], &["demo"], &["conformance"], &["bench"], &["tune"], &["simulate", "na"]]
    {
        let help = tilewise(&[command, &["--help"]].concat());
        assert!(help.status.success());
        assert!(text(&help.stdout).contains("Examples:"), "{command:?}");
    }
}

/// Counts that can be done by hand: 56 x 56 queries with 49 keys each, in 4 heads.
#[test]
fn neighborhood_attention_is_simulated() {
    let output = tilewise(&[
        "simulate", "na", "--map", "56x56", "--kernel", "7x7", "--heads", "4", "--rows", "2",
    ]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let [full, useful] = ["39,337,984 scores", "614,656: at most 64.0 times"];
    assert!(said.contains(full) && said.contains(useful), "{said}");
    // one stride after another, to the window's size, where nothing is wasted
    let last = said.lines().rfind(|line| line.trim_start().starts_with("7x7 ")).expect("a row");
    assert!(last.contains("shared") && last.contains("614,656"), "{last}");
    assert!(said.lines().last().is_some_and(|l| l.starts_with("recommended: stride ")), "{said}");

    // blocks of 8 x 8 that see themselves: every score is useful
    let blocks = tilewise(&[
        "simulate", "na", "--map", "32x32", "--kernel", "8", "--stride", "8", "--class", "cpu",
        "--rows", "1",
    ]);
    let said = text(&blocks.stdout);
    let row: Vec<&str> =
        said.lines().nth(6).map(|line| line.split_whitespace().collect()).unwrap_or_default();
    assert_eq!(row.last(), Some(&"shared"), "{said}");
    assert!(row.contains(&"100.0%") && row.contains(&"65,536"), "{said}");
}

#[test]
fn an_unknown_adapter_is_answered_with_a_list() {
    let said = refused(&["devices", "--adapter", "no such adapter"]);
    assert!(said.contains("no adapter matches") || said.contains("no adapter found"), "{said}");
}

#[test]
fn a_broken_case_fails_by_name_and_the_others_still_count() {
    let dir = folder("cli-broken");
    let case = "na1d_reject_window_gt_extent.safetensors";
    let bytes = std::fs::read(golden().join(case)).expect("a golden case");
    std::fs::write(dir.join(case), &bytes).expect("written");
    std::fs::write(dir.join("cut.safetensors"), &bytes[..1000]).expect("written");
    let json = dir.join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_tilewise"))
        .env("TILEWISE_ALLOW_NO_GPU", "1")
        .arg("conformance")
        .arg("--cases")
        .arg(&dir)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("the program starts");
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cut.safetensors: not a safetensors file: header length"), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains(" passed, 1 failed, "), "{last}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json).expect("written")).expect("valid JSON");
    assert_eq!(report[0]["status"], "fail", "{report}");
}

#[test]
fn devices_are_listed_as_json() {
    let output = Command::new(env!("CARGO_BIN_EXE_tilewise"))
        .env("TILEWISE_ALLOW_NO_GPU", "1")
        .args(["devices", "--json"])
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    for device in list.as_array().expect("a list") {
        assert!(device["name"].is_string() && device["tier"].is_string(), "{device}");
        assert!(device["class"] == "gpu" || device["class"] == "cpu", "{device}");
    }
}

#[test]
fn gaunt_products_are_timed_and_drawn() {
    let dir = folder("cli-bench");
    let (json, plot) = (dir.join("gaunt.json"), dir.join("gaunt.svg"));
    let output = Command::new(env!("CARGO_BIN_EXE_tilewise"))
        .args(["bench", "gaunt", "--routes", "--lmax", "2", "--products", "100", "--samples", "1"])
        .arg("--json")
        .arg(&json)
        .arg("--plot")
        .arg(&plot)
        .output()
        .expect("the program starts");
    let said = text(&output.stderr);
    if said.contains("no adapter found") {
        let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
        assert!(allowed, "{said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let list: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json).expect("written")).expect("valid JSON");
    let list = list.as_array().expect("a list");
    assert!(list.len() >= 4, "{list:?}");
    for case in list {
        for route in ["table", "grid", "fourier"] {
            assert!(case["seconds"][route].as_f64().is_some_and(|s| s > 0.0), "{case}");
        }
    }
    let drawing = std::fs::read_to_string(plot).expect("written");
    assert!(drawing.contains("<svg") && drawing.contains("fourier"), "{drawing:.200}");
}

/// Runs a bench that needs a device; `None` without one, where that is allowed.
fn bench(args: &[&str]) -> Option<Output> {
    let output = tilewise(&[&["bench"], args].concat());
    let said = text(&output.stderr);
    if said.contains("no adapter found") {
        let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
        assert!(allowed, "{said}");
        return None;
    }
    Some(output)
}

#[test]
fn a_bench_leaves_a_report_that_a_later_one_is_compared_with() {
    let dir = folder("cli-bench-report");
    let path = |name: &str| dir.join(name).to_str().expect("a plain path").to_string();
    let (json, csv) = (path("old.json"), path("old.csv"));
    let shapes = ["--shape", "lmax=1,products=1000", "--shape", "lmax=2,products=1000"];
    let few = [&["gaunt", "--quick", "--samples", "2"][..], &shapes].concat();
    let place = dir.to_str().expect("a plain path");
    let Some(output) =
        bench(&[&few[..], &["--json", &json, "--csv", &csv, "--plot", place]].concat())
    else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    let read = |p: &str| std::fs::read_to_string(p).expect("written");
    let mut report: serde_json::Value = serde_json::from_str(&read(&json)).expect("valid JSON");
    assert_eq!(report["schema"], 1);
    for ceiling in ["multiply_add_f32", "copy", "workgroup_memory", "dispatch"] {
        assert!(report["ceilings"][ceiling].as_f64().is_some_and(|x| x > 0.0), "{ceiling}");
    }
    let (table, page) = (read(&csv), read(&path("tilewise-bench.html")));
    assert_eq!(table.lines().count(), 3, "{table}");
    let results = report["results"].as_array_mut().expect("a list");
    assert_eq!(results.len(), 2);
    for row in results {
        let shape = row["shape"].as_str().expect("a text");
        assert!(table.contains(&format!("gaunt,\"{shape}\",f32,")), "{table}");
        assert!(page.contains(&shape.replace(',', ", ")), "{shape}");
        let of = |key: &str| row[key].as_f64().expect("a number");
        assert!(0.0 < of("low") && of("low") <= of("seconds") && of("seconds") <= of("high"));
        assert!(of("fraction") > 0.0 && of("error") < 1e-5, "{row}");
        // as if the machine had been a thousand times as fast
        for key in ["seconds", "low", "high"] {
            row[key] = (row[key].as_f64().expect("a number") / 1000.0).into();
        }
    }
    // one file with all it needs: a roofline and a curve, nothing from elsewhere
    assert_eq!(page.matches("<svg").count(), 2, "{page:.300}");
    for outside in ["<script", "<link", "<img", "src=", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }

    std::fs::write(&json, report.to_string()).expect("written");
    let compared = [&few[..], &["--baseline", &json]].concat();
    let output = bench(&compared).expect("there was a device");
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("SLOWER").count(), 2, "{said}");
    let output = bench(&[&compared[..], &["--fail-on-regression"]].concat()).expect("a device");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
}

/// Texts are written without a run, each once; a gain is asked of a table that is there.
#[test]
fn a_bench_writes_its_texts_and_wants_a_table_for_a_gain() {
    let dir = folder("cli-bench-texts");
    let place = dir.to_str().expect("a plain path");
    let shapes = ["--shape", "lmax=1,products=100", "--shape", "lmax=1,products=300"];
    let dump = [&["gaunt", "--tuning", "off", "--dump-wgsl", place][..], &shapes].concat();
    let Some(output) = bench(&dump) else { return };
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(said.contains("the texts of 2 cases") && !said.contains("Gflop/s"), "{said}");
    let files = texts_in(&dir);
    // the number of products is no part of a text
    assert_eq!(files.len(), 1, "{}", files.len());
    assert!(files[0].contains("@compute"), "{}", files[0]);
    let said = refused(&["bench", "gaunt", "--quick", "--gain", "--tuning", "off"]);
    assert!(said.contains("--gain: there is no tuning table"), "{said}");
    let said = refused(&["bench", "gaunt", "--dump-wgsl", place, "--gain"]);
    assert!(said.contains("cannot be used with"), "{said}");
}

/// The texts in a folder, sorted, without their list.
fn texts_in(dir: &Path) -> Vec<String> {
    let mut texts: Vec<String> = std::fs::read_dir(dir)
        .expect("a folder")
        .map(|e| e.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .map(|path| std::fs::read_to_string(path).expect("a text"))
        .collect();
    texts.sort_unstable();
    texts
}

/// A card's texts need no card: they are cut by its limits, not by those of this machine.
#[test]
fn texts_are_written_for_cards_that_are_not_here() {
    let golden = golden();
    let golden = golden.to_str().expect("a plain path");
    let texts_of = |card: &str| {
        let dir = folder(&format!("cli-card-{card}"));
        let place = dir.to_str().expect("a plain path");
        let dump = ["--as", card, "--dump-wgsl", place];
        for command in [
            &["bench", "attention", "--shape", "seq=64"][..],
            &["conformance", "--cases", golden, "--op", "plga"],
        ] {
            let output = tilewise(&[command, &dump].concat());
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        let list = std::fs::read_to_string(dir.join("index.json")).expect("a list");
        assert!(list.contains("attention/tiled:") && list.contains(",seq=64,"), "{list}");
        texts_in(&dir)
    };
    let [ada, browser] = ["ada", "browser"].map(texts_of);
    assert_eq!((ada.len(), browser.len()), (2, 2));
    // one kernel with subgroups, and one that is cut for more registers
    let having = |texts: &[String], word: &str| texts.iter().filter(|t| t.contains(word)).count();
    assert_eq!([&ada, &browser].map(|texts| having(texts, "subgroup_invocation_id")), [1, 0]);
    assert_eq!([&ada, &browser].map(|texts| having(texts, "const DEPTH: u32 = 32u;")), [1, 0]);
}

/// A plan's kernels are told card by card; each way of attention has a text.
#[test]
fn kernels_are_inspected_on_cards_that_are_not_here() {
    let decode = "seq=1,keys=4096,heads=32,heads_kv=8,dim=128";
    let args = ["inspect", "attention", "--shape", decode, "--dtype", "f16", "--no-compilers"];
    let output = tilewise(&[&args[..], &["--as", "ada,browser", "--constants"]].concat());
    let (said, why) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{why}");
    let (ada, browser) = said.split_once("browser: ").expect("both are told");
    for (card, memory) in [(ada, 8192), (browser, 4096)] {
        let line = card.lines().find(|l| l.contains("attention/groups:groups:")).expect(&said);
        assert!(line.contains(&format!("128 invocations, {memory} bytes")), "{line}");
        assert!(card.contains(" HEAD_DIM=128u "), "{card}");
    }
    assert!(ada.contains("SUBGROUP=true") && browser.contains("SUBGROUP=false"));

    let dir = folder("variants");
    let place = dir.to_str().expect("a plain path");
    let output =
        tilewise(&["bench", "attention", "--variants", "--as", "ada", "--dump-wgsl", place]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let list = std::fs::read_to_string(dir.join("index.json")).expect("there is a list");
    for problem in ["prefill 64/64 causal, f32", "decode 128 group 4 int8 pages, f32"] {
        assert!(list.contains(&format!("attention {problem}")), "{problem}");
    }
}

#[test]
fn tiles_are_tuned_into_a_file_that_is_trusted_only_if_it_is_sound() {
    let dir = folder("cli-tune");
    let path = dir.join("tiles.json").to_str().expect("a plain path").to_string();
    let listed = tilewise(&["tune", "--dry-run"]);
    if text(&listed.stderr).contains("no adapter found") {
        let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
        assert!(allowed, "{}", text(&listed.stderr));
        return;
    }
    let said = text(&listed.stdout);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    for op in ["\nattention f32", "\nlinear_attention f32", "\nneighborhood f32", "\ngaunt f32"] {
        assert!(said.contains(op), "{op} in {said}");
    }
    assert!(said.contains("  algorithm fourier"), "{said}");

    let missing = refused(&["bench", "fft", "--quick", "--tuning", "no/such.json"]);
    assert!(missing.contains("--tuning no/such.json: no such file"), "{missing}");

    let problem = ["--shape", "lmax=2,products=500"];
    let tune = [&["tune", "--op", "gaunt", "--file", &path][..], &problem].concat();
    std::fs::write(&path, "not a table").expect("written");
    let output = tilewise(&tune);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("not a tuning table"), "{said}");
    let read = || std::fs::read_to_string(&path).expect("written");
    let mut table: serde_json::Value = serde_json::from_str(&read()).expect("valid JSON");
    assert_eq!(table["origin"]["schema"], 1);
    assert!(table["tuning"]["entries"].is_object(), "{table}");
    assert_eq!(std::fs::read_dir(&dir).expect("a folder").count(), 1);

    // an entry that is no tile at all, and then a table of another device
    let quick = ["bench", "gaunt", "--quick", "--samples", "1", "--tuning", &path];
    let bench = [&quick[..], &problem].concat();
    let first =
        text(&tilewise(&["tune", "--op", "gaunt", "--dry-run", problem[0], problem[1]]).stdout);
    let key = first.lines().find(|l| l.starts_with("gaunt ")).expect("a key");
    table["tuning"]["entries"][key] =
        serde_json::json!({ "linear_attention": { "chunk_size": 7 } });
    std::fs::write(&path, table.to_string()).expect("written");
    let output = tilewise(&bench);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("tiles from a tuning table"));
    assert!(text(&output.stderr).contains("passed over"), "{}", text(&output.stderr));
    table["origin"]["driver"] = "another".into();
    std::fs::write(&path, table.to_string()).expect("written");
    let output = tilewise(&bench);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("its tiles are not used"), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains("tiles from a tuning table"));
}

/// A case of the repository with the last number of its wanted output changed.
fn planted(dir: &Path) -> String {
    let name = "na1d_n50_k6_even";
    let file = format!("{name}.safetensors");
    let mut bytes = std::fs::read(golden().join(&file)).expect("a golden case");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1000f32.to_le_bytes());
    std::fs::write(dir.join(file), bytes).expect("written");
    name.into()
}

/// A wrong answer fails; listed, it is an expected failure; a listed case that passes fails.
#[test]
fn expected_failures_must_fail() {
    let dir = folder("cli-expected");
    let name = planted(&dir);
    let list = dir.join("expected.json");
    let [html, json] = ["report.html", "report.json"].map(|f| dir.join(f));
    let run = |cases: &Path, expected: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tilewise"));
        command.args(["conformance", "--op", "natten_1d", "--poison", "--cases"]).arg(cases);
        command.arg("--report").arg(&html).arg("--report").arg(&json);
        if let Some(text) = expected {
            std::fs::write(&list, text).expect("written");
            command.arg("--expected-failures").arg(&list);
        }
        let output = command.output().expect("the program starts");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let entry = |adapter: &str| {
        format!(r#"[{{"case":"{name}","adapter":"{adapter}","reason":"planted"}}]"#)
    };
    let (status, said, complaint) = run(&dir, None);
    if said.contains("no adapter found") || complaint.contains("no adapter") {
        let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
        assert!(allowed, "{said}{complaint}");
        return;
    }
    assert_eq!(status, Some(1), "{said}{complaint}");
    assert!(said.contains(&format!("FAIL {name}: ")) && said.contains("1 of "), "{said}");
    let page = std::fs::read_to_string(&html).expect("written");
    assert!(page.ends_with("</html>\n") && page.contains("<tr class=\"fail\">"), "{page}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("written")).expect("valid JSON");
    assert_eq!((&report["failed"], &report["worst"][0]["failed"]), (&1.into(), &1.into()));

    // an adapter whose name has a parenthesis: all of them
    let (status, said, _) = run(&dir, Some(&entry("(")));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("expected failure 1: planted"), "{said}");
    assert!(said.ends_with("0 passed, 0 failed, 1 skipped\n"), "{said}");
    // another driver's failure excuses nothing
    assert_eq!(run(&dir, Some(&entry("no such driver"))).0, Some(1));
    let (status, said, _) = run(&golden(), Some(&entry("(")));
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("passed, although a failure is expected here: planted"), "{said}");
    for (bad, want) in [
        ("{", "expected.json: "),
        (r#"[{"case":"a"}]"#, "entry 0: expected a text \"adapter\""),
        (r#"[{"case":"a","adapter":"b","reason":""}]"#, "entry 0: expected a text \"reason\""),
    ] {
        let (status, _, complaint) = run(&dir, Some(bad));
        assert!(status == Some(1) && complaint.contains(want), "{bad}: {complaint}");
    }
}
