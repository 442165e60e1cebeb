//! Linear attention as an adaptive model of text: a table of counts that fades.
//!
//! A head of order `n` hashes the last `n` bytes to one of `K` rows. With one-hot keys and values
//! its state `S[row, byte]` counts which byte followed, `S = decay S + k v^T`, and the query with
//! the row of the present context reads the counts of the next byte: lightning attention, exactly.
//! The heads' distributions are mixed as a weighted product, whose weights follow the gradient of
//! the code length (PAQ; Mahoney 2005). Nothing is trained beforehand and nothing kept but the
//! states: the text could be endless.
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes are constants far below 2^32, probabilities are f32"
)]

use std::path::Path;
use std::time::Instant;

use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use tilewise::linear_attention::{
    Decay, Form, LinearAttention, LinearAttentionArgs, LinearAttentionPlan, LinearAttentionShape,
};
use tilewise::reference::{self, LinearAttentionInputs};
use tilewise::{Context, DType, Layout, Tensor, TensorView, measure, wgpu};

use super::{line, relative_rms};
use crate::Failure;

/// Public domain; see assets/README.md.
static TEXT: &[u8] = include_bytes!("../../../../assets/moonstone.txt");

/// Bytes of context and half-life in bytes of each head (0: forgets nothing), found by trial on
/// this text.
const HEADS: [(usize, f64); 8] =
    [(1, 0.0), (1, 500.0), (2, 0.0), (2, 4000.0), (2, 0.0), (3, 0.0), (3, 0.0), (4, 0.0)];
const H: usize = HEADS.len();
/// Rows that contexts are hashed to.
const ROWS: usize = 128;
/// The text is ASCII.
const SYMBOLS: usize = 128;
/// Tokens in one call while prefilling.
const CHUNK: usize = 1024;
/// Tokens that the chunked kernel takes at a time where it is compared with the recurrent one.
const BLOCK: u32 = 8;
/// Lengths at which the rate is reported, besides the whole.
const MILESTONES: [usize; 2] = [1024, 16_384];
/// A count that each symbol has before it is seen.
const PRIOR: f32 = 0.02;
/// Step of the mixing weights.
const RATE: f32 = 0.002;
/// First tokens compared with the f64 reference.
const CHECKED: usize = 256;
/// Relative RMS error against f64, and between two forms.
const MAX_ERROR: f64 = 1e-6;

pub(super) fn run(ctx: &Context, _: &RgbImage, _: &Path) -> Result<(), Failure> {
    if let Some(at) = TEXT.iter().position(|&byte| usize::from(byte) >= SYMBOLS) {
        return Err(format!("byte {at} of the text is not ASCII").into());
    }
    let stream = Stream::new(ctx)?;
    let prefilled = (TEXT.len() - 1) / CHUNK * CHUNK;
    let mut model = Mixer::new();
    let mut seconds = 0.0;
    let mut clock = measure::Clock::Timestamps;
    let mut rates = Vec::new();
    let mut memory = Vec::new();
    let mut error = f64::INFINITY;

    let bar = ProgressBar::new(TEXT.len() as u64).with_style(
        ProgressStyle::with_template("  {bar:40} {pos}/{len} {elapsed}")
            .expect("the template is valid"),
    );
    // the first dispatch also pays for the driver's compiler; zero keys leave the state zero
    stream.prefill.call(ctx, &stream.state)?;
    for start in (0..prefilled).step_by(CHUNK) {
        stream.prefill.load(ctx, start)?;
        let timing = stream.prefill.call(ctx, &stream.state)?;
        seconds += timing.seconds;
        clock = timing.clock;
        let counts: Vec<f32> = stream.prefill.o.download(ctx)?;
        if start == 0 {
            error = against_reference(&counts);
        }
        for (t, counts) in counts.chunks_exact(H * SYMBOLS).enumerate() {
            model.next(counts, TEXT[start + t + 1]);
        }
        let done = start + CHUNK;
        if MILESTONES.contains(&done) || done == prefilled {
            rates.push((done, done as f64 / seconds));
            memory.push(allocated(ctx));
        }
        bar.set_position(done as u64);
    }

    // the rest twice from the same state: in blocks that are multiplied as matrices, then byte by
    // byte
    let rest = TEXT.len() - 1 - prefilled;
    let copied: Vec<f32> = stream.state.download(ctx)?;
    let other_state = Tensor::upload(ctx, stream.state.shape(), &copied)?;
    let whole = Call::new(ctx, rest, Form::ChunkLoop, Some(BLOCK))?;
    whole.load(ctx, prefilled)?;
    whole.call(ctx, &other_state)?;
    let chunked: Vec<f32> = whole.o.download(ctx)?;
    stream.step.call(ctx, &Tensor::zeros(ctx, stream.state.shape(), DType::F32)?)?;
    let (mut stepped, mut device, wall) = (Vec::new(), 0.0, Instant::now());
    for t in prefilled..prefilled + rest {
        stream.step.load(ctx, t)?;
        device += stream.step.call(ctx, &stream.state)?.seconds;
        let counts: Vec<f32> = stream.step.o.download(ctx)?;
        model.next(&counts, TEXT[t + 1]);
        stepped.extend(counts);
        bar.inc(1);
    }
    let wall = wall.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let widen = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let forms = relative_rms(&stepped, &widen(&chunked));
    let states = relative_rms(
        &stream.state.download::<f32>(ctx)?,
        &widen(&other_state.download::<f32>(ctx)?),
    );

    let bits = model.bits / (TEXT.len() - 1) as f64;
    let entropy = order_zero();
    line("text", format!("{} bytes, The Moonstone by Wilkie Collins", TEXT.len()));
    line("model", format!("{H} heads, state {ROWS} x {SYMBOLS} each, contexts of 1 to 4 bytes"));
    line("order-0 entropy", format!("{entropy:.3} bits a byte"));
    line("predicted", format!("{bits:.3} bits a byte, learnt on the way"));
    line("error against f64", format!("{error:.1e} relative RMS, over {CHECKED} bytes"));
    line(
        "chunked against recurrent",
        format!("{forms:.1e} in outputs, {states:.1e} in states, over {rest} bytes"),
    );
    for (done, rate) in rates {
        line(&format!("prefill of {done}"), format!("{:.0} bytes/s ({clock})", rate));
    }
    line(
        "byte by byte",
        format!(
            "{:.0} bytes/s ({clock}), {:.0} with uploads and downloads",
            rest as f64 / device,
            rest as f64 / wall
        ),
    );
    let state_bytes = (H * ROWS * SYMBOLS * 4) as f64;
    line(
        "memory",
        format!(
            "state {:.2} MB, scratch {} bytes, buffers for {CHUNK} bytes of text {:.1} MB, at any length",
            state_bytes * 1e-6,
            stream.prefill.plan.scratch_bytes(),
            stream.prefill.bytes() as f64 * 1e-6
        ),
    );
    if let Some(first) = memory[0] {
        line("allocated on the device", format!("{:.1} MB", first as f64 * 1e-6));
    }

    if bits.is_nan() || bits >= entropy {
        return Err(format!("{bits:.3} bits a byte do not beat {entropy:.3}").into());
    }
    for (what, error) in [("f64", error), ("chunked", forms), ("chunked states", states)] {
        if error.is_nan() || error > MAX_ERROR {
            return Err(format!(
                "error {error:.1e} against {what}, at most {MAX_ERROR:.0e} wanted"
            )
            .into());
        }
    }
    if memory.iter().any(|m| *m != memory[0]) {
        return Err(format!("memory grew with the text: {memory:?} bytes").into());
    }
    Ok(())
}

/// Bytes that live buffers occupy, where the backend tells.
fn allocated(ctx: &Context) -> Option<u64> {
    ctx.device.generate_allocator_report().map(|report| report.total_allocated_bytes)
}

/// The state, and the two calls that carry it on.
struct Stream {
    state: Tensor<4>,
    prefill: Call,
    step: Call,
}

impl Stream {
    fn new(ctx: &Context) -> Result<Self, Failure> {
        Ok(Self {
            state: Tensor::zeros(ctx, [1, H as u32, ROWS as u32, SYMBOLS as u32], DType::F32)?,
            prefill: Call::new(ctx, CHUNK, Form::ChunkLoop, None)?,
            step: Call::new(ctx, 1, Form::Recurrent, None)?,
        })
    }
}

/// Linear attention over a fixed number of tokens, with its buffers.
struct Call {
    tokens: usize,
    plan: LinearAttentionPlan,
    /// Keys of the tokens and of the one after them: a query is the next token's key.
    rows: Tensor<4>,
    v: Tensor<4>,
    o: Tensor<4>,
    scratch: Option<wgpu::Buffer>,
}

impl Call {
    fn new(
        ctx: &Context,
        tokens: usize,
        form: Form,
        chunk_size: Option<u32>,
    ) -> Result<Self, Failure> {
        let n = tokens as u32;
        let shape = LinearAttentionShape {
            heads_v: 1,
            ..LinearAttentionShape::new(1, n, H as u32, ROWS as u32, SYMBOLS as u32)
        };
        let op = LinearAttention {
            decay: Decay::PerHead(log_decays()),
            form,
            chunk_size,
            ..Default::default()
        };
        let plan = op.plan(ctx, shape)?;
        let scratch = plan.scratch(ctx)?;
        let [h, symbols] = [H as u32, SYMBOLS as u32];
        Ok(Self {
            tokens,
            plan,
            rows: Tensor::zeros(ctx, [1, n + 1, h, ROWS as u32], DType::F32)?,
            v: Tensor::zeros(ctx, [1, n, 1, symbols], DType::F32)?,
            o: Tensor::zeros(ctx, [1, n, h, symbols], DType::F32)?,
            scratch,
        })
    }

    /// Uploads the text's bytes from `start` on: token `t` has the key of the context before byte
    /// `t` and the value byte `t`.
    fn load(&self, ctx: &Context, start: usize) -> Result<(), Failure> {
        let (rows, v) = keys_and_values(start, self.tokens);
        self.rows.write(ctx, &rows)?;
        self.v.write(ctx, &v)?;
        Ok(())
    }

    /// Runs over the uploaded tokens and carries `state` on.
    fn call(&self, ctx: &Context, state: &Tensor<4>) -> Result<measure::Timing, Failure> {
        let layout = Layout::contiguous([1, self.tokens as u32, H as u32, ROWS as u32]);
        let rows = |skip: usize| -> tilewise::Result<TensorView<'_, 4>> {
            self.rows.view_as(layout.with_offset((skip * H * ROWS) as u64))
        };
        let args = LinearAttentionArgs {
            initial_state: Some(state.view()),
            final_state: Some(state.view()),
            scratch: self.scratch.as_ref(),
            ..LinearAttentionArgs::new(rows(1)?, rows(0)?, self.v.view(), self.o.view())
        };
        Ok(measure::time(ctx, 1, |pass| self.plan.encode_pass(ctx, pass, &args))?)
    }

    fn bytes(&self) -> u64 {
        self.rows.buffer().size() + self.v.buffer().size() + self.o.buffer().size()
    }
}

fn log_decays() -> Vec<f32> {
    let of =
        |half_life: f64| if half_life > 0.0 { -std::f64::consts::LN_2 / half_life } else { 0.0 };
    HEADS.iter().map(|&(_, half_life)| of(half_life) as f32).collect()
}

/// Row of each head for the context before byte `t`; what lies before the text counts as zeros.
fn context_rows(t: usize) -> [usize; H] {
    std::array::from_fn(|head| {
        let mut hash = 0x9e37_79b9u32.wrapping_mul(head as u32 + 1);
        for back in 1..=HEADS[head].0 {
            let byte = t.checked_sub(back).map_or(0, |at| TEXT[at]);
            // FNV-1a, stirred so that the low bits depend on all
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            hash ^= hash >> 15;
        }
        hash = hash.wrapping_mul(0x85eb_ca6b);
        hash ^= hash >> 13;
        hash as usize % ROWS
    })
}

/// One-hot keys `[tokens + 1, H, ROWS]` and values `[tokens, SYMBOLS]` from byte `start` on.
fn keys_and_values(start: usize, tokens: usize) -> (Vec<f32>, Vec<f32>) {
    let mut rows = vec![0.0; (tokens + 1) * H * ROWS];
    for (t, token) in rows.chunks_exact_mut(H * ROWS).enumerate() {
        for (head, row) in context_rows(start + t).into_iter().enumerate() {
            token[head * ROWS + row] = 1.0;
        }
    }
    let mut v = vec![0.0; tokens * SYMBOLS];
    for (t, token) in v.chunks_exact_mut(SYMBOLS).enumerate() {
        token[usize::from(TEXT[start + t])] = 1.0;
    }
    (rows, v)
}

/// Error of the first `CHECKED` outputs.
fn against_reference(counts: &[f32]) -> f64 {
    let (rows, v) = keys_and_values(0, CHECKED);
    let widen = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let (rows, v) = (widen(&rows), widen(&v));
    let shape = LinearAttentionShape {
        heads_v: 1,
        ..LinearAttentionShape::new(1, CHECKED as u32, H as u32, ROWS as u32, SYMBOLS as u32)
    };
    let op = LinearAttention { decay: Decay::PerHead(log_decays()), ..Default::default() };
    let inputs = LinearAttentionInputs {
        q: &rows[H * ROWS..],
        k: &rows[..CHECKED * H * ROWS],
        v: &v,
        ..Default::default()
    };
    let want = reference::linear_attention(&op, &shape, &inputs).o;
    relative_rms(&counts[..want.len()], &want)
}

/// The product of the heads' distributions, each to its weight.
struct Mixer {
    weights: [f32; H],
    /// Code length of all symbols seen, in bits.
    bits: f64,
}

impl Mixer {
    fn new() -> Self {
        Self { weights: [1.5 / H as f32; H], bits: 0.0 }
    }

    /// Predicts from counts `[H, SYMBOLS]`, then sees `symbol` and adapts.
    fn next(&mut self, counts: &[f32], symbol: u8) {
        let mut logs = [[0f32; SYMBOLS]; H];
        let mut mixed = [0f32; SYMBOLS];
        for ((logs, counts), weight) in
            logs.iter_mut().zip(counts.chunks_exact(SYMBOLS)).zip(self.weights)
        {
            let total: f32 = counts.iter().sum::<f32>() + PRIOR * SYMBOLS as f32;
            for ((log, count), mixed) in logs.iter_mut().zip(counts).zip(&mut mixed) {
                // a faded count may come out a rounding error below zero
                *log = ((count.max(0.0) + PRIOR) / total).ln();
                *mixed += weight * *log;
            }
        }
        let most = mixed.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        mixed.iter_mut().for_each(|x| *x = (*x - most).exp());
        let total: f32 = mixed.iter().sum();
        mixed.iter_mut().for_each(|x| *x /= total);
        let seen = usize::from(symbol);
        self.bits -= f64::from(mixed[seen]).log2();
        for (weight, logs) in self.weights.iter_mut().zip(&logs) {
            let expected: f32 = mixed.iter().zip(logs).map(|(p, log)| p * log).sum();
            *weight += RATE * (logs[seen] - expected);
        }
    }
}

/// Entropy of the text's own byte frequencies, in bits: what any code for single bytes needs at
/// least, even one made for this text.
fn order_zero() -> f64 {
    let mut counts = [0u32; 256];
    TEXT.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let n = TEXT.len() as f64;
    counts.iter().filter(|&&c| c > 0).map(|&c| f64::from(c) / n).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::{H, Mixer, SYMBOLS, order_zero};

    #[test]
    fn the_mixer_codes_what_it_knows_cheaply() {
        // nothing known: seven bits for one of 128
        let mut mixer = Mixer::new();
        mixer.next(&[0.0; H * SYMBOLS], b'a');
        assert!((mixer.bits - 7.0).abs() < 1e-4, "{}", mixer.bits);
        // all heads are sure: almost none if they are right, many if they are wrong
        let mut counts = vec![0.0; H * SYMBOLS];
        counts.iter_mut().skip(usize::from(b'a')).step_by(SYMBOLS).for_each(|c| *c = 1000.0);
        let mut right = Mixer::new();
        right.next(&counts, b'a');
        let mut wrong = Mixer::new();
        wrong.next(&counts, b'b');
        assert!(right.bits < 0.01 && wrong.bits > 15.0, "{} {}", right.bits, wrong.bits);
    }

    #[test]
    fn english_has_its_entropy() {
        assert!((4.0..5.0).contains(&order_zero()), "{}", order_zero());
    }
}
