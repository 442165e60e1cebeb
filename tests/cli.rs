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
    let table: [(&[&str], &str); 14] = [
        (&["conformance"], "--cases <DIR>"),
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
        (&["demo", "--part", "paint"], "[possible values: denoise"),
        (&["bench", "gaunt", "--lmax", "17"], "17 is not in 1..=16"),
        (&["simulate", "na", "--map", "56x56"], "--kernel <K[xK[xK]]>"),
        (&["simulate", "na", "--map", "8x8", "--kernel", "9"], "kernel_size[0]"),
        (&["simulate", "na", "--map", "8x8", "--kernel", "3x3x3"], "--kernel has 3 axes"),
        (&["simulate", "na", "--map", "8", "--kernel", "3", "--causal", "1"], "axes are 0..=0"),
    ];
    for (args, want) in table {
        let said = refused(args);
        assert!(said.contains(want), "{args:?}: wanted {want:?} in {said}");
    }
    for command in [&["devices"][..], &["demo"], &["conformance"], &["bench"], &["simulate", "na"]]
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
        "simulate", "na", "--map", "32x32", "--kernel", "8", "--stride", "8", "--device", "cpu",
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
    }
}

#[test]
fn gaunt_products_are_timed_and_drawn() {
    let dir = folder("cli-bench");
    let (json, plot) = (dir.join("gaunt.json"), dir.join("gaunt.svg"));
    let output = Command::new(env!("CARGO_BIN_EXE_tilewise"))
        .args(["bench", "gaunt", "--lmax", "2", "--products", "100", "--samples", "1"])
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
