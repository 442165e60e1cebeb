//! No driver: every kernel that uses workgroup memory, with the numbers that the golden cases and
//! random problems give it, through the race check; and the same kernels with each of their
//! barriers taken out, which it must refuse.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::OnceLock;

use crate::context::Dispatched;
use crate::gaunt::{GauntArgs, GauntShape, GauntTensorProduct};
use crate::linear_attention::{RelativeAttention, RelativeAttentionArgs, RelativeAttentionShape};
use crate::test_support::{noop, races::races};
use crate::{Context, DType, DeviceClass, Result, Tensor, Tier};

use super::{Case, case_files, random_case, random_ops, run_guarded};

/// The kernels with workgroup memory and barriers.
const KERNELS: [&str; 11] = [
    "attention/decode:decode",
    "attention/flash:flash",
    "attention/groups:groups",
    "attention/tiled:tiled",
    "fft/pass:fft_pass",
    "gaunt/orders",
    "linear_attention/chunk_portable:chunk_portable",
    "linear_attention/tiled:tiled",
    "relative_attention/exact:exact",
    "relative_attention/largest:largest",
    "relative_attention/norm:norm",
];

/// Texts of kernels with workgroup memory, each with the dispatches that it was given.
fn dispatched() -> &'static BTreeMap<String, Vec<Dispatched>> {
    static ALL: OnceLock<BTreeMap<String, Vec<Dispatched>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut cases: Vec<Case> =
            case_files(&folder).unwrap().iter().map(|path| Case::read(path).unwrap()).collect();
        cases.extend(random_ops().filter_map(|op| random_case(op, 1)));
        // some of them long enough for several stages
        cases.extend((2..9).filter_map(|seed| random_case("fft", seed)));
        // and some of more features than a tile takes at a time
        cases.extend((2..6).filter_map(|seed| random_case("kernel_rpe", seed)));
        let mut seen = HashSet::new();
        let mut all: BTreeMap<String, Vec<Dispatched>> = BTreeMap::new();
        // kernels for GPUs and for CPUs are cut differently
        for (tier, class) in [
            (Tier::Portable, DeviceClass::Cpu),
            (Tier::Portable, DeviceClass::Gpu),
            (Tier::Subgroup, DeviceClass::Gpu),
        ] {
            let ctx = noop().with_tier(tier).unwrap().with_class(class);
            for case in &cases {
                // the results are of no device; the dispatches are those of any
                let _ = run_guarded(&ctx, case, DType::F32, 0);
            }
            transform(&ctx).unwrap();
            gaunt(&ctx).unwrap();
            let found = ctx.take_dispatched();
            // a state without outputs, which no case has
            let reads = "const READS: bool = true;";
            let blind = found
                .iter()
                .filter(|l| l.wgsl.contains("const WRITES: bool = true;") && l.wgsl.contains(reads))
                .map(|l| {
                    let wgsl = l.wgsl.replace(reads, "const READS: bool = false;");
                    Dispatched { wgsl, ..l.clone() }
                });
            for launch in blind.chain(found.iter().cloned()) {
                // long texts of attention that differ in options alone touch workgroup memory alike
                let long = launch.wgsl.len() > 40_000 && launch.wgsl.contains("fn piece_of(");
                let alike = |wgsl: &&String| {
                    let cut =
                        |text: &str| text.split("const TX: ").nth(1).map(|t| t[..900].to_owned());
                    long && cut(wgsl).is_some_and(|own| Some(own) == cut(&launch.wgsl))
                };
                if launch.wgsl.contains("var<workgroup>")
                    && all.keys().filter(alike).count() < 2
                    && seen.insert(launch.clone())
                {
                    all.entry(launch.wgsl.clone()).or_default().push(launch);
                }
            }
        }
        all
    })
}

/// Relative attention by transforms, longer than any case, with rows made again.
fn transform(ctx: &Context) -> Result<()> {
    let shape = RelativeAttentionShape { batch: 1, seq: 600, heads: 2, key_dim: 2, value_dim: 2 };
    let plan = RelativeAttention::default().plan(ctx, shape)?;
    assert!(plan.by_transforms());
    let [q, k, v, o] = [0; 4].map(|_| Tensor::zeros(ctx, [1, 600, 2, 2], DType::F32).unwrap());
    let b = Tensor::zeros(ctx, [2, 1199], DType::F32)?;
    let scratch = plan.scratch(ctx)?;
    let args = RelativeAttentionArgs {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        b: b.view(),
        w: None,
        o: o.view(),
        scratch: scratch.as_ref(),
    };
    plan.encode(ctx, &mut ctx.device.create_command_encoder(&Default::default()), &args)
}

/// Gaunt products of degrees whose lanes share a product, with a workgroup that is not full.
fn gaunt(ctx: &Context) -> Result<()> {
    for (l, lmax_out) in [(5, 5), (7, 3)] {
        let op = GauntTensorProduct::new(l, lmax_out);
        let plan = op.plan(ctx, GauntShape { batch: 2, channels: 30 })?;
        let rows = |l: u32| Tensor::zeros(ctx, [2, 30, (l + 1).pow(2)], DType::F32);
        let (x, y, z) = (rows(l)?, rows(l)?, rows(lmax_out)?);
        let args = GauntArgs::new(x.view(), y.view(), z.view());
        plan.encode(ctx, &mut ctx.device.create_command_encoder(&Default::default()), &args)?;
    }
    Ok(())
}

/// What the check finds in the first workgroup and the last of a dispatch.
fn check(launch: &Dispatched, wgsl: &str) -> Result<BTreeSet<String>, String> {
    let last = launch.groups.map(|n| n - 1);
    let mut found = races(wgsl, &launch.params, launch.groups, [0; 3])?;
    if last != [0; 3] {
        found.extend(races(wgsl, &launch.params, launch.groups, last)?);
    }
    Ok(found)
}

/// File and entry point of a kernel.
fn kernel(launch: &Dispatched) -> &str {
    launch.label.split(' ').next().unwrap_or_default()
}

#[test]
fn no_kernel_races() {
    let (mut faults, mut kernels) = (BTreeSet::new(), BTreeSet::new());
    // sequences of different lengths: the table that says how long is read, not computed
    let mut not_followed = BTreeMap::new();
    for (wgsl, launches) in dispatched() {
        for launch in launches.iter().take(2) {
            match check(launch, wgsl) {
                Ok(found) => {
                    kernels.insert(kernel(launch));
                    faults.extend(found.into_iter().map(|f| format!("{}: {f}", launch.label)));
                }
                Err(why) => {
                    not_followed.insert(wgsl, format!("{}: {why}", launch.label));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(kernels.into_iter().collect::<Vec<_>>(), KERNELS);
    for (wgsl, why) in not_followed {
        assert!(wgsl.contains("const RAGGED: bool = true;") && why.contains("on data"), "{why}");
    }
}

#[test]
fn every_barrier_is_missed() {
    // by kernel and place among its barriers, whether some dispatch needs it.
    let mut needed: BTreeMap<(&str, usize), bool> = BTreeMap::new();
    for (wgsl, launches) in dispatched() {
        let is_barrier = |line: &str| line.trim() == "workgroupBarrier();";
        let barriers = wgsl.lines().filter(|line| is_barrier(line)).count();
        for place in 0..barriers {
            let key = (kernel(&launches[0]), place);
            if needed.get(&key) == Some(&true) {
                continue;
            }
            let mut at = 0;
            let without: Vec<&str> = wgsl
                .lines()
                .map(|line| {
                    at += usize::from(is_barrier(line));
                    if is_barrier(line) && at == place + 1 { "" } else { line }
                })
                .collect();
            let without = without.join("\n");
            let seen = |launch: &Dispatched| check(launch, &without).is_ok_and(|f| !f.is_empty());
            let seen = launches.iter().any(seen);
            *needed.entry(key).or_default() |= seen;
        }
    }
    let idle: Vec<_> = needed.iter().filter(|(_, needed)| !**needed).map(|(key, _)| key).collect();
    assert!(idle.is_empty(), "nothing is found without these barriers: {idle:?}");
    let kernels: BTreeSet<&str> = needed.keys().map(|(kernel, _)| *kernel).collect();
    assert_eq!(kernels.into_iter().collect::<Vec<_>>(), KERNELS);
}
