//! Hostile case files: whatever the bytes, the reader gives an error or a right case, at once, and
//! without asking for more memory than the file is worth; and whatever a readable case says, its
//! operator is run or refused.
#![cfg(feature = "conformance")]
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use common::Rng;
use serde_json::{Value, json};
use tilewise::{
    Context, DType,
    conformance::{Case, Data, Stop, Tolerance, random_case, random_ops, run},
    wgpu,
};

/// Remembers the largest allocation.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The tests of this file one after the other: they watch the same allocator.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A case as a file: its header, and its body.
fn as_file(header: &Value, body: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(body);
    bytes
}

/// The parts of a file that holds `case`.
fn parts(case: &Case) -> (Value, Vec<u8>) {
    let mut header = json!({});
    let mut body = Vec::new();
    let mut shapes = json!({});
    let mut outputs = json!({});
    for name in case.tensor_names() {
        let tensor = case.tensor(name).unwrap();
        let start = body.len();
        let kind = match &tensor.data {
            Data::F32(x) => {
                body.extend(x.iter().flat_map(|x| x.to_le_bytes()));
                "F32"
            }
            Data::I32(x) => {
                body.extend(x.iter().flat_map(|x| x.to_le_bytes()));
                "I32"
            }
            Data::U8(x) => {
                body.extend(x);
                "U8"
            }
        };
        header[name] =
            json!({"dtype": kind, "shape": tensor.shape, "data_offsets": [start, body.len()]});
        shapes[name] = json!(tensor.shape);
        if name.starts_with("out.") {
            outputs[name] = json!({"atol": 1.0, "rtol": 1.0, "rel_l2": 1.0});
        }
    }
    let golden = json!({
        "name": case.name, "op": case.op, "family": case.family, "params": case.params,
        "shapes": shapes, "expect": "values", "tolerance": {"f32": outputs},
    });
    header["__metadata__"] = json!({"golden": golden.to_string()});
    (header, body)
}

/// What a case promises of itself.
fn sound(case: &Case) {
    for name in case.tensor_names() {
        let tensor = case.tensor(name).unwrap();
        let elements: u64 = tensor.shape.iter().map(|&n| u64::from(n)).product();
        let length = match &tensor.data {
            Data::F32(x) => x.len(),
            Data::I32(x) => x.len(),
            Data::U8(x) => x.len(),
        };
        assert_eq!(elements, length as u64, "{name}");
    }
    for (name, tolerance) in case.tolerances(DType::F32) {
        assert!(case.tensor(name).is_some(), "{name}");
        if let Tolerance::Close { atol, rtol, rel_l2 } = tolerance {
            assert!([atol, rtol, rel_l2].iter().all(|x| x.is_finite() && *x >= 0.0));
        }
    }
    assert!(!case.name.is_empty() && !case.name.contains(['/', '\\']));
}

/// Parses, watched; whether it was a case.
fn parsed(bytes: &[u8]) -> bool {
    LARGEST.store(0, Ordering::Relaxed);
    let start = Instant::now();
    let result = Case::parse(Path::new("hostile"), bytes);
    let (took, largest) = (start.elapsed(), LARGEST.load(Ordering::Relaxed));
    assert!(took < Duration::from_secs(1), "{took:?} for {} bytes", bytes.len());
    // a value of JSON is larger than its text
    let most = 64 * bytes.len() + (1 << 16);
    assert!(largest <= most, "an allocation of {largest} bytes for a file of {}", bytes.len());
    match result {
        Ok(case) => {
            sound(&case);
            true
        }
        Err(error) => {
            assert!(error.to_string().starts_with("hostile: "), "{error}");
            false
        }
    }
}

/// A number that a header may claim.
fn claim(rng: &mut Rng) -> Value {
    match rng.range(0, 8) {
        0 => json!(0),
        1 => json!(u64::MAX),
        2 => json!(1u64 << rng.range(0, 64)),
        3 => json!(-1),
        4 => json!(1.5e300),
        5 => json!(u64::from(u32::MAX) + u64::from(rng.range(0, 2))),
        6 => json!("8"),
        _ => json!(rng.range(0, 100)),
    }
}

/// A small case of every kind of tensor, with parts to spoil.
fn small() -> (Value, Vec<u8>) {
    let golden = r#"{"name":"a","op":"sdpa","family":"sdpa","expect":"values",
        "params":{"scale":NaN,"causal":true},"shapes":{"in.q":[2,3],"in.mask":[4]},
        "tolerance":{"f32":{"in.q":{"atol":1e-5,"rtol":1e-5,"rel_l2":1e-5},"in.mask":{"exact":true}}}}"#;
    let header = json!({
        "__metadata__": {"golden": golden},
        "in.q": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "in.mask": {"dtype": "U8", "shape": [4], "data_offsets": [24, 28]},
        "in.cu": {"dtype": "I32", "shape": [], "data_offsets": [28, 32]},
    });
    (header, vec![7; 32])
}

#[test]
fn any_bytes_are_refused_or_a_right_case() {
    let _alone = ALONE.lock();
    let (header, body) = small();
    let good = as_file(&header, &body);
    assert!(parsed(&good));
    let mut rng = Rng(7);
    let count = if common::slow() { 400_000 } else { 20_000 };
    let mut right = 0;
    for _ in 0..count {
        let (mut header, mut body) = (header.clone(), body.clone());
        let mut bytes = None;
        for _ in 0..rng.range(1, 4) {
            let tensor = *rng.pick(&["in.q", "in.mask", "in.cu"]);
            // one that was taken away or made a text has no parts
            let whole = header.get(tensor).is_some_and(Value::is_object);
            match rng.range(0, 12) {
                0..4 | 6 if !whole => {}
                9 if !header["__metadata__"].is_object() => {}
                0 => header[tensor]["shape"] = json!([claim(&mut rng), claim(&mut rng)]),
                1 => header[tensor]["data_offsets"] = json!([claim(&mut rng), claim(&mut rng)]),
                2 => header[tensor]["data_offsets"][1] = claim(&mut rng),
                3 => header[tensor]["dtype"] = json!(rng.pick(&["F64", "BF16", "I32", "", "BOOL"])),
                4 => header[tensor] = json!(rng.pick(&["F32", ""])),
                5 => {
                    header.as_object_mut().unwrap().remove(tensor);
                }
                6 => header[tensor]["shape"] = json!(vec![1; rng.range(0, 300) as usize]),
                7 => body.truncate(rng.range(0, 33) as usize),
                8 => body.extend([0; 4]),
                9 => {
                    // a piece of the golden text replaced
                    let golden =
                        header["__metadata__"]["golden"].as_str().unwrap_or_default().to_owned();
                    let from =
                        *rng.pick(&["1e-5", "NaN", "\"a\"", "[2,3]", "values", "sdpa", "true"]);
                    let to = *rng.pick(&[
                        "-1",
                        "Infinity",
                        "1e999",
                        "null",
                        "\"../x\"",
                        "[[[[",
                        "}",
                        "\"\\ud800\"",
                        "18446744073709551616",
                        "{}",
                        "\u{0}",
                    ]);
                    header["__metadata__"]["golden"] = json!(golden.replacen(from, to, 1));
                }
                10 => header["__metadata__"] = json!([1]),
                _ => {
                    // bits, and the length of the header among them
                    let mut file = as_file(&header, &body);
                    for _ in 0..rng.range(1, 4) {
                        let at = match rng.chance_of_two() {
                            true => rng.range(0, 8),
                            false => rng.range(0, file.len() as u32),
                        };
                        file[at as usize] ^= 1 << rng.range(0, 8);
                    }
                    bytes = Some(file);
                }
            }
        }
        let bytes = bytes.unwrap_or_else(|| as_file(&header, &body));
        right += u32::from(parsed(&bytes));
    }
    // most are refused; what leaves the case whole is not
    assert!(right > count / 100 && right < count / 2, "{right} of {count}");
}

/// Two answers, equally likely.
trait Coin {
    fn chance_of_two(&mut self) -> bool;
}

impl Coin for Rng {
    fn chance_of_two(&mut self) -> bool {
        self.range(0, 2) == 0
    }
}

/// Headers that cost a naive reader much: deep, long, many.
#[test]
fn large_headers_are_read_in_proportion() {
    let _alone = ALONE.lock();
    assert!(!parsed(&as_file(&json!("x".repeat(1 << 20)), &[])));
    let mut many = json!({});
    for i in 0..20_000 {
        many[format!("in.{i}")] = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
    }
    assert!(!parsed(&as_file(&many, &[])));
    let (header, body) = small();
    let golden = header["__metadata__"]["golden"].as_str().unwrap();
    many["__metadata__"] = json!({"golden": golden.replace(r#""in.mask":[4]"#, "")});
    let _ = parsed(&as_file(&many, &body));
    // sizes whose product is small although each is not
    let mut empty = header.clone();
    empty["in.q"] =
        json!({"dtype": "F32", "shape": [0, u32::MAX, u32::MAX], "data_offsets": [0, 0]});
    let _ = parsed(&as_file(&empty, &body));
    let mut claims = vec![0; 8];
    for length in [u64::MAX, 1 << 63, 64 << 20, (64 << 20) + 1, 1] {
        claims[..8].copy_from_slice(&u64::to_le_bytes(length));
        assert!(!parsed(&claims));
    }
}

fn noop() -> Context {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop =
        wgpu::NoopBackendOptions { enable: true, ..Default::default() };
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    pollster::block_on(Context::from_adapter(&adapter)).unwrap()
}

/// Readable cases that make no sense: an argument that is not one, a tensor that is missing, of
/// another shape or of another type. The operator runs or refuses; it does not panic, and it asks for
/// no memory that no device could hold.
#[test]
fn senseless_cases_are_run_or_refused() {
    let _alone = ALONE.lock();
    let ctx = noop();
    let hostile = [
        json!(0),
        json!(1),
        json!(7),
        json!(-1),
        json!(u32::MAX),
        json!(1u64 << 40),
        json!(1e300),
        json!("NaN"),
        json!(null),
        json!([]),
        json!([0, 0]),
        json!([u32::MAX, u32::MAX]),
        json!([3, 1, 2]),
        json!(true),
        json!("4294967295x3e+1x2o"),
        json!({}),
    ];
    let each = if common::slow() { 400 } else { 24 };
    let (mut ran, mut refused) = (0, 0);
    for op in random_ops() {
        for seed in 0..each {
            let mut rng = Rng(seed);
            let case = random_case(op, seed % 6).unwrap();
            let (mut header, body) = parts(&case);
            let names: Vec<String> =
                case.tensor_names().filter(|n| n.starts_with("in.")).map(Into::into).collect();
            let golden = header["__metadata__"]["golden"].as_str().unwrap();
            let mut golden: Value = serde_json::from_str(golden).unwrap();
            golden["shapes"] = json!({});
            let params: Vec<String> = case.params.keys().cloned().collect();
            if !params.is_empty() && (names.is_empty() || rng.chance_of_two()) {
                golden["params"][rng.pick(&params)] = rng.pick(&hostile).clone();
            } else {
                let entry = &mut header[rng.pick(&names)];
                let shape = entry["shape"].as_array_mut().unwrap();
                match rng.range(0, 5) {
                    0 => shape.reverse(),
                    1 => shape.push(json!(1)),
                    2 => {
                        shape.pop();
                    }
                    3 => shape.rotate_left(1),
                    _ => entry["dtype"] = json!("I32"),
                }
            }
            header["__metadata__"]["golden"] = json!(golden.to_string());
            // a tensor that lost an axis has another number of elements, and is no case
            let Ok(case) = Case::parse(Path::new("senseless"), &as_file(&header, &body)) else {
                continue;
            };
            LARGEST.store(0, Ordering::Relaxed);
            let start = Instant::now();
            let outcome = run(&ctx, &case, DType::F32);
            let (took, largest) = (start.elapsed(), LARGEST.load(Ordering::Relaxed));
            let what = || format!("{op} {seed}: {} {}", golden["params"], header);
            assert!(took < Duration::from_secs(10), "{took:?}: {}", what());
            assert!(largest <= 1 << 29, "an allocation of {largest} bytes: {}", what());
            match outcome {
                Ok(_) => ran += 1,
                Err(Stop::Refused(why) | Stop::Unsupported(why)) => {
                    assert!(!why.is_empty());
                    refused += 1;
                }
                Err(Stop::Failed(why)) => {
                    // the file is at fault, not the device and not this crate
                    let known =
                        why.starts_with("the case lacks") || why.contains("expected elements");
                    assert!(known, "{why}: {}", what());
                    refused += 1;
                }
            }
        }
        ctx.forget_kernels();
    }
    println!("{ran} ran, {refused} refused");
    assert!(ran > 50 && refused > 50, "{ran} {refused}");
}
