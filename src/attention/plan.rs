//! Checks, choice of tiles, kernels.

use std::sync::Arc;

use super::{
    Algorithm, Attention, AttentionShape, BiasPositions, CausalAlignment, GroupTiles, MAX_HEAD_DIM,
    MAX_SEQ, Mask, OP, RegisterTiles, SPLIT_KEYS, SPLIT_KEYS_MANY, Schedule, Split, Tiles, merge,
};
use crate::{
    Caps, Context, DType, Error, Result, Tier,
    caps::UNROLLED,
    element::{Eights, TensorDecl},
    home::Home,
    shader::{Key, Source, source},
    texels,
    tuning::{Tuned, plan_or, refuse},
};

const FLASH: Source = source!("attention/flash.wgsl");
const DECODE: Source = source!("attention/decode.wgsl");
const GROUPS: Source = source!("attention/groups.wgsl");
const TILED: Source = source!("attention/tiled.wgsl");
const SCORES: Source = source!("attention/unfused_scores.wgsl");
const SOFTMAX: Source = source!("attention/unfused_softmax.wgsl");
const VALUES: Source = source!("attention/unfused_values.wgsl");

/// A checked and compiled attention. Encode it as often as you like.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    pub(super) shape: AttentionShape,
    pub(super) options: Attention,
    pub(super) tier: Tier,
    pub(super) scale: f32,
    /// The device is a CPU: its own exp2 is dear, and so is compiling a load.
    cpu: bool,
    /// Lanes that load for their subgroup.
    lanes: u32,
    /// Keys staged at a time by the portable kernel.
    tile_k: u32,
    /// They are staged in a loop.
    stage_rolled: bool,
    /// So few rows that staging is no gain.
    few: bool,
    /// Which kernel, with its tiles.
    schedule: Schedule,
    /// The decoding kernel may read 64-bit words.
    wide_loads: bool,
    /// Outputs are rescaled only when a score is too far from the running reference.
    lazy: bool,
    /// Queries, keys and values are better copied into textures.
    pub(super) texels: bool,
    /// Keys of one part, where keys are shared out.
    pub(super) split: Option<u32>,
    /// The device it was planned on, if any.
    pub(super) home: Option<Arc<Home>>,
}

/// What of a call changes the kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    /// Rows of q, of k and v, and of o start at multiples of four elements.
    pub(super) aligned: [bool; 3],
    /// Rows of k and v start at multiples of eight elements.
    pub(super) aligned8: bool,
    pub(super) lse: bool,
    /// The bias is f32, not the plan's type.
    pub(super) bias_f32: bool,
    pub(super) metric_aligned: bool,
    /// Rows of the boolean mask start at multiples of four.
    pub(super) mask_aligned: bool,
    /// Those of the bias start at multiples of two.
    pub(super) bias_aligned: bool,
    /// q, k and v are read from textures.
    pub(super) texels: bool,
    /// Which of q, k and v lie in the buffer of an output.
    pub(super) beside: [bool; 3],
}

impl Attention {
    /// Checks the problem, chooses tiles, compiles.
    ///
    /// # Errors
    /// [`Error::Shape`] for a size that is not accepted, [`Error::Value`] for an option out of its
    /// range, [`Error::Argument`] for options that exclude each other, [`Error::Limit`] where the
    /// device or the integers are too small,
    /// [`Error::Compile`], [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, shape: AttentionShape) -> Result<AttentionPlan> {
        let mut plan = self.design_tuned(ctx, shape)?;
        plan.home = Some(Arc::clone(ctx.home()));
        for key in plan.keys(plan.usual()) {
            ctx.kernel(key)?;
        }
        Ok(plan)
    }

    /// [`Attention::design`], with the tiles that the context's table has for it.
    fn design_tuned(&self, ctx: &Context, shape: AttentionShape) -> Result<AttentionPlan> {
        let caps = &ctx.caps;
        let tunable = self.tunable() && self.for_gpu(caps, &shape).is_none();
        let tunable = tunable && !self.decodes(caps, &shape);
        let tuned = tunable.then(|| ctx.tuning()).flatten().and_then(|table| {
            let entry = table.entries.get(&self.tuning_key(caps, &shape))?;
            let &Tuned::Attention { workgroup, queries, block_k } = entry else {
                return Some(Err(refuse(OP, "the entry is of another operator")));
            };
            let tiles = Tiles { workgroup, queries, block_k };
            if !self.candidates(caps, &shape).contains(&tiles) {
                return Some(Err(refuse(OP, &format!("{tiles:?} is no candidate here"))));
            }
            let schedule = Some(Schedule::Rows(tiles));
            let plan = Self { schedule, ..*self }.design(caps, shape);
            Some(plan.map(|plan| AttentionPlan { options: *self, ..plan }))
        });
        plan_or(|| self.tuning_key(caps, &shape), tuned, || self.design(caps, shape))
    }

    /// Whether a table is asked: not where options constrain tiles by more than their sizes.
    fn tunable(&self) -> bool {
        let plain = Self {
            mask: self.mask,
            scale: self.scale,
            dtype: self.dtype,
            split: self.split,
            ..Self::default()
        };
        *self == plain
    }

    /// The class of problems that a [`Tuning`](crate::Tuning) knows this one by. Neither the batch
    /// nor the number of keys is part of it: a row's bits must not depend on them.
    pub fn tuning_key(&self, caps: &Caps, shape: &AttentionShape) -> String {
        format!(
            "attention {} {} d{} v{} group{} {} {}",
            self.dtype,
            caps.tier,
            shape.head_dim,
            shape.head_dim_v,
            shape.heads / shape.heads_kv.max(1),
            if self.mask == Mask::None { "full" } else { "causal" },
            if self.split_keys(caps, shape).is_some() { "split" } else { "whole" },
        )
    }

    /// Tiles worth measuring: those of [`Attention::supported_tiles`] that fit the options and
    /// that the driver compiles in good time, the planner's choice first. Alone where the planner takes
    /// another schedule than [`Schedule::Rows`], whose tiles no table changes.
    pub fn candidates(&self, caps: &Caps, shape: &AttentionShape) -> Vec<Tiles> {
        let chunks = shape.head_dim.div_ceil(4) + shape.head_dim_v.div_ceil(4);
        let unrolled = |t: &Tiles| chunks.saturating_mul(t.queries).saturating_mul(t.block_k);
        if self.decodes(caps, shape) {
            return vec![self.decode_tiles(caps, shape)];
        }
        let own = self.fit(caps, shape, select_tiles(caps, shape, self.texels(caps, shape)));
        if self.for_gpu(caps, shape).is_some() {
            return vec![own];
        }
        let most = caps.unrolled.max(unrolled(&own));
        let mut all = vec![own];
        let block = |t: &Tiles| self.most_block(caps, shape).is_none_or(|most| t.block_k <= most);
        all.extend(
            Self::supported_tiles(caps, shape)
                .into_iter()
                .filter(|t| *t != own && block(t) && unrolled(t) <= most),
        );
        all
    }

    /// The checks and choices of [`Attention::plan`] without a device: nothing is compiled.
    ///
    /// # Errors
    /// As [`Attention::plan`], but for those of the device.
    pub fn design(&self, caps: &Caps, shape: AttentionShape) -> Result<AttentionPlan> {
        check_shape(&shape)?;
        let scale = self.scale.unwrap_or_else(|| {
            #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
            let scale = f64::from(shape.head_dim).sqrt().recip() as f32;
            scale
        });
        if !scale.is_finite() {
            return Err(Error::value(OP, "scale", "a finite number", scale));
        }
        self.check_options(caps, &shape)?;
        self.check_schedule(caps, &shape)?;
        let split = self.split_keys(caps, &shape);
        let decode = self.decodes(caps, &shape);
        let for_gpu = self.for_gpu(caps, &shape);
        let mut tiles = match self.schedule {
            Some(Schedule::Rows(tiles) | Schedule::Decode(tiles)) => tiles,
            None if decode => self.decode_tiles(caps, &shape),
            _ => self.fit(caps, &shape, select_tiles(caps, &shape, self.texels(caps, &shape))),
        };
        if let Some(most) = self.most_block(caps, &shape)
            && for_gpu.is_none()
            && (!tiles.block_k.is_power_of_two() || tiles.block_k > most)
        {
            return Err(Error::shape(
                OP,
                "schedule",
                format!(
                    "block_k a power of two of at most {most}, for pages, scales and parts of keys"
                ),
                format!("{tiles:?}"),
            ));
        }
        let pass = split.unwrap_or(u32::MAX).min(shape.seq_k);
        // parts are merged in two loops over them
        let parts = u64::from(split.map_or(1, |keys| shape.seq_k.div_ceil(keys.max(1))));
        if split.is_some() && parts > caps.loop_trips / 2 {
            let (need, limit) = (parts, caps.loop_trips / 2);
            return Err(Error::Limit { op: OP, what: "parts of keys on this driver", need, limit });
        }
        // a loop compiles faster, and takes of the trips that the keys need
        let stage_rolled =
            caps.is_cpu() && u64::from(pass) <= longest(caps, &shape, self.algorithm, tiles, true);
        let mut keys = longest(caps, &shape, self.algorithm, tiles, stage_rolled);
        // longer blocks make fewer trips
        while self.schedule.is_none() && u64::from(pass) > keys {
            let longer = Tiles { block_k: tiles.block_k * 2, ..tiles };
            match check_tiles(caps, &shape, longer) {
                Ok(longer)
                    if self.most_block(caps, &shape).is_none_or(|most| longer.block_k <= most) =>
                {
                    tiles = longer;
                }
                _ => break,
            }
            keys = longest(caps, &shape, self.algorithm, tiles, stage_rolled);
        }
        if u64::from(pass) > keys && for_gpu.is_none() {
            return Err(Error::Limit {
                op: OP,
                what: "keys in one pass on this driver",
                need: pass.into(),
                limit: keys,
            });
        }
        // a block that moves the reference is scored twice, and takes three trips. Nothing was gained
        // where loads take the time, and SwiftShader compiles for twice as long. Not only where these
        // keys are texels, and with a fixed share of trips for all that is not keys: both else depend
        // on the rows, and a row's bits must not
        let blocks = u64::from(pass.div_ceil(tiles.block_k));
        let lazy = caps.texels != 0
            && caps.tier == Tier::Subgroup
            && blocks <= caps.loop_trips.saturating_sub(2048) / 3;
        let lanes = caps.subgroup.map_or(1, |(min, _)| min.min(32));
        let tile_k = tile_k(caps, &shape, tiles);
        let plan = AttentionPlan {
            shape,
            options: *self,
            tier: caps.tier,
            scale,
            cpu: caps.is_cpu(),
            lanes,
            tile_k,
            stage_rolled,
            few: few(caps, &shape),
            schedule: match for_gpu {
                Some(schedule) => schedule,
                None if decode => Schedule::Decode(tiles),
                None => Schedule::Rows(tiles),
            },
            wide_loads: caps.wide_loads,
            lazy,
            texels: for_gpu.is_none() && self.texels(caps, &shape),
            split,
            home: None,
        };
        let [scores, _] = plan.scratch_parts();
        if scores > caps.binding_size || plan.scratch_bytes() > caps.buffer_size {
            return Err(Error::Limit {
                op: OP,
                what: "bytes of scratch",
                need: plan.scratch_bytes(),
                limit: caps.binding_size,
            });
        }
        Ok(plan)
    }

    /// Refuses a schedule that is asked for where this problem or this device has no such form.
    fn check_schedule(&self, caps: &Caps, shape: &AttentionShape) -> Result<()> {
        let Some(asked) = self.schedule else { return Ok(()) };
        let refuse = |problem: String| Err(Error::argument(OP, "schedule", problem));
        if self.algorithm == Algorithm::Unfused {
            return refuse("the unfused kernels have none; Algorithm::Flash takes any".to_owned());
        }
        let (name, rows) = match asked {
            Schedule::Rows(tiles) => return check_tiles(caps, shape, tiles).map(|_| ()),
            Schedule::Tiled(_) => ("Tiled", u64::MAX),
            Schedule::Decode(_) => ("Decode", 4),
            Schedule::Groups(_) => ("Groups", 8),
        };
        if self.metric {
            return refuse(format!("{name} takes no metric; Rows does"));
        }
        let pass = u64::from(self.split_keys(caps, shape).unwrap_or(u32::MAX).min(shape.seq_k));
        let long = |keys: u64| match pass > keys {
            true => {
                let (need, limit) = (pass, keys);
                Err(Error::Limit { op: OP, what: "keys in one pass on this driver", need, limit })
            }
            false => Ok(()),
        };
        if let Schedule::Tiled(tiles) = asked {
            tiles.check(caps, shape)?;
            return long(tiles.longest(shape, caps.loop_trips));
        }
        let given = u64::from(shape.seq_q) * u64::from(shape.heads / shape.heads_kv.max(1));
        if given > rows {
            return refuse(format!(
                "{name} takes at most {rows} rows of a key head, not {given}; Rows and Tiled take any"
            ));
        }
        if self.split_keys(caps, shape).is_none() || self.packed {
            return refuse(format!(
                "{name} takes keys that are shared out (Split::Auto or Split::Keys) and no packed \
                 sequences; Rows and Tiled take any"
            ));
        }
        let chunk = match asked {
            Schedule::Groups(_) if self.kv_dtype() == DType::F32 => 4,
            _ => 8,
        };
        if !(shape.head_dim | shape.head_dim_v).is_multiple_of(chunk) {
            return refuse(format!(
                "{name} takes head sizes that are multiples of {chunk}, not {} and {}; Rows and Tiled \
                 take any",
                shape.head_dim, shape.head_dim_v
            ));
        }
        if let Schedule::Groups(tiles) = asked {
            tiles.check(caps, shape, self.kv_dtype())?;
            return long(tiles.longest(shape, caps.loop_trips));
        }
        if !one_subgroup(caps) {
            return refuse(
                "Decode takes subgroups of one size, or the portable tier; Groups takes any"
                    .to_owned(),
            );
        }
        // lanes are no choice, and every lane has all rows
        let own = self.decode_tiles(caps, shape);
        let Schedule::Decode(tiles) = asked else { return Ok(()) };
        let most = own.block_k.max(4).min(self.most_block(caps, shape).unwrap_or(64));
        if tiles.workgroup != own.workgroup
            || tiles.queries != own.queries
            || !tiles.block_k.is_power_of_two()
            || tiles.block_k > most
        {
            return Err(Error::shape(
                OP,
                "schedule",
                format!(
                    "a workgroup of {}, {} rows, and a power of two of at most {most} keys",
                    own.workgroup, own.queries
                ),
                format!("{tiles:?}"),
            ));
        }
        Ok(())
    }

    /// Ranges and combinations of the options.
    fn check_options(&self, caps: &Caps, shape: &AttentionShape) -> Result<()> {
        self.dtype.expect_float(OP)?;
        if self.softcap.is_some_and(|cap| !(cap.is_finite() && cap > 0.0)) {
            let got = self.softcap.unwrap_or_default();
            return Err(Error::value(OP, "softcap", "a positive finite number", got));
        }
        let block = |what, value: Option<u32>, least: u32| match value {
            Some(n) if n < least || !n.is_power_of_two() || n > 1 << 20 => Err(Error::value(
                OP,
                what,
                format!("a power of two from {least} to {}", 1 << 20),
                n,
            )),
            _ => Ok(()),
        };
        block("page_size", self.page_size, 1)?;
        block("quantized", self.quantized, 16)?;
        if let Split::Keys(keys) = self.split
            && (keys == 0 || !keys.is_multiple_of(64))
        {
            return Err(Error::value(OP, "split", "a positive multiple of 64 keys", keys));
        }
        let exclude = |what, given: bool, problem: &str| match given {
            true => Err(Error::argument(OP, what, problem)),
            false => Ok(()),
        };
        exclude(
            "page_size",
            self.page_size.is_some() && !self.key_lengths,
            "pages need key_lengths",
        )?;
        exclude(
            "key_lengths",
            self.key_lengths && self.packed && self.page_size.is_none(),
            "packed keys have their lengths in cu_seqlens_k",
        )?;
        exclude(
            "quantized",
            self.quantized.is_some() && self.packed && self.page_size.is_none(),
            "packed keys share no block of tokens between sequences; use pages",
        )?;
        if let (Some(tokens), Some(page)) = (self.quantized, self.page_size) {
            exclude("quantized", tokens > page, "a scale for more tokens than a page has")?;
        }
        exclude(
            "bias_positions",
            self.bias_positions == BiasPositions::Pack && !self.packed,
            "positions of the pack need packed sequences",
        )?;
        if self.packed && shape.batch > 1 {
            return Err(Error::shape(OP, "batch", "1 for packed sequences", shape.batch));
        }
        let plain = Self {
            mask: self.mask,
            scale: self.scale,
            dtype: self.dtype,
            algorithm: self.algorithm,
            schedule: self.schedule,
            split: self.split,
            ..Self::default()
        };
        exclude(
            "algorithm",
            self.algorithm == Algorithm::Unfused && *self != plain,
            "the unfused kernels take a causal mask and a scale only",
        )?;
        // q, k, v, o, lse, and those asked for
        let buffers = 5
            + [self.alibi, self.bias, self.visible, self.sinks, self.metric, self.ragged()]
                .iter()
                .map(|&given| u32::from(given))
                .sum::<u32>()
            + 2 * u32::from(self.quantized.is_some());
        if buffers > caps.storage_buffers {
            return Err(Error::Limit {
                op: OP,
                what: "storage buffers in one kernel for these options",
                need: buffers.into(),
                limit: caps.storage_buffers.into(),
            });
        }
        Ok(())
    }

    /// Type of keys and values.
    fn kv_dtype(&self) -> DType {
        if self.quantized.is_some() { DType::I8 } else { self.dtype }
    }

    /// Whether a table says where sequences lie.
    pub(super) fn ragged(&self) -> bool {
        self.packed || self.key_lengths
    }

    /// The largest block of keys that pages, scales and parts allow; all are powers of two or
    /// multiples of 64.
    fn most_block(&self, caps: &Caps, shape: &AttentionShape) -> Option<u32> {
        let parts = self.split_keys(caps, shape).map(|_| 64);
        [self.page_size, self.quantized, parts].into_iter().flatten().min()
    }

    /// Tiles whose blocks of keys fit pages, scales and parts, and that see few rows as few.
    fn fit(&self, caps: &Caps, shape: &AttentionShape, tiles: Tiles) -> Tiles {
        let mut fitted = tiles;
        // four entries of a mask are one word, whose load is dearer than all else there is to a key
        let wide = shape.head_dim.max(shape.head_dim_v);
        let words = self.bias_positions == BiasPositions::Sequence;
        if self.visible && words && caps.texels >= texels::ROW && wide <= 64 {
            fitted.block_k = 4;
            fitted.queries = fitted.queries.min(4);
        }
        fitted.block_k = self.most_block(caps, shape).unwrap_or(u32::MAX).min(fitted.block_k);
        // a tile visits the windows of all its rows
        let (left, right) = self.reach();
        let rows = |t: &Tiles| i64::from(t.workgroup) * i64::from(t.queries);
        while fitted.queries > 1 && rows(&fitted) * 4 > left + right + 1 {
            fitted.queries /= 2;
        }
        while fitted.queries > 1 && check_tiles(caps, shape, fitted).is_err() {
            fitted.queries /= 2;
        }
        fitted
    }

    /// Whether queries, keys and values are better copied into textures, which costs no more than to
    /// read them once: where several tiles of rows read the keys, all of them, as they lie.
    fn texels(&self, caps: &Caps, shape: &AttentionShape) -> bool {
        let rows = u64::from(shape.seq_q) * u64::from(shape.heads / shape.heads_kv.max(1));
        caps.texels >= texels::ROW
            && self.algorithm == Algorithm::Flash
            && self.quantized.is_none()
            && self.page_size.is_none()
            && self.split_keys(caps, shape).is_none()
            && shape.head_dim.is_multiple_of(texels::elements(self.dtype))
            && shape.head_dim_v.is_multiple_of(texels::elements(self.dtype))
            // tiles have 16 or 32 rows there, see select_tiles
            && rows > 64
    }

    /// Whether lanes share channels, not rows: where there are so few rows that most lanes would have
    /// none, on a CPU, which computes for them all the same. Only where keys are shared out, and the
    /// rows are of one sequence: a row's bits must not depend on the batch.
    fn decodes(&self, caps: &Caps, shape: &AttentionShape) -> bool {
        if let Some(asked) = self.schedule {
            return matches!(asked, Schedule::Decode(_));
        }
        let rows = u64::from(shape.seq_q) * u64::from(shape.heads / shape.heads_kv.max(1));
        caps.is_cpu()
            && one_subgroup(caps)
            && rows <= 4
            && self.split_keys(caps, shape).is_some()
            && !self.packed
            && self.algorithm == Algorithm::Flash
            && !self.metric
            && shape.head_dim.is_multiple_of(8)
            && shape.head_dim_v.is_multiple_of(8)
    }

    /// How a GPU computes this problem, if it is one and its tiles fit.
    fn for_gpu(&self, caps: &Caps, shape: &AttentionShape) -> Option<Schedule> {
        if let Some(asked) = self.schedule {
            return matches!(asked, Schedule::Tiled(_) | Schedule::Groups(_)).then_some(asked);
        }
        if caps.is_cpu() || self.algorithm != Algorithm::Flash || self.metric {
            return None;
        }
        let parts = self.split_keys(caps, shape);
        let pass = u64::from(parts.unwrap_or(u32::MAX).min(shape.seq_k));
        // as for a CPU: only where keys are shared out, and the rows are of one sequence
        let few = (parts.is_some() && !self.packed)
            .then(|| GroupTiles::choose(caps, shape, self.kv_dtype()))
            .flatten();
        if let Some(tiles) = few.filter(|tiles| pass <= tiles.longest(shape, caps.loop_trips)) {
            return Some(Schedule::Groups(tiles));
        }
        // SwiftShader's compiler takes minutes and gigabytes for such texts
        let tiled = (caps.unrolled >= UNROLLED).then(|| RegisterTiles::choose(caps, shape));
        tiled
            .flatten()
            .filter(|tiles| pass <= tiles.longest(shape, caps.loop_trips))
            .map(Schedule::Tiled)
    }

    /// Tiles of the decoding kernel: a workgroup is the lanes, and each of them has all `queries`.
    fn decode_tiles(&self, caps: &Caps, shape: &AttentionShape) -> Tiles {
        let workgroup = match (caps.tier, caps.subgroup) {
            (Tier::Subgroup, Some((_, max))) => max,
            _ => 8.min(caps.invocations),
        };
        let rows = shape.seq_q.saturating_mul(shape.heads / shape.heads_kv.max(1));
        let queries = rows.max(1).next_power_of_two();
        let chunks = [shape.head_dim, shape.head_dim_v]
            .iter()
            .map(|dim| (dim / 8).div_ceil(workgroup))
            .sum::<u32>();
        // enough keys at a time to hide the latency of sums, and no longer a text than compiles soon;
        // whatever the number of rows, for a row's bits do not depend on it
        let wide = shape.head_dim.max(shape.head_dim_v);
        let slow = caps.unrolled < UNROLLED;
        let mut block_k = if slow { 1 + u32::from(wide <= 32) } else { 4 };
        while block_k > 1 && block_k * chunks > 32 {
            block_k /= 2;
        }
        Tiles {
            workgroup,
            queries,
            block_k: self.most_block(caps, shape).unwrap_or(64).min(block_k),
        }
    }

    /// Keys of one part, if keys are shared out. Never a function of the batch or of the number of
    /// keys: a row's bits must not depend on them.
    fn split_keys(&self, caps: &Caps, shape: &AttentionShape) -> Option<u32> {
        let group = shape.heads / shape.heads_kv.max(1);
        let few = u64::from(shape.seq_q) * u64::from(group) <= 16;
        match self.split {
            _ if self.algorithm == Algorithm::Unfused => None,
            Split::Auto if self.packed => None,
            Split::Auto if few => Some(SPLIT_KEYS),
            // a GPU has more places for work than the key heads of latent attention fill
            Split::Auto if group > 16 && shape.seq_q <= 4 && !caps.is_cpu() => {
                Some(SPLIT_KEYS_MANY)
            }
            Split::Auto | Split::Never => None,
            Split::Keys(keys) => Some(keys),
        }
    }

    /// Tiles of [`Schedule::Rows`] that [`Attention::schedule`] accepts for this problem on such a
    /// device, the planner's choice first. Pages allow no `block_k` above their size.
    pub fn supported_tiles(caps: &Caps, shape: &AttentionShape) -> Vec<Tiles> {
        let first = select_tiles(caps, shape, Self::default().texels(caps, shape));
        let mut all = vec![first];
        for workgroup in [8, 16, 32, 64, 128, 256] {
            for queries in [1, 2, 4, 8] {
                for block_k in [1, 2, 4, 8, 16] {
                    let tiles = Tiles { workgroup, queries, block_k };
                    if tiles != first && check_tiles(caps, shape, tiles).is_ok() {
                        all.push(tiles);
                    }
                }
            }
        }
        all
    }
}

fn check_shape(s: &AttentionShape) -> Result<()> {
    for (what, value) in [("heads", s.heads), ("heads_kv", s.heads_kv)] {
        if value == 0 {
            return Err(Error::shape(OP, what, "at least 1", 0));
        }
    }
    for (what, value) in [("head_dim", s.head_dim), ("head_dim_v", s.head_dim_v)] {
        if value == 0 || value > MAX_HEAD_DIM {
            return Err(Error::shape(OP, what, format!("1 to {MAX_HEAD_DIM}"), value));
        }
    }
    if !s.heads.is_multiple_of(s.heads_kv) {
        return Err(Error::shape(
            OP,
            "heads",
            format!("a multiple of heads_kv = {}", s.heads_kv),
            s.heads,
        ));
    }
    // positions are compared as i32 in the kernels
    for (what, value) in [("seq_q", s.seq_q), ("seq_k", s.seq_k)] {
        if value > MAX_SEQ {
            return Err(Error::shape(OP, what, format!("at most {MAX_SEQ}"), value));
        }
    }
    let product = |dims: [u32; 4]| dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.into()));
    for dims in [
        [s.batch, s.seq_q, s.heads, s.head_dim.max(s.head_dim_v)],
        [s.batch, s.seq_k, s.heads_kv, s.head_dim.max(s.head_dim_v)],
    ] {
        let elements = product(dims).unwrap_or(u64::MAX);
        if elements > u64::from(u32::MAX) {
            return Err(Error::Limit {
                op: OP,
                what: "elements in one tensor",
                need: elements,
                limit: u32::MAX.into(),
            });
        }
    }
    Ok(())
}

/// Whether a workgroup of the decoding kernel is one subgroup, or has no need to be.
fn one_subgroup(caps: &Caps) -> bool {
    match (caps.tier, caps.subgroup) {
        (Tier::Subgroup, Some((min, max))) => min == max && max <= caps.invocations,
        _ => true,
    }
}

fn check_tiles(caps: &Caps, shape: &AttentionShape, t: Tiles) -> Result<Tiles> {
    let positive = t.workgroup > 0 && t.queries > 0 && t.block_k > 0;
    // register tiles are written out: beyond this no compiler finishes
    let chunks = (shape.head_dim.div_ceil(4) + shape.head_dim_v.div_ceil(4)).max(1);
    let block = u64::from(t.queries) * u64::from(t.block_k);
    let unrolled = block.saturating_mul(chunks.into());
    // lanes that speak for their subgroup must all be there
    let whole = match (caps.tier, caps.subgroup) {
        (Tier::Subgroup, Some((_, max))) => max,
        _ => 1,
    };
    if !positive
        || t.workgroup > caps.invocations
        || !t.workgroup.is_multiple_of(whole)
        || unrolled > 8192
    {
        return Err(Error::shape(
            OP,
            "schedule",
            format!(
                "positive, workgroup a multiple of {whole} and at most {}, queries * block_k at most {} \
                 for these head sizes",
                caps.invocations,
                8192 / chunks
            ),
            format!("{t:?}"),
        ));
    }
    Ok(t)
}

/// Whether one vector of a CPU holds all rows of a key head: keys staged for them are no better than
/// where they are, and invocations without a row load nothing.
fn few(caps: &Caps, shape: &AttentionShape) -> bool {
    let rows = u64::from(shape.seq_q) * u64::from(shape.heads / shape.heads_kv.max(1));
    caps.is_cpu() && rows <= 8
}

/// Keys that the portable kernel stages at a time: whole blocks that fit the workgroup memory that
/// every device has.
fn tile_k(caps: &Caps, shape: &AttentionShape, tiles: Tiles) -> u32 {
    let row = 16 * (shape.head_dim.div_ceil(4) + shape.head_dim_v.div_ceil(4));
    let fits = (caps.workgroup_storage.min(16_384) / row).min(64);
    (fits / tiles.block_k * tiles.block_k).max(tiles.block_k)
}

/// The most keys that one pass can visit within the driver's loop trips, staged in a loop or not.
fn longest(
    caps: &Caps,
    shape: &AttentionShape,
    algorithm: Algorithm,
    tiles: Tiles,
    stage_rolled: bool,
) -> u64 {
    let (block, tile) = (u64::from(tiles.block_k), u64::from(tile_k(caps, shape, tiles)));
    let [d4, dv4] = [shape.head_dim, shape.head_dim_v].map(|d| u64::from(d.div_ceil(4)));
    // a trip for each chunk of a query, and for each of the outputs
    let rows = if caps.is_cpu() { d4 + u64::from(tiles.queries) * dv4 } else { 0 };
    let trips = caps.loop_trips.saturating_sub(rows);
    match (algorithm, caps.tier) {
        // three loops over a row
        (Algorithm::Unfused, _) => caps.loop_trips / 3,
        (Algorithm::Flash, Tier::Subgroup) => trips.saturating_mul(block),
        // a trip for each tile, one for each block in it, and those of staging
        (Algorithm::Flash, Tier::Portable) => {
            let stage = |chunks: u64| (tile * chunks).div_ceil(tiles.workgroup.into());
            let staging = if stage_rolled { stage(d4) + stage(dv4) } else { 0 };
            (trips / (tile / block + 1 + staging)).saturating_mul(tile)
        }
    }
}

/// Tiles for a problem on a device. Pure.
///
/// On a CPU a register tile of many queries pays for each broadcast or load, most of all where loads
/// go lane by lane, and a workgroup of one subgroup wastes least at a causal edge; on a GPU registers
/// are scarce and one query for each invocation keeps them. Wide heads take fewer queries. Texels are
/// read so fast that a small text, which stays in the processor's caches, is worth more than keys
/// shared by more queries.
fn select_tiles(caps: &Caps, shape: &AttentionShape, in_texels: bool) -> Tiles {
    let wide = shape.head_dim.max(shape.head_dim_v);
    // a compiler that unrolls badly gets little to unroll
    let slow = caps.unrolled < UNROLLED;
    let lane_by_lane = caps.texels >= texels::ROW && !in_texels;
    let queries = match (caps.is_cpu(), wide) {
        (true, ..=64) if !(slow || in_texels) && (lane_by_lane || caps.tier == Tier::Portable) => 8,
        (true, 65..=128) if in_texels && caps.tier == Tier::Subgroup => 2,
        (true, ..=128) => 4,
        (true, ..=256) => 2,
        _ => 1,
    };
    let block_k = match (caps.is_cpu(), wide) {
        _ if slow => 1 + u32::from(wide <= 32),
        // each key's chunk is a load of its own, and longer blocks save nothing else
        (true, 65..) if caps.tier == Tier::Portable => 1,
        (true, 33..) if caps.tier == Tier::Portable && caps.texels < texels::ROW => 1,
        // whether or not this problem's keys are texels: a row's bits must not depend on how many
        // rows there are
        (true, ..=32) if caps.texels < texels::ROW => 4,
        (true, ..=64) => 2,
        (_, ..=64) => 4,
        (_, ..=256) => 2,
        _ => 1,
    };
    let widest = caps.subgroup.map_or(32, |(_, max)| max);
    let workgroup = match (caps.is_cpu(), caps.tier) {
        (true, Tier::Subgroup) => widest,
        (true, Tier::Portable) if in_texels || few(caps, shape) => 8,
        // rows staged in workgroup memory serve more queries
        (true, Tier::Portable) => 32,
        (false, _) => widest.max(64),
    };
    let workgroup = workgroup.min(caps.invocations);
    // no more rows to an invocation than there are: a short problem compiles faster, too
    let rows = shape.seq_q.saturating_mul(shape.heads / shape.heads_kv.max(1));
    let queries = queries.min(rows.div_ceil(workgroup.max(1)).max(1).next_power_of_two());
    Tiles { workgroup, queries, block_k }
}

impl AttentionPlan {
    /// The problem.
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Which kernel runs, and how the work is cut.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// Which kernels run.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Bytes of scratch that [`AttentionArgs::scratch`](super::AttentionArgs::scratch) must have.
    ///
    /// 0 without a split or [`Algorithm::Unfused`]; with a split
    /// `4 * (head_dim_v rounded up to 4 + 2)` for each row and part.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_parts().iter().fold(0, |sum: u64, &part| sum.saturating_add(part))
    }

    /// A buffer of [`scratch_bytes`](Self::scratch_bytes) for calls with this plan, one after the
    /// other; `None` if none is needed.
    ///
    /// # Errors
    /// [`Error::OtherContext`] if the plan is of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn scratch(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(OP, self.home.as_ref())?;
        // which binds its scores even if there are none
        let least = if self.options.algorithm == Algorithm::Unfused { 4 } else { 0 };
        ctx.scratch(OP, self.scratch_bytes().max(least))
    }

    /// Bytes of scores or partial outputs, and of the partial outputs' references and sums. Each a
    /// multiple of 256, the largest alignment of a binding.
    pub(super) fn scratch_parts(&self) -> [u64; 2] {
        let s = self.shape;
        let bytes = |factors: &[u32]| {
            let product = factors.iter().fold(4u64, |n, &d| n.saturating_mul(d.into()));
            product.checked_next_multiple_of(256).unwrap_or(u64::MAX)
        };
        if self.options.algorithm == Algorithm::Unfused {
            return [bytes(&[s.batch, s.heads, s.seq_q, s.seq_k]), 0];
        }
        let parts = self.split.map_or(0, |_| self.parts());
        let rows = |width: u32| bytes(&[s.batch, s.seq_q, s.heads, parts, width]);
        [rows(s.head_dim_v.next_multiple_of(4)), rows(2)]
    }

    /// The most parts that a row's keys are cut into.
    pub(super) fn parts(&self) -> u32 {
        self.split.map_or(1, |keys| self.shape.seq_k.div_ceil(keys).max(1))
    }

    /// The text of each kernel, for aligned views and without LSE.
    pub fn wgsl(&self) -> Vec<String> {
        self.keys(self.usual()).iter().map(Key::wgsl).collect()
    }

    /// File, entry point and constants of each kernel, for profilers.
    pub fn label(&self) -> String {
        self.keys(self.usual()).iter().map(Key::label).collect::<Vec<_>>().join("; ")
    }

    /// What a call is taken to be until one is made: aligned views, no LSE.
    fn usual(&self) -> Variant {
        Variant {
            aligned: [true; 3],
            aligned8: true,
            lse: false,
            bias_f32: false,
            metric_aligned: true,
            mask_aligned: true,
            bias_aligned: true,
            texels: self.texels,
            beside: [false; 3],
        }
    }

    /// Keys of the kernels, in the order of their dispatches.
    pub(super) fn keys(&self, variant: Variant) -> Vec<Key> {
        let (s, op) = (self.shape, self.options);
        let dtype = op.dtype;
        let f32_decl = |present: bool| present.then_some(TensorDecl::new(DType::F32, false));
        let number = |x: u32| format!("{x}u");
        if op.algorithm == Algorithm::Unfused {
            let scalar = |name: &'static str| (name, Some(TensorDecl::new(dtype, false)));
            // the others are read by kernels that write neither output
            let mut v = TensorDecl::new(dtype, false);
            v.beside = variant.beside[2];
            let scores = ("scores", f32_decl(true));
            let causal = (op.mask != Mask::None).to_string();
            return vec![
                Key {
                    source: SCORES,
                    entry: "unfused_scores",
                    spec: vec![("HEAD_DIM", number(s.head_dim))],
                    tensors: vec![scalar("q"), scalar("k"), scores],
                },
                Key {
                    source: SOFTMAX,
                    entry: "unfused_softmax",
                    spec: vec![("CAUSAL", causal.clone())],
                    tensors: vec![("lse", f32_decl(variant.lse)), scores],
                },
                Key {
                    source: VALUES,
                    entry: "unfused_values",
                    spec: vec![("HEAD_DIM_V", number(s.head_dim_v)), ("CAUSAL", causal)],
                    tensors: vec![("v", Some(v)), scalar("o"), scores],
                },
            ];
        }
        let mut keys = vec![match self.schedule {
            Schedule::Rows(tiles) => self.flash_key(variant, tiles),
            Schedule::Tiled(tiles) => self.tiled_key(variant, tiles),
            Schedule::Groups(tiles) => self.groups_key(variant, tiles),
            Schedule::Decode(tiles) => self.decode_key(variant, tiles),
        }];
        if self.split.is_some() {
            keys.push(merge::key(
                s.head_dim_v,
                [TensorDecl::new(DType::F32, true), self.output(variant)],
                variant.lse,
                merge::Parts { counted: op.ragged(), pairs: true },
            ));
        }
        keys
    }

    fn output(&self, variant: Variant) -> TensorDecl {
        let vec4 = variant.aligned[2] && self.shape.head_dim_v.is_multiple_of(4);
        TensorDecl::new(self.options.dtype, vec4)
    }

    /// What the kernels are given.
    fn tensors(&self, variant: Variant) -> Vec<(&'static str, Option<TensorDecl>)> {
        let (s, op) = (self.shape, self.options);
        let f32_decl = |present: bool| present.then_some(TensorDecl::new(DType::F32, false));
        let rows = |dtype, aligned: bool, dim: u32| {
            let decl = TensorDecl::new(dtype, aligned && dim.is_multiple_of(4));
            Some(TensorDecl { texels: variant.texels, ..decl })
        };
        let o = match self.split {
            Some(_) => TensorDecl::new(DType::F32, true),
            None => self.output(variant),
        };
        let metric =
            TensorDecl::new(DType::F32, variant.metric_aligned && s.head_dim.is_multiple_of(4));
        let bias_dtype = if variant.bias_f32 { DType::F32 } else { op.dtype };
        let mut tensors = vec![
            ("q", rows(op.dtype, variant.aligned[0], s.head_dim)),
            ("k", rows(op.kv_dtype(), variant.aligned[1], s.head_dim)),
            ("v", rows(op.kv_dtype(), variant.aligned[1], s.head_dim_v)),
            ("o", Some(o)),
            ("lse", f32_decl(true)),
            ("slopes", f32_decl(op.alibi)),
            ("bias", op.bias.then_some(TensorDecl::new(bias_dtype, false))),
            ("mask", op.visible.then_some(TensorDecl::new(DType::U8, false))),
            ("sinks", f32_decl(op.sinks)),
            ("k_scale", f32_decl(op.quantized.is_some())),
            ("v_scale", f32_decl(op.quantized.is_some())),
            ("metric", op.metric.then_some(metric)),
        ];
        for ((_, decl), beside) in tensors.iter_mut().zip(variant.beside) {
            *decl = decl.map(|decl| TensorDecl { beside: beside && !variant.texels, ..decl });
        }
        tensors
    }

    /// Constants of shaders/attention/params.wgsl.
    fn option_spec(&self) -> Vec<(&'static str, String)> {
        let (s, op) = (self.shape, self.options);
        let (left, right) = op.reach();
        let bounded = |keys: i64| keys < i64::from(MAX_SEQ);
        // with bounds no later than the ends of the keys, every row sees every key of a whole block
        let block = self.schedule.keys();
        let parts = self.split.is_none_or(|keys| keys.is_multiple_of(block));
        let whole = s.seq_k.is_multiple_of(block) && parts && !op.ragged();
        let partial = bounded(left) || bounded(right) || op.bias || op.visible || !whole;
        let number = |x: u32| format!("{x}u");
        vec![
            ("HEAD_DIM", number(s.head_dim)),
            ("HEAD_DIM_V", number(s.head_dim_v)),
            ("PACK", number(s.heads / s.heads_kv)),
            ("RIGHT_BOUND", bounded(right).to_string()),
            ("LEFT_BOUND", bounded(left).to_string()),
            ("BOTTOM_RIGHT", (op.alignment() == CausalAlignment::BottomRight).to_string()),
            ("PARTIAL", partial.to_string()),
            ("SOFTCAP", op.softcap.is_some().to_string()),
            ("ALIBI", op.alibi.to_string()),
            ("BIAS", op.bias.to_string()),
            ("MASK", op.visible.to_string()),
            ("SINKS", op.sinks.to_string()),
            ("METRIC", op.metric.to_string()),
            ("RAGGED", op.ragged().to_string()),
            ("PAGED", op.page_size.is_some().to_string()),
            ("PAGE", number(op.page_size.unwrap_or(1))),
            ("QUANTIZED", op.quantized.is_some().to_string()),
            ("SCALE_BLOCK", number(op.quantized.unwrap_or(1))),
            ("SPLIT", self.split.is_some().to_string()),
            ("SOFT_EXP2", self.cpu.to_string()),
        ]
    }

    fn decode_key(&self, variant: Variant, t: Tiles) -> Key {
        let s = self.shape;
        let number = |x: u32| format!("{x}u");
        let wide = self.wide_loads && variant.aligned8 && variant.beside == [false; 3];
        let mut tensors = self.tensors(variant);
        for (_, decl) in tensors.iter_mut().filter(|(name, _)| matches!(*name, "k" | "v")) {
            let eights = if wide { Eights::LongWords } else { Eights::No };
            *decl = decl.map(|decl| TensorDecl { eights, ..decl });
        }
        let mut spec = self.option_spec();
        spec.extend([
            ("LANES", number(t.workgroup)),
            ("ROWS", number(t.queries)),
            ("BLOCK_K", number(t.block_k)),
            ("SUBGROUP", (self.tier == Tier::Subgroup).to_string()),
            ("K_WHOLE", (s.head_dim / 8).is_multiple_of(t.workgroup).to_string()),
            ("WIDE", wide.to_string()),
        ]);
        Key { source: DECODE, entry: "decode", spec, tensors }
    }

    fn tiled_key(&self, variant: Variant, t: RegisterTiles) -> Key {
        let s = self.shape;
        let number = |x: u32| format!("{x}u");
        let dv = s.head_dim_v;
        let [left, right] = t.lines(dv);
        let (gr, gk) = (t.rows / 4, t.keys / 4);
        let shares = (t.lanes_k / t.part).max(1);
        let mut spec = self.option_spec();
        spec.extend([
            ("TX", number(t.lanes_k)),
            ("TY", number(t.lanes_q)),
            ("GR", number(gr)),
            ("GK", number(gk)),
            ("CHUNKS", number(t.chunks(dv))),
            ("DEPTH", number(t.depth)),
            ("SLICES", number(s.head_dim.div_ceil(t.depth))),
            ("WHOLE", s.head_dim.is_multiple_of(t.depth).to_string()),
            ("PART", number(t.part)),
            ("COLUMNS", number((t.part / t.lanes_k).max(1))),
            ("SHARES", number(shares)),
            ("SHARED", (shares > 1).to_string()),
            ("FOLD", number(t.fold(dv))),
            ("LEFT", number(left)),
            ("RIGHT", number(right)),
            ("WIDTH", number(t.width(dv))),
            ("Q_PASSES", number((t.depth / 4).div_ceil(t.lanes_k / gr))),
            ("K_PASSES", number((t.depth / 4).div_ceil(t.lanes_q / gk))),
            ("V_PASSES", number((t.part * t.lanes_k * t.chunks(dv)).div_ceil(t.workgroup()))),
        ]);
        Key { source: TILED, entry: "tiled", spec, tensors: self.tensors(variant) }
    }

    fn groups_key(&self, variant: Variant, t: GroupTiles) -> Key {
        let (s, op) = (self.shape, self.options);
        let number = |x: u32| format!("{x}u");
        let [k_chunks, v_chunks] = [s.head_dim, s.head_dim_v].map(|dim| dim / t.chunk);
        let wide = t.chunk == 8 && variant.aligned8 && variant.beside == [false; 3];
        let mut tensors = self.tensors(variant);
        for (_, decl) in tensors.iter_mut().filter(|(name, _)| matches!(*name, "k" | "v")) {
            let eights = if wide { Eights::Words } else { Eights::No };
            *decl = decl.map(|decl| TensorDecl { eights, ..decl });
        }
        let mut spec = self.option_spec();
        spec.extend([
            ("WORKGROUP", number(t.workgroup)),
            ("LANES", number(t.lanes)),
            ("ROWS", number(t.rows)),
            ("BLOCK_K", number(t.block_k)),
            ("SUBGROUP", t.shuffles.to_string()),
            ("STEPS", number(t.lanes.ilog2())),
            ("CHUNK", number(t.chunk / 4)),
            ("DK", number(k_chunks)),
            ("DV", number(v_chunks)),
            ("K_CHUNKS", number(k_chunks.div_ceil(t.lanes))),
            ("V_CHUNKS", number(v_chunks.div_ceil(t.lanes))),
            ("K_WHOLE", k_chunks.is_multiple_of(t.lanes).to_string()),
            ("WIDE", wide.to_string()),
            ("ONE_PAGE", op.page_size.is_some_and(|size| size >= t.block_k).to_string()),
        ]);
        Key { source: GROUPS, entry: "groups", spec, tensors }
    }

    fn flash_key(&self, variant: Variant, t: Tiles) -> Key {
        let (s, op) = (self.shape, self.options);
        let number = |x: u32| format!("{x}u");
        let (d4, dv4) = (s.head_dim.div_ceil(4), s.head_dim_v.div_ceil(4));
        let kv_dtype = op.kv_dtype();
        let mut tensors = self.tensors(variant);
        let (left, right) = op.reach();
        let lanes = self.lanes;
        let subgroup = self.tier == Tier::Subgroup;
        // about four sums at a time: on Mesa's CPU driver 10 % faster than eight
        let pass_keys =
            (1..=(4 / t.queries).max(1)).rev().find(|n| t.block_k.is_multiple_of(*n)).unwrap_or(1);
        // found by measuring: up to a fifth faster with these, up to a sixth slower with others
        let bounded = |keys: i64| keys < i64::from(MAX_SEQ);
        let causal = bounded(right) && !bounded(left);
        let cut_scores =
            op.softcap.is_some() || op.alibi || (causal && op.dtype != DType::F32 && !op.visible);
        // chunks that one load brings
        let wide = self.wide_loads
            && variant.aligned8
            && variant.beside == [false; 3]
            && !variant.texels
            && subgroup
            && (d4 | dv4).is_multiple_of(2);
        for (_, decl) in tensors.iter_mut().filter(|(name, _)| matches!(*name, "k" | "v")) {
            let eights = if wide { Eights::LongWords } else { Eights::No };
            *decl = decl.map(|decl| TensorDecl { eights, ..decl });
        }
        // two entries of a block of two are one load
        let pairs = op.bias
            && self.wide_loads
            && variant.bias_aligned
            && t.block_k == 2
            && s.seq_k.is_multiple_of(2)
            && !op.ragged();
        for (_, decl) in tensors.iter_mut().filter(|(name, _)| *name == "bias") {
            *decl = decl.map(|decl| TensorDecl { pairs, ..decl });
        }
        // a sequence's first key may stand anywhere in a row over the pack
        let words = op.bias_positions == BiasPositions::Sequence;
        let load = match variant.texels {
            true => texels::elements(kv_dtype) / 4,
            false => 1 + u32::from(wide),
        };
        let mut spec = self.option_spec();
        spec.extend([
            ("WORKGROUP", number(t.workgroup)),
            ("QUERIES", number(t.queries)),
            ("BLOCK_K", number(t.block_k)),
            ("SUBGROUP", subgroup.to_string()),
            ("LANES", number(lanes)),
            ("LOAD", number(load)),
            ("WIDE", (load == 2).to_string()),
            ("BIAS_PAIRS", pairs.to_string()),
            ("TILE_K", number(self.tile_k)),
            // a texel is read as fast as workgroup memory
            (
                "STAGED",
                (!subgroup && !variant.texels && !self.few && self.tile_k > t.block_k).to_string(),
            ),
            // of at most four keys, all in one word
            (
                "MASK_WORDS",
                (op.visible && words && variant.mask_aligned && matches!(t.block_k, 2 | 4))
                    .to_string(),
            ),
            ("PASS_KEYS", number(pass_keys)),
            // a load is a loop over lanes with a dozen blocks: a driver on a CPU compiles few of them
            ("ROLLED", self.cpu.to_string()),
            ("CUT", variant.texels.to_string()),
            ("CUT_SCORES", (variant.texels && subgroup && cut_scores).to_string()),
            ("LAZY", self.lazy.to_string()),
            ("STAGE_ROLLED", self.stage_rolled.to_string()),
        ]);
        Key { source: FLASH, entry: "flash", spec, tensors }
    }
}
