//! The WGSL of one pass: `shaders/fft/pass.wgsl` with its loads, stages and stores written out.

use std::fmt::Write as _;

use super::{
    codelet::Codelet,
    recipe::{Pairing, Pass},
    tables::{digits, entries, exponents},
};
use crate::{
    Caps,
    shader::{Key, source},
};

/// How a side of a pass lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// One complex number at a time.
    Single,
    /// The two numbers of a `vec4` are neighbours, and start at an even place.
    Pair,
    /// The points that an invocation holds are neighbours and even in number (one stage only).
    Run,
    /// Real numbers, one at a time.
    Real,
}

/// Where the input is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// The caller's, read only.
    Input,
    /// Scratch, which shares its buffer with the output.
    Scratch,
    /// The output itself.
    InPlace,
}

/// Everything that changes the text of a pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub(crate) pass: Pass,
    /// Units that a slot takes.
    pub(crate) repeat: u32,
    pub(crate) origin: Origin,
    pub(crate) input: Access,
    pub(crate) output: Access,
    /// Rows lie along the fast axis, see the shader.
    pub(crate) rows_fast: bool,
    /// The input is the first half of a Hermitian spectrum.
    pub(crate) hermitian: bool,
    /// Swap real and imaginary parts on load: the inverse of `x` is the swapped forward transform
    /// of the swapped `x`.
    pub(crate) swap_in: bool,
    /// Multiply by a table on load, and take points past the input's length as zero.
    pub(crate) table_in: bool,
    /// Swap before the table on store.
    pub(crate) swap_before: bool,
    /// Multiply by a table on store.
    pub(crate) table_out: bool,
    /// Swap after the table on store.
    pub(crate) swap_after: bool,
    /// Store only the first `out_len` points.
    pub(crate) limit: bool,
    /// Multiply by `scale` on store.
    pub(crate) scale: bool,
}

impl Variant {
    /// Whether points can be loaded by `vec4`.
    pub(crate) fn plain_input(&self) -> bool {
        !self.hermitian && !self.table_in && self.input != Access::Real
    }

    /// Whether points can be stored by `vec4`.
    pub(crate) fn plain_output(&self) -> bool {
        !self.table_out && !self.limit && self.output != Access::Real
    }

    pub(crate) fn key(&self, caps: &Caps) -> Key {
        let pass = &self.pass;
        let (lanes, slots) = (pass.lanes(), pass.slots(caps));
        // neighbouring invocations should touch neighbouring memory
        let lane_fast = self.input != Access::Pair || pass.pairing == Pairing::Points;
        let u = |n: u32| format!("{n}u");
        Key {
            source: source!("fft/pass.wgsl"),
            entry: "fft_pass",
            spec: vec![
                ("LANES", u(lanes)),
                ("SLOTS", u(slots)),
                ("REPEAT", u(self.repeat)),
                ("SHARED", u(pass.shared().max(1))),
                ("CELLS", self.cells()),
                ("RADIX", u(pass.radix)),
                ("PAIR_ROWS", (pass.pairing == Pairing::Rows).to_string()),
                ("ROWS_FAST", self.rows_fast.to_string()),
                ("LANE_FAST", lane_fast.to_string()),
                ("HERMITIAN", self.hermitian.to_string()),
                ("SWAP_IN", self.swap_in.to_string()),
                ("TABLE_IN", self.table_in.to_string()),
                ("SWAP_BEFORE", self.swap_before.to_string()),
                ("TABLE_OUT", self.table_out.to_string()),
                ("SWAP_AFTER", self.swap_after.to_string()),
                ("LIMIT", self.limit.to_string()),
                ("SCALE", self.scale.to_string()),
                ("BINDINGS", self.bindings()),
                ("LANE", self.lane()),
                ("BEFORE", self.before()),
                ("BODY", self.body()),
            ],
            tensors: vec![],
        }
    }

    /// Workgroup memory.
    fn cells(&self) -> String {
        let cell = if self.pass.halved { "vec2<f32>" } else { "vec4<f32>" };
        format!("var<workgroup> shared_points: array<{cell}, SLOTS * SHARED>;\n")
    }

    fn bindings(&self) -> String {
        let cell = |access| match access {
            Access::Single => "vec2<f32>",
            Access::Pair | Access::Run => "vec4<f32>",
            Access::Real => "f32",
        };
        let get = |name: &str, access| match access {
            Access::Single => format!("return {name}[i];"),
            Access::Pair | Access::Run => {
                format!("let v = {name}[i >> 1u]; return select(v.xy, v.zw, (i & 1u) == 1u);")
            }
            Access::Real => format!("return vec2<f32>({name}[i], 0.0);"),
        };
        let put = match self.output {
            Access::Single => "dst[i] = x;",
            Access::Pair | Access::Run => {
                "let h = 2u * (i & 1u); dst[i >> 1u][h] = x.x; dst[i >> 1u][h + 1u] = x.y;"
            }
            Access::Real => "dst[i] = x.x;",
        };
        let mut out = String::new();
        let (name, access) = match self.origin {
            Origin::Input => ("src", Some("read")),
            Origin::Scratch => ("src", Some("read_write")),
            Origin::InPlace => ("dst", None),
        };
        if let Some(access) = access {
            let cell = cell(self.input);
            let _ =
                writeln!(out, "@group(0) @binding(1) var<storage, {access}> src: array<{cell}>;");
        }
        let _ = writeln!(
            out,
            "@group(0) @binding(2) var<storage, read_write> dst: array<{}>;",
            cell(self.output)
        );
        let _ = writeln!(out, "fn src_get(i: u32) -> vec2<f32> {{ {} }}", get(name, self.input));
        let _ = writeln!(out, "fn dst_put(i: u32, x: vec2<f32>) {{ {put} }}");
        out
    }

    /// Built-in values, as parameters, and the places that follow from them.
    fn lane(&self) -> String {
        if self.pass.shuffle.is_some() {
            return "    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) subgroup_size: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lane = subgroup_lane % LANES;
    let slot = subgroup * (subgroup_size / LANES) + subgroup_lane / LANES;
"
            .into();
        }
        "    @builtin(local_invocation_index) lid: u32,
) {
    let lane = select(lid / SLOTS, lid % LANES, LANE_FAST);
    let slot = select(lid % SLOTS, lid / LANES, LANE_FAST);
"
        .into()
    }

    /// What is the same for every unit.
    fn before(&self) -> String {
        let pass = &self.pass;
        let mut out = String::from("    // once for all units\n");
        if let Some(lanes) = pass.shuffle {
            self.lane_twiddles(&mut out, pass.stages[0]);
            let mut bit = 1;
            while bit < lanes {
                let _ = writeln!(out, "    let odd{bit} = (lane & {bit}u) != 0u;");
                bit *= 2;
            }
        }
        out
    }

    /// From the first load to the last store.
    fn body(&self) -> String {
        let pass = &self.pass;
        let mut out = String::new();
        let mut p = 1;
        let mut table = 0;
        let mut written = Writes::default();
        for (s, &r) in pass.stages.iter().enumerate() {
            let last = s + 1 == pass.stages.len();
            let busy = pass.butterflies(r);
            let idle = busy < pass.lanes();
            let _ = writeln!(out, "    // stage {s}: radix {r}");
            let lane = if idle { format!("min(lane, {}u)", busy - 1) } else { "lane".into() };
            let e = format!("s{s}_e");
            match pass.pairing {
                Pairing::Points => writeln!(out, "    let {e} = 2u * {lane};"),
                Pairing::Rows => writeln!(out, "    let {e} = {lane};"),
            }
            .ok();
            if s == 0 {
                self.load_places(&mut out, r);
                for j in 0..r {
                    self.load(&mut out, r, j);
                }
            } else {
                self.stage_twiddles(&mut out, s, r, p, table);
                table += (p / if pass.pairing == Pairing::Points { 2 } else { 1 })
                    * entries(r, pass.pairing);
                if pass.halved {
                    self.halves_in(&mut out, s, r, &written);
                }
                for j in 0..r {
                    self.exchange_in(&mut out, s, r, j);
                }
            }
            let results = Codelet::new(r).wgsl(&format!("s{s}_"), &mut out);
            if last {
                self.store(&mut out, &e, p, idle.then_some(busy), &results);
            } else if let Some(lanes) = pass.shuffle {
                self.shuffled(&mut out, lanes, &results);
                break;
            } else {
                written = self.writes(&mut out, s, r, p, idle.then_some(busy), &results);
                if !pass.halved {
                    if s > 0 {
                        // everyone has read the points that are overwritten now
                        let _ = writeln!(out, "    workgroupBarrier();");
                    }
                    written.all(&mut out, "");
                    let _ = writeln!(out, "    workgroupBarrier();");
                }
            }
            p *= r;
        }
        out
    }

    /// Where the points of stage 0 lie.
    fn load_places(&self, out: &mut String, r: u32) {
        let m = self.pass.radix / r;
        match (self.input, self.pass.pairing) {
            (Access::Run, _) => {
                let _ = writeln!(out, "    let s0_h0 = in0 >> 1u;\n    let s0_h1 = in1 >> 1u;");
            }
            (Access::Pair, Pairing::Points) => {
                let _ = writeln!(out, "    let s0_h = (in0 + s0_e) >> 1u;");
            }
            (Access::Pair, Pairing::Rows) => {
                // both even, so that halves add up
                let _ = writeln!(
                    out,
                    "    let s0_h = (in0 + (t0 + s0_e * params.m) * params.in_step) >> 1u;"
                );
                let _ = writeln!(out, "    let s0_d = ({m}u * params.m * params.in_step) >> 1u;");
            }
            (_, Pairing::Points) => {}
            (_, Pairing::Rows) => {
                let _ = writeln!(out, "    let s0_o = s0_e * params.m;");
            }
        }
        if self.pass.p > 1 {
            self.pass_twiddles(out, r);
        }
    }

    /// Twiddles of a later pass that are loaded: `s0_we` for the `exponents`, and for the low
    /// digits `s0_lj`, which have the row's own factor in them.
    fn pass_twiddles(&self, out: &mut String, r: u32) {
        let pass = &self.pass;
        let rows = pass.radix / r;
        let get = |j: String| {
            let at = format!("params.twiddle + {j} * params.p");
            if !self.rows_fast {
                format!("table_get({at} + k0).xyxy")
            } else if pass.p.is_multiple_of(2) && pass.m.is_multiple_of(2) {
                format!("table[({at} + k0) >> 1u]")
            } else {
                format!("vec4<f32>(table_get({at} + k0), table_get({at} + k1))")
            }
        };
        for (i, e) in (0u32..).zip(exponents(r)) {
            let _ = writeln!(out, "    let s0_w{e} = {};", get(format!("{}u", rows + i)));
        }
        if rows > 1 {
            let _ = writeln!(out, "    let s0_l0 = {};", get("s0_e".into()));
        }
        for low in 1..digits(r) {
            let value =
                if rows > 1 { format!("multiply(s0_l0, s0_w{low})") } else { format!("s0_w{low}") };
            let _ = writeln!(out, "    let s0_l{low} = {value};");
        }
    }

    /// Point `j` of stage 0, `s0_ij`, with the twiddle `w_{pR}^{kj}` of a later pass.
    fn load(&self, out: &mut String, r: u32, j: u32) {
        let pass = &self.pass;
        let c = j * (pass.radix / r);
        let name = if pass.p > 1 { "s0_x" } else { "s0_i" };
        let source = if self.origin == Origin::InPlace { "dst" } else { "src" };
        let swap = if self.swap_in { ".yxwz" } else { "" };
        let value = match (self.input, pass.pairing) {
            (Access::Run, _) => {
                let (pair, half) = (j / 2, if j.is_multiple_of(2) { "xy" } else { "zw" });
                if j.is_multiple_of(2) {
                    let _ = writeln!(out, "    let s0_a{pair} = {source}[s0_h0 + {pair}u]{swap};");
                    let _ = writeln!(out, "    let s0_b{pair} = {source}[s0_h1 + {pair}u]{swap};");
                }
                format!("vec4<f32>(s0_a{pair}.{half}, s0_b{pair}.{half})")
            }
            (Access::Pair, Pairing::Points) => format!("{source}[s0_h + {}u]{swap}", c / 2),
            (Access::Pair, Pairing::Rows) => format!("{source}[s0_h + {j}u * s0_d]{swap}"),
            (_, Pairing::Points) => {
                format!("vec4<f32>(fetch(in0, s0_e + {c}u), fetch(in0, s0_e + {}u))", c + 1)
            }
            (_, Pairing::Rows) => {
                let _ = writeln!(out, "    let s0_o{j} = s0_o + {c}u * params.m;");
                format!("vec4<f32>(fetch(in0, t0 + s0_o{j}), fetch(in1, t1 + s0_o{j}))")
            }
        };
        let _ = writeln!(out, "    let {name}{j} = {value};");
        if pass.p > 1 {
            let a = digits(r);
            let w = match (j % a, j / a * a) {
                (0, 0) if pass.radix == r => None,
                (0, high) if pass.radix == r => Some(format!("s0_w{high}")),
                (low, 0) => Some(format!("s0_l{low}")),
                (low, high) => Some(format!("multiply(s0_l{low}, s0_w{high})")),
            };
            let value = w.map_or(format!("s0_x{j}"), |w| format!("multiply(s0_x{j}, {w})"));
            let _ = writeln!(out, "    let s0_i{j} = {value};");
        }
    }

    /// Twiddles of a later stage that are loaded.
    fn stage_twiddles(&self, out: &mut String, s: usize, r: u32, p: u32, table: u32) {
        let pass = &self.pass;
        let (m, count) = (pass.radix / r, entries(r, pass.pairing));
        let points = pass.pairing == Pairing::Points;
        // in the last stage every row is below p
        let k = if m == p { format!("s{s}_e") } else { format!("(s{s}_e % {p}u)") };
        let row = if points { format!("({k} >> 1u)") } else { k };
        let _ = writeln!(out, "    let s{s}_w = params.stages + {table}u + {row} * {count}u;");
        for (i, e) in exponents(r).into_iter().enumerate() {
            if points {
                let _ = writeln!(out, "    let s{s}_w{e} = table[s{s}_w + {i}u];");
            } else {
                if i % 2 == 0 {
                    let _ = writeln!(out, "    let s{s}_p{i} = table[s{s}_w + {}u];", i / 2);
                }
                let half = if i % 2 == 0 { "xyxy" } else { "zwzw" };
                let _ = writeln!(out, "    let s{s}_w{e} = s{s}_p{}.{half};", i - i % 2);
            }
        }
    }

    /// Where point `j` of a later stage lies in workgroup memory.
    fn shared_place(&self, s: usize, r: u32, j: u32) -> String {
        let m = self.pass.radix / r;
        let at = if self.pass.pairing == Pairing::Points {
            format!("(s{s}_e + {}u) >> 1u", j * m)
        } else {
            format!("s{s}_e + {}u", j * m)
        };
        format!("shared_points[base + ({at})]")
    }

    /// An exchange by halves of every `vec4`: all write and read the first, then the second.
    fn halves_in(&self, out: &mut String, s: usize, r: u32, written: &Writes) {
        for (half, name) in [("xy", 'a'), ("zw", 'b')] {
            if s > 1 || half == "zw" {
                // everyone has read the points that are overwritten now
                let _ = writeln!(out, "    workgroupBarrier();");
            }
            written.all(out, half);
            let _ = writeln!(out, "    workgroupBarrier();");
            for j in 0..r {
                let _ = writeln!(out, "    let s{s}_{name}{j} = {};", self.shared_place(s, r, j));
            }
        }
    }

    /// Point `j` of a later stage from workgroup memory, times its twiddle.
    fn exchange_in(&self, out: &mut String, s: usize, r: u32, j: u32) {
        let x = if self.pass.halved {
            format!("vec4<f32>(s{s}_a{j}, s{s}_b{j})")
        } else {
            self.shared_place(s, r, j)
        };
        let a = digits(r);
        let w = match (j % a, j / a * a) {
            (0, 0) => None,
            (0, e) | (e, 0) => Some(format!("s{s}_w{e}")),
            (low, high) => Some(format!("multiply(s{s}_w{low}, s{s}_w{high})")),
        };
        let value = w.map_or(x.clone(), |w| format!("multiply({x}, {w})"));
        let _ = writeln!(out, "    let s{s}_i{j} = {value};");
    }

    /// The second stage of two, on what the lanes of a subgroup have in registers: lane `l` holds
    /// row (or pair of rows) `l`; it gets the points `k` that it stores.
    fn shuffled(&self, out: &mut String, lanes: u32, results: &[String]) {
        let pass = &self.pass;
        let [first, last] = [pass.stages[0], pass.stages[1]];
        let points = pass.pairing == Pairing::Points;
        // twiddles, while a register still belongs to one row
        for (k, x) in results.iter().enumerate() {
            let value = if k == 0 { x.clone() } else { format!("multiply({x}, t_w{k})") };
            let _ = writeln!(out, "    let t_x{k} = {value};");
        }
        let codelet = Codelet::new(last);
        // halves of a block: neighbouring points that one lane gets
        let (halves, run) = (if points { 2 } else { 1 }, self.output == Access::Run);
        let halves = if run { 2 } else { halves };
        let size = lanes * halves;
        for block in 0..first / size {
            let prefix = format!("b{block}_");
            let e = format!("{prefix}e");
            let _ = writeln!(out, "    // points from {}", block * size);
            let _ = writeln!(out, "    let {e} = {halves}u * lane + {}u;", block * size);
            let transposed: Vec<Vec<String>> = (0..halves)
                .map(|half| {
                    let registers = (0..lanes)
                        .map(|r| format!("t_x{}", block * size + halves * r + half))
                        .collect();
                    transpose(out, &format!("{prefix}h{half}_"), registers)
                })
                .collect();
            if points {
                let pairs = transposed[0].iter().zip(&transposed[1]).take(lanes as usize);
                for (lane, (x, y)) in pairs.enumerate() {
                    for (j, half) in [(2 * lane, "xy"), (2 * lane + 1, "zw")] {
                        let _ = writeln!(
                            out,
                            "    let {prefix}i{j} = vec4<f32>({x}.{half}, {y}.{half});"
                        );
                    }
                }
                let results = codelet.wgsl(&prefix, out);
                self.store(out, &e, first, None, &results);
                continue;
            }
            let results: Vec<Vec<String>> = transposed
                .iter()
                .enumerate()
                .map(|(half, registers)| {
                    let prefix = format!("{prefix}{half}_");
                    for (lane, x) in registers.iter().enumerate() {
                        let _ = writeln!(out, "    let {prefix}i{lane} = {x};");
                    }
                    codelet.wgsl(&prefix, out)
                })
                .collect();
            if run {
                self.store_runs(out, &e, first, &results[0], &results[1]);
            } else {
                self.store(out, &e, first, None, &results[0]);
            }
        }
    }

    /// Results `e + k p` and, beside them, `e + 1 + k p` of both rows.
    fn store_runs(&self, out: &mut String, e: &str, p: u32, even: &[String], odd: &[String]) {
        let _ = writeln!(out, "    if live {{");
        for (row, half) in [(0, "xy"), (1, "zw")] {
            let _ = writeln!(out, "    {}", if row == 0 { "{" } else { "if both {" });
            let _ = writeln!(out, "        let h = (out{row} + o{row} + {e}) >> 1u;");
            for ((k, x), y) in (0u32..).zip(even).zip(odd) {
                let _ = writeln!(
                    out,
                    "        dst[h + {}u] = finish(vec4<f32>({x}.{half}, {y}.{half}));",
                    k * p / 2
                );
            }
            let _ = writeln!(out, "    }}");
        }
        let _ = writeln!(out, "    }}");
    }

    /// `t_wk = w^{q k}`, `q` the lane's row or rows.
    fn lane_twiddles(&self, out: &mut String, r: u32) {
        let points = self.pass.pairing == Pairing::Points;
        let count = entries(r, self.pass.pairing);
        let _ = writeln!(out, "    let t_w = params.stages + lane * {count}u;");
        for (i, e) in exponents(r).into_iter().enumerate() {
            if points {
                let _ = writeln!(out, "    let t_w{e} = table[t_w + {i}u];");
            } else {
                if i % 2 == 0 {
                    let _ = writeln!(out, "    let t_p{i} = table[t_w + {}u];", i / 2);
                }
                let half = if i % 2 == 0 { "xyxy" } else { "zwzw" };
                let _ = writeln!(out, "    let t_w{e} = t_p{}.{half};", i - i % 2);
            }
        }
        let a = digits(r);
        for k in (1..r).filter(|k| k % a != 0 && k / a != 0) {
            let (low, high) = (k % a, k / a * a);
            let _ = writeln!(out, "    let t_w{k} = multiply(t_w{low}, t_w{high});");
        }
    }

    /// Where the results of a stage go in workgroup memory, for the next.
    fn writes(
        &self,
        out: &mut String,
        s: usize,
        r: u32,
        p: u32,
        busy: Option<u32>,
        results: &[String],
    ) -> Writes {
        let mut list = Vec::new();
        let e = format!("s{s}_e");
        let points = self.pass.pairing == Pairing::Points;
        if p == 1 {
            let _ = writeln!(out, "    let s{s}_to = {e} * {r}u;");
        } else {
            let _ = writeln!(out, "    let s{s}_to = ({e} / {p}u) * {}u + {e} % {p}u;", p * r);
        }
        let mut write = |at: String, halves: [String; 2]| {
            list.push((format!("shared_points[base + ({at})]"), halves));
        };
        if points && p == 1 {
            for j in (0..r as usize).step_by(2) {
                let (x, y) = (&results[j], &results[j + 1]);
                for (row, half) in [(0, "xy"), (r as usize, "zw")] {
                    write(
                        format!("(s{s}_to + {}u) >> 1u", row + j),
                        [format!("{x}.{half}"), format!("{y}.{half}")],
                    );
                }
            }
        } else {
            let half = if points { " >> 1u" } else { "" };
            for (j, x) in results.iter().enumerate() {
                write(
                    format!("(s{s}_to + {}u){half}", u32::try_from(j).unwrap_or(u32::MAX) * p),
                    [format!("{x}.xy"), format!("{x}.zw")],
                );
            }
        }
        Writes { busy, list }
    }

    /// The results of the last stage to memory, under one condition.
    fn store(&self, out: &mut String, e: &str, p: u32, busy: Option<u32>, results: &[String]) {
        let places = match (self.output, self.pass.pairing) {
            (Access::Run, _) => {
                format!(
                    "    let {e}_h0 = (out0 + o0) >> 1u;\n    let {e}_h1 = (out1 + o1) >> 1u;\n"
                )
            }
            (Access::Pair, Pairing::Points) => format!("    let {e}_h = (out0 + {e}) >> 1u;\n"),
            (Access::Pair, Pairing::Rows) => format!(
                "    let {e}_h = (out0 + (o0 + {e} * params.p) * params.out_step) >> 1u;
    let {e}_d = ({p}u * params.p * params.out_step) >> 1u;\n"
            ),
            (_, Pairing::Points) => String::new(),
            (_, Pairing::Rows) => {
                format!("    let {e}_o = {e} * params.p;\n    let {e}_d = {p}u * params.p;\n")
            }
        };
        out.push_str(&places);
        let guard = busy.map_or(String::new(), |busy| format!(" && lane < {busy}u"));
        let _ = writeln!(out, "    if live{guard} {{");
        let mut line = |text: String| {
            let _ = writeln!(out, "        {text}");
        };
        let results = || (0u32..).zip(results);
        match (self.output, self.pass.pairing) {
            (Access::Run, _) => {
                let names: Vec<&String> = results().map(|(_, x)| x).collect();
                for (row, half) in [(0, "xy"), (1, "zw")] {
                    line(if row == 0 { "{".into() } else { "if both {".into() });
                    for (pair, x) in names.chunks(2).enumerate() {
                        let (a, b) = (x[0], x[1]);
                        line(format!(
                            "dst[{e}_h{row} + {pair}u] = finish(vec4<f32>({a}.{half}, {b}.{half}));"
                        ));
                    }
                    line("}".into());
                }
            }
            (Access::Pair, Pairing::Points) => {
                for (k, x) in results() {
                    line(format!("dst[{e}_h + {}u] = finish({x});", k * p / 2));
                }
            }
            (Access::Pair, Pairing::Rows) => {
                for (k, x) in results() {
                    line(format!("dst[{e}_h + {k}u * {e}_d] = finish({x});"));
                }
            }
            (_, Pairing::Points) => {
                for (k, x) in results() {
                    line(format!("put(out0, {e} + {}u, {x}.xy);", k * p));
                    line(format!("put(out0, {e} + {}u, {x}.zw);", k * p + 1));
                }
            }
            (_, Pairing::Rows) => {
                for (row, half) in [(0, "xy"), (1, "zw")] {
                    line(if row == 0 { "{".into() } else { "if both {".into() });
                    for (k, x) in results() {
                        line(format!("put(out{row}, o{row} + {e}_o + {k}u * {e}_d, {x}.{half});"));
                    }
                    line("}".into());
                }
            }
        }
        let _ = writeln!(out, "    }}");
    }
}

/// What a stage leaves in workgroup memory.
#[derive(Default)]
struct Writes {
    /// The first lanes alone have something.
    busy: Option<u32>,
    /// Places, and the halves of the `vec4` there.
    list: Vec<(String, [String; 2])>,
}

impl Writes {
    /// The stores, whole or of one half.
    fn all(&self, out: &mut String, half: &str) {
        if let Some(busy) = self.busy {
            let _ = writeln!(out, "    if lane < {busy}u {{");
        }
        for (place, [xy, zw]) in &self.list {
            let value = match half {
                "xy" => xy.clone(),
                "zw" => zw.clone(),
                _ => match (xy.strip_suffix(".xy"), zw.strip_suffix(".zw")) {
                    (Some(x), Some(y)) if x == y => x.into(),
                    _ => format!("vec4<f32>({xy}, {zw})"),
                },
            };
            let _ = writeln!(out, "    {place} = {value};");
        }
        if self.busy.is_some() {
            let _ = writeln!(out, "    }}");
        }
    }
}

/// Register `r` of lane `l` becomes register `l` of lane `r`: exchanges across each bit in turn.
fn transpose(out: &mut String, prefix: &str, mut registers: Vec<String>) -> Vec<String> {
    let mut bit = 1;
    while bit < registers.len() {
        for i in (0..registers.len()).filter(|i| i & bit == 0) {
            let (x, y) = (registers[i].clone(), registers[i | bit].clone());
            let name = format!("{prefix}{bit}_{i}");
            let _ = writeln!(
                out,
                "    let {name}g = subgroupShuffleXor(select({y}, {x}, odd{bit}), {bit}u);"
            );
            let _ = writeln!(out, "    let {name}x = select({x}, {name}g, odd{bit});");
            let _ = writeln!(out, "    let {name}y = select({name}g, {y}, odd{bit});");
            registers[i] = format!("{name}x");
            registers[i | bit] = format!("{name}y");
        }
        bit *= 2;
    }
    registers
}
