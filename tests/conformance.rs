//! The reader of golden cases and the judge, without a device.
#![cfg(feature = "conformance")]

use std::path::{Path, PathBuf};

use tilewise::DType;
use tilewise::conformance::{
    Case, CaseError, CaseTensor, Data, Expect, Outcome, Stop, Tolerance, Verdict, case_files,
    judge, random_case, random_ops, run_guarded, verdict, write_result,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(golden().join(name)).expect("a golden case of this repository")
}

/// A folder of its own under the target folder, emptied.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("the target folder is writable");
    dir
}

/// A safetensors file of one header and a body.
fn file(header: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(body);
    bytes
}

/// A header with one tensor `in.q` and a golden text.
fn header(entry: &str, golden: &str) -> String {
    let golden = serde_json::Value::from(golden);
    format!(r#"{{"__metadata__":{{"golden":{golden}}},"in.q":{entry}}}"#)
}

const GOOD_ENTRY: &str = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
const GOOD_GOLDEN: &str = r#"{"name":"a","op":"sdpa","family":"sdpa","expect":"error","params":{"scale":NaN},"shapes":{"in.q":[2]}}"#;

fn message(bytes: &[u8]) -> String {
    Case::parse(Path::new("dir/a.safetensors"), bytes).expect_err("must be refused").to_string()
}

#[test]
fn every_golden_case_is_read() {
    let files = case_files(&golden()).expect("tests/golden is a folder");
    assert_eq!(files.len(), 126);
    for path in files {
        let case = Case::read(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(path.file_stem().and_then(|s| s.to_str()), Some(case.name.as_str()));
        assert!(case.tensor_names().all(|n| n.starts_with("in.") || n.starts_with("out.")));
        let outputs = case.tensor_names().filter(|n| n.starts_with("out.")).count();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let judged = case.tolerances(dtype).len();
            assert_eq!(
                judged,
                if case.expect == Expect::Values { outputs } else { 0 },
                "{}",
                case.name
            );
        }
    }
}

#[test]
fn a_case_holds_what_its_file_says() {
    let case = Case::read(&golden().join("sdpa_causal_q17_k49_d64.safetensors")).expect("readable");
    assert_eq!((case.op.as_str(), case.family.as_str()), ("sdpa", "sdpa"));
    assert_eq!(case.params["nk"], 49);
    let k = case.tensor("in.k").expect("has keys");
    assert_eq!(k.shape, [1, 2, 49, 64]);
    let Data::F32(values) = &k.data else { panic!("keys are F32") };
    // the last value of the tensor, read by hand from the file's bytes
    let bytes = bytes_of("sdpa_causal_q17_k49_d64.safetensors");
    let n = usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let end = 8 + n + usize::try_from(json["in.k"]["data_offsets"][1].as_u64().unwrap()).unwrap();
    assert_eq!(values.last().unwrap().to_le_bytes(), bytes[end - 4..end]);

    let padded = Case::read(&golden().join("sdpa_keypad_n40_d64.safetensors")).expect("readable");
    assert!(matches!(padded.tensor("in.key_mask").expect("has a mask").data, Data::U8(_)));
    let packed =
        Case::read(&golden().join("sdpa_varlen_causal_d64.safetensors")).expect("readable");
    assert_eq!(packed.tensor("in.cu_q").expect("has lengths").data, Data::I32(vec![0, 16, 56, 64]));
}

#[test]
fn bf16_has_eight_times_the_tolerance_of_f16() {
    let case = Case::read(&golden().join("na1d_n64_k7.safetensors")).expect("readable");
    let (f16, bf16) = (case.tolerances(DType::F16), case.tolerances(DType::BF16));
    assert_eq!(f16.len(), 2);
    for ((name, a), (same, b)) in f16.into_iter().zip(bf16) {
        assert_eq!((name, a.times(8.0)), (same, b));
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error_that_names_it() {
    let whole = bytes_of("na1d_reject_window_gt_extent.safetensors");
    assert!(Case::parse(Path::new("cut"), &whole).is_ok());
    for length in 0..whole.len() {
        let e = Case::parse(Path::new("cut"), &whole[..length]).expect_err("a cut file");
        assert!(e.to_string().starts_with("cut: "), "{e}");
    }
    let mut longer = whole;
    longer.push(0);
    assert!(message(&longer).contains("do not cover"));
}

#[test]
fn damaged_bytes_never_panic() {
    let whole = bytes_of("na1d_reject_window_gt_extent.safetensors");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).expect("below a usize")
    };
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            bytes[at] ^= 1 << random(8);
        }
        refused += usize::from(Case::parse(Path::new("damaged"), &bytes).is_err());
    }
    // damage to the values alone goes unseen; the header is most of this file
    assert!(refused > 10_000, "only {refused} of 20000 damaged files were refused");
}

#[test]
fn each_kind_of_bad_file_gets_its_own_message() {
    let good = file(&header(GOOD_ENTRY, GOOD_GOLDEN), &[0; 8]);
    let case = Case::parse(Path::new("good"), &good).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(case.params["scale"], "NaN");

    let entry = |e: &str| message(&file(&header(e, GOOD_GOLDEN), &[0; 8]));
    let golden = |g: &str| message(&file(&header(GOOD_ENTRY, g), &[0; 8]));
    let with = |from: &str, to: &str| golden(&GOOD_GOLDEN.replace(from, to));
    let table = [
        (message(b""), "0 bytes, too few for the 8-byte header length"),
        (
            message(b"\x89PNG\r\n\x1a\n and more"),
            "header length 727905341920923785, the limit is 67108864",
        ),
        (message(&file("{", &[])), "header: EOF while parsing"),
        (message(&file("{}", &[])), "golden: the header has no such entry"),
        (message(&file("[]", &[])), "header: invalid type"),
        (message(&file("\u{1}", &[])), "header: expected value"),
        (
            entry(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
            "tensor in.q: shape [3] of F32 takes 12 bytes, its offsets say 0..8",
        ),
        (
            entry(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#),
            "tensor in.q: offsets 0..16, the file holds 8 bytes",
        ),
        (
            entry(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
            "takes 8 bytes, its offsets say 8..0",
        ),
        (entry(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), "do not cover the 8 bytes"),
        (
            entry(r#"{"dtype":"F64","shape":[1],"data_offsets":[0,8]}"#),
            "expected F32, I32, U8 or BOOL, got F64",
        ),
        (
            entry(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#),
            "tensor in.q: invalid value: integer `-2`",
        ),
        (
            entry(
                r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#,
            ),
            "is too large",
        ),
        (
            entry(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#),
            "is too large",
        ),
        (entry("7"), "tensor in.q: invalid type"),
        (golden("{"), "golden: EOF while parsing"),
        (golden("{}"), "golden: missing field `name`"),
        (with(r#""op":"sdpa","#, ""), "golden: missing field `op`"),
        (with(r#""name":"a""#, r#""name":"../a""#), "golden: name: expected letters, digits"),
        (with(r#""name":"a""#, r#""name":"""#), "golden: name: expected letters, digits"),
        (with(r#""expect":"error""#, r#""expect":"joy""#), "golden: unknown variant `joy`"),
        (
            with(r#""expect":"error""#, r#""expect":"values""#),
            "golden: a case that expects values needs tolerance.f32",
        ),
        (
            with(r#"{"in.q":[2]}"#, r#"{"in.q":[2,1]}"#),
            "tensor in.q: the case says shape [2, 1], the file has [2]",
        ),
        (
            with(r#"{"in.q":[2]}"#, r#"{"in.k":[2]}"#),
            "tensor in.k: the case names it, the file lacks it",
        ),
        (
            with(r#"{"in.q":[2]}}"#, r#"{},"tolerance":{"f32":{"out.o":{"exact":true}}}}"#),
            "golden: tolerance.f32: the file has no out.o",
        ),
        (
            with(r#"{"in.q":[2]}}"#, r#"{},"tolerance":{"f32":{"in.q":{"atol":1,"rtol":1}}}}"#),
            "golden: tolerance.f32.in.q: rel_l2 is missing",
        ),
        (
            with(
                r#"{"in.q":[2]}}"#,
                r#"{},"tolerance":{"f32":{"in.q":{"atol":-1,"rtol":1,"rel_l2":0}}}}"#,
            ),
            "atol: expected a finite number >= 0, got -1",
        ),
    ];
    for (got, want) in table {
        assert!(got.starts_with("dir/a.safetensors: "), "{got}");
        assert!(got.contains(want), "wanted {want:?} in {got:?}");
    }
    // deep nesting must not exhaust the stack
    assert!(
        message(&file(&format!("{{\"a\":{}", "[".repeat(1 << 20)), &[]))
            .contains("recursion limit")
    );
    let missing = Case::read(Path::new("no/such.safetensors")).expect_err("no such file");
    assert!(matches!(missing, CaseError::Io { .. }));
    assert!(missing.to_string().starts_with("no/such.safetensors: "), "{missing}");
    assert!(case_files(Path::new("no/such")).is_err());
}

fn tensor(shape: &[u32], data: &[f32]) -> CaseTensor {
    CaseTensor { shape: shape.to_vec(), data: Data::F32(data.to_vec()) }
}

const CLOSE: Tolerance = Tolerance::Close { atol: 1e-3, rtol: 1e-2, rel_l2: 1e-2 };

#[test]
fn the_judge_accepts_what_is_within() {
    let want = tensor(&[4], &[1.0, -2.0, 0.0, f32::NEG_INFINITY]);
    let d = judge(&want, &[4], &[1.005, -2.0, 0.0005, f32::NEG_INFINITY], CLOSE).expect("within");
    assert!((d.max_abs - 5e-3).abs() < 1e-6, "{d:?}");
    assert!((d.rel_l2 - 5.025e-3 / 5.0_f64.sqrt()).abs() < 1e-6, "{d:?}");
    assert!(judge(&want, &[4], &[1.0, -2.0, 0.0, f32::NEG_INFINITY], Tolerance::Exact).is_ok());
    assert!(judge(&tensor(&[0], &[]), &[0], &[], CLOSE).is_ok());
    assert!(judge(&tensor(&[1], &[f32::NAN]), &[1], &[f32::NAN], CLOSE).is_ok());
    assert!(judge(&tensor(&[2], &[0.0, 0.0]), &[2], &[9e-4, 0.0], CLOSE).is_ok());
}

#[test]
fn the_judge_refuses_what_is_wrong() {
    let inf = f32::INFINITY;
    let want = tensor(&[2, 2], &[1.0, -2.0, 0.0, -inf]);
    let refused = |shape: &[u32], got: &[f32], tolerance, text: &str| {
        let why = judge(&want, shape, got, tolerance).expect_err(text);
        assert!(why.contains(text), "wanted {text:?} in {why:?}");
    };
    refused(&[4], &[1.0, -2.0, 0.0, -inf], CLOSE, "shape [4], wanted [2, 2]");
    refused(&[2, 2], &[1.0, -2.0, 0.0], CLOSE, "3 entries");
    refused(&[2, 2], &[f32::NAN, -2.0, 0.0, -inf], CLOSE, "1 non-finite entries where finite");
    refused(&[2, 2], &[inf, -2.0, -inf, -inf], CLOSE, "2 non-finite entries where finite");
    refused(&[2, 2], &[1.0, -2.0, 0.0, 0.0], CLOSE, "entry 3: wanted -inf, got 0");
    refused(&[2, 2], &[1.0, -2.0, 0.0, -1e30], CLOSE, "1 non-finite entries differ");
    refused(&[2, 2], &[1.0, -2.0, 0.0, inf], CLOSE, "entry 3: wanted -inf, got inf");
    refused(&[2, 2], &[1.0, -2.0, 0.0, f32::NAN], CLOSE, "entry 3: wanted -inf, got NaN");
    refused(&[2, 2], &[1.0, -2.0, 0.0011, -inf], CLOSE, "1 of 3 entries over");
    refused(&[2, 2], &[1.012, -2.0, 0.0, -inf], CLOSE, "entry 0: wanted 1, got 1.012");
    refused(&[2, 2], &[1.0, -2.0, 1e-7, -inf], Tolerance::Exact, "1 of 4 entries differ");
    // each entry within, all of them shifted
    let tight = Tolerance::Close { atol: 1e-3, rtol: 1e-2, rel_l2: 1e-3 };
    refused(&[2, 2], &[1.005, -2.01, 0.0, -inf], tight, "relative L2 5.000e-3 over 1.000e-3");
    let mask = CaseTensor { shape: vec![2], data: Data::U8(vec![0, 1]) };
    assert!(judge(&mask, &[2], &[0.0, 0.0], Tolerance::Exact).is_err());
    assert!(judge(&mask, &[2], &[0.0, 1.0], Tolerance::Exact).is_ok());
}

fn output(case: &Case, name: &str) -> tilewise::conformance::Output {
    let t = case.tensor(name).expect("an output of the case");
    let Data::F32(data) = &t.data else { panic!("outputs are F32") };
    tilewise::conformance::Output { name: name.into(), shape: t.shape.clone(), data: data.clone() }
}

#[test]
fn the_verdict_follows_what_the_case_expects() {
    let dtype = DType::F32;
    let values = Case::read(&golden().join("na1d_n64_k7.safetensors")).expect("readable");
    let error =
        Case::read(&golden().join("na1d_reject_window_gt_extent.safetensors")).expect("readable");
    let (o, lse) = (output(&values, "out.o"), output(&values, "out.lse"));
    let both = Ok(vec![o.clone(), lse.clone()]);
    assert!(matches!(verdict(&values, dtype, &both), Verdict::Pass(d) if d.len() == 2));

    let mut wrong = o;
    wrong.data[7] += 0.1;
    let Verdict::Fail(why) = verdict(&values, dtype, &Ok(vec![wrong, lse.clone()])) else {
        panic!("a wrong value passed")
    };
    assert!(why.starts_with("out.o: 1 of 4096 entries over"), "{why}");
    let missing = verdict(&values, dtype, &Ok(vec![lse]));
    assert_eq!(missing, Verdict::Fail("out.o: no result".into()));

    let refused = Err(Stop::Refused("no".into()));
    assert_eq!(verdict(&values, dtype, &refused), Verdict::Fail("refused: no".into()));
    assert_eq!(verdict(&error, dtype, &refused), Verdict::Pass(vec![]));
    assert!(matches!(verdict(&error, dtype, &Ok(vec![])), Verdict::Fail(_)));
    let failed = Err(Stop::Failed("lost".into()));
    assert_eq!(verdict(&error, dtype, &failed), Verdict::Fail("lost".into()));
    let unsupported = Err(Stop::Unsupported("bias".into()));
    assert_eq!(verdict(&values, dtype, &unsupported), Verdict::Skip("bias".into()));
}

#[test]
fn results_are_written_and_replace_older_ones() {
    let dir = folder("results");
    let case = Case::read(&golden().join("na1d_n64_k7.safetensors")).expect("readable");
    let names = |dir: &Path| {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .expect("a folder")
            .map(|e| e.expect("an entry").file_name().into_string().expect("plain"))
            .collect();
        names.sort();
        names
    };
    let unsupported = Err(Stop::Unsupported("why".into()));
    write_result(&dir, &case, &unsupported).expect("written");
    assert_eq!(names(&dir), ["na1d_n64_k7.skip"]);
    write_result(&dir, &case, &Err(Stop::Refused("why".into()))).expect("written");
    assert_eq!(names(&dir), ["na1d_n64_k7.error"]);
    write_result(&dir, &case, &Ok(vec![output(&case, "out.o")])).expect("written");
    assert_eq!(names(&dir), ["na1d_n64_k7.safetensors"]);
    let bytes = std::fs::read(dir.join("na1d_n64_k7.safetensors")).expect("written");
    let read = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    let o = read.tensor("out.o").expect("present");
    assert_eq!(o.shape(), [1, 64, 2, 32]);
    let first = output(&case, "out.o").data[0].to_le_bytes();
    assert_eq!(o.data()[..4], first);

    // a device failure is no refusal
    let error =
        Case::read(&golden().join("na1d_reject_window_gt_extent.safetensors")).expect("readable");
    let dir = folder("failures");
    write_result(&dir, &error, &Err(Stop::Failed("lost".into()))).expect("nothing to write");
    assert!(names(&dir).is_empty());
    write_result(&dir, &case, &Err(Stop::Failed("lost".into()))).expect("written");
    assert_eq!(names(&dir), ["na1d_n64_k7.error"]);
}

/// A case that wants a refusal, of zeros, with inputs of these shapes.
fn error_case(op: &str, params: &str, inputs: &[(&str, &[u32])]) -> Case {
    let mut entries = String::new();
    let mut end = 0;
    for (name, shape) in inputs {
        let start = end;
        end += shape.iter().product::<u32>() * 4;
        entries += &format!(
            r#","{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        );
    }
    let golden =
        format!(r#"{{"name":"a","op":"{op}","family":"f","expect":"error","params":{params}}}"#);
    let golden = serde_json::Value::from(golden);
    let header = format!(r#"{{"__metadata__":{{"golden":{golden}}}{entries}}}"#);
    Case::parse(Path::new("a"), &file(&header, &vec![0; end as usize]))
        .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn bad_arguments_of_a_case_are_refused_by_name() {
    let Ok(ctx) = tilewise::Context::new_blocking() else {
        let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
        assert!(allowed, "no adapter; TILEWISE_ALLOW_NO_GPU=1 allows that");
        eprintln!("skipped: no adapter");
        return;
    };
    const Q: (&str, &[u32]) = ("in.q", &[1, 4, 3, 8]);
    const K: (&str, &[u32]) = ("in.k", &[1, 2, 5, 8]);
    const V: (&str, &[u32]) = ("in.v", &[1, 2, 5, 6]);
    type Row<'a> = (&'a str, [(&'a str, &'a [u32]); 3], &'a str);
    let table: &[Row<'_>] = &[
        (r#"{"scale":NaN}"#, [Q, K, V], "scale: expected a finite number, got NaN"),
        (r#"{"scale":-Infinity}"#, [Q, K, V], "scale: expected a finite number, got -inf"),
        (r#"{"scale":"big"}"#, [Q, K, V], "scale: expected a number, got \"big\""),
        (r#"{"causal":3}"#, [Q, K, V], "causal: expected true or false, got 3"),
        (
            "{}",
            [("in.q", &[1, 3, 3, 8]), K, V],
            "heads: expected a multiple of heads_kv = 2, got 3",
        ),
        ("{}", [("in.q", &[1, 4, 3, 0]), K, V], "head_dim: expected 1 to 576, got 0"),
        ("{}", [("in.q", &[1, 4, 3, 577]), K, V], "head_dim: expected 1 to 576, got 577"),
        ("{}", [("in.q", &[4, 3, 8]), K, V], "in.q: expected 4 axes, got shape [4, 3, 8]"),
        ("{}", [Q, ("in.k", &[1, 2, 5, 7]), V], "k: expected [1, 5, 2, 8], got [1, 5, 2, 7]"),
        ("{}", [Q, ("in.k", &[2, 2, 5, 8]), V], "k: expected [1, 5, 2, 8], got [2, 5, 2, 8]"),
        ("{}", [Q, K, ("in.v", &[1, 2, 4, 6])], "v: expected [1, 5, 2, 6], got [1, 4, 2, 6]"),
        ("{}", [Q, ("in.k", &[1, 0, 5, 8]), V], "heads_kv: expected at least 1, got 0"),
    ];
    for (params, inputs, want) in table {
        let case = error_case("sdpa", params, inputs);
        let outcome = tilewise::conformance::run(&ctx, &case, DType::F32);
        let Err(Stop::Refused(why)) = &outcome else { panic!("{want}: {outcome:?}") };
        assert!(why.contains(want), "wanted {want:?} in {why:?}");
        assert_eq!(verdict(&case, DType::F32, &outcome), Verdict::Pass(vec![]));
    }
    let unknown = error_case("sorcery", "{}", &[]);
    let outcome = tilewise::conformance::run(&ctx, &unknown, DType::F32);
    assert!(matches!(verdict(&unknown, DType::F32, &outcome), Verdict::Skip(_)), "{outcome:?}");
    // the same arguments without the fault are no refusal
    let outcome =
        tilewise::conformance::run(&ctx, &error_case("sdpa", "{}", &[Q, K, V]), DType::F32);
    assert!(matches!(outcome, Ok(outputs) if outputs.len() == 2));
}

#[test]
fn random_cases_are_the_same_for_a_seed_and_differ_between_seeds() {
    for op in random_ops() {
        let [a, b, other] =
            [7, 7, 8].map(|seed| random_case(op, seed).unwrap_or_else(|| panic!("{op}")));
        assert_eq!((a.op.as_str(), a.name.as_str()), (op, format!("random_{op}_7").as_str()));
        let tensors = |c: &Case| -> Vec<(String, CaseTensor)> {
            let one = |n: &str| (n.to_owned(), c.tensor(n).expect("is named").clone());
            c.tensor_names().map(one).collect()
        };
        assert!(tensors(&a) == tensors(&b) && a.params == b.params, "{op}");
        assert!(tensors(&a) != tensors(&other), "{op}");
        // every output is judged, and so is nothing else
        let outputs = a.tensor_names().filter(|n| n.starts_with("out.")).count();
        assert_eq!((a.tolerances(DType::F32).len(), outputs > 0), (outputs, true), "{op}");
        for (name, tensor) in tensors(&a) {
            if let (true, Data::F32(x)) = (name.starts_with("in."), &tensor.data) {
                let kept = |x: &f32| half::bf16::from_f32(*x).to_f32() == *x;
                let exact = !a.inputs_f16_exact || x.iter().all(kept);
                assert!(exact, "{op}: {name} loses by bf16");
            }
        }
    }
    assert!(random_case("sorcery", 1).is_none());
}

/// One problem of each operator, on the machine's own choice of adapter; then each with one wrong
/// number in its answer.
#[test]
fn random_cases_pass_and_a_planted_wrong_number_fails() {
    let Ok(ctx) = tilewise::Context::new_blocking() else {
        let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
        assert!(allowed, "no adapter; TILEWISE_ALLOW_NO_GPU=1 allows that");
        eprintln!("skipped: no adapter");
        return;
    };
    for op in random_ops() {
        let case = random_case(op, 11).expect("a known operator");
        let outcome = run_guarded(&ctx, &case, DType::F32, 64);
        let verdict_of = |outcome: &Outcome| verdict(&case, DType::F32, outcome);
        assert!(
            matches!(verdict_of(&outcome), Verdict::Pass(_)),
            "{op}: {:?}",
            verdict_of(&outcome)
        );
        let mut outputs = outcome.expect("it passed");
        let judged: Vec<_> = outputs.iter().map(|o| o.name.clone()).collect();
        for (at, name) in judged.iter().enumerate() {
            if case.tensor(name).is_none() {
                continue;
            }
            let largest = outputs[at].data.iter().fold(0f32, |m, x| m.max(x.abs()));
            let middle = outputs[at].data.len() / 2;
            let right = outputs[at].data[middle];
            for wrong in [right + 1e-3 * largest.max(1.0), f32::NAN] {
                outputs[at].data[middle] = wrong;
                let verdict = verdict_of(&Ok(outputs.clone()));
                assert!(matches!(verdict, Verdict::Fail(_)), "{op}: {name} with {wrong} passed");
            }
            outputs[at].data[middle] = right;
        }
    }
}

/// A future that is dropped leaves the context usable; a device destroyed while a copy is under way
/// gives errors, never a hang; a new context works.
#[test]
fn a_device_lost_in_mid_use_is_an_error_and_a_new_one_works() {
    use std::task::{Context as Task, Waker};
    let open = || tilewise::Context::new_blocking().ok();
    let Some(ctx) = open() else {
        let allowed = std::env::var("TILEWISE_ALLOW_NO_GPU").is_ok_and(|v| v == "1");
        assert!(allowed, "no adapter; TILEWISE_ALLOW_NO_GPU=1 allows that");
        return;
    };
    let case = random_case("merge_partials", 3).expect("a known operator");
    let passes = |ctx: &tilewise::Context| {
        let outcome = tilewise::conformance::run(ctx, &case, DType::F32);
        matches!(verdict(&case, DType::F32, &outcome), Verdict::Pass(_))
    };
    let x = tilewise::Tensor::upload(&ctx, [1 << 16], &vec![3f32; 1 << 16]).expect("uploaded");
    let start = || {
        let mut pending = Box::pin(x.download_async::<f32>(&ctx));
        let first = pending.as_mut().poll(&mut Task::from_waker(Waker::noop()));
        assert!(first.is_pending(), "the copy is under way");
        pending
    };
    drop(start());
    ctx.wait("test").expect("nothing is lost");
    assert!(x.download::<f32>(&ctx).expect("usable").iter().all(|&x| x == 3.0));
    assert!(passes(&ctx));

    let mut pending = start();
    ctx.device.destroy();
    let waited = ctx.wait("test");
    assert!(matches!(waited, Err(tilewise::Error::DeviceLost { .. })), "{waited:?}");
    // answered one way or the other: the copy may have come through before
    assert!(pending.as_mut().poll(&mut Task::from_waker(Waker::noop())).is_ready());
    let outcome = tilewise::conformance::run(&ctx, &case, DType::F32);
    assert!(matches!(outcome, Err(Stop::Failed(_))), "{outcome:?}");
    assert!(passes(&open().expect("the adapter is still there")));
}
