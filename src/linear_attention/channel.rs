//! Attention between channels: a softmax of the state, applied to the queries.

use super::{
    LinearAttention, LinearAttentionShape, OP,
    encode::{Call, Inner},
};
use crate::{Context, DType, Error, Result, TensorView, shader::Key};

/// Channel attention (DaViT; Ding et al. 2022, arXiv:2204.03645): channels look at channels, over
/// all tokens. Per batch entry and head, with `C` channels,
///
/// ```text
/// A_ij = softmax_j(scale * sum_n k_ni v_nj),    o_ni = sum_j A_ij q_nj
/// ```
///
/// as the authors' code names the tensors: `k` takes the part of queries, `v` of keys, `q` of
/// values. The sum over tokens is the state of linear attention without decay. Cost `4 N C^2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChannelAttention {
    /// Factor of the sums before the softmax; DaViT uses `1 / sqrt(C)`.
    pub scale: f32,
    /// Element type of `q`, `k`, `v` and `o`. Sums and softmax are f32.
    pub dtype: DType,
}

impl Default for ChannelAttention {
    /// Scale 1, f32.
    fn default() -> Self {
        Self { scale: 1.0, dtype: DType::F32 }
    }
}

/// Sizes of a channel attention: `q`, `k`, `v` and `o` are all `[batch, tokens, heads, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelAttentionShape {
    /// Independent sequences or images.
    pub batch: u32,
    /// Tokens or pixels.
    pub tokens: u32,
    /// Groups of channels.
    pub heads: u32,
    /// Channels of a group, up to [`MAX_DIM`](super::MAX_DIM).
    pub channels: u32,
}

/// The tensors of one call, each `[batch, tokens, heads, channels]`; strides are free but for the
/// last axis.
#[derive(Clone, Copy, Debug)]
pub struct ChannelAttentionArgs<'a> {
    /// What is mixed.
    pub q: TensorView<'a, 4>,
    /// Rows of the channel-to-channel sums.
    pub k: TensorView<'a, 4>,
    /// Columns of the sums.
    pub v: TensorView<'a, 4>,
    /// Output, written everywhere.
    pub o: TensorView<'a, 4>,
    /// At least [`ChannelAttentionPlan::scratch_bytes`] bytes with usage `STORAGE`.
    pub scratch: Option<&'a wgpu::Buffer>,
}

/// A checked and compiled channel attention. Encode it as often as you like.
#[derive(Clone, Debug)]
pub struct ChannelAttentionPlan(Inner);

impl ChannelAttention {
    /// Checks the problem, chooses kernels and compiles them.
    ///
    /// # Errors
    /// [`Error::Shape`] for a size out of range, [`Error::Value`] for a scale that is not finite,
    /// [`Error::Limit`] where the device or the integers are too small, [`Error::Compile`],
    /// [`Error::DeviceLost`].
    pub fn plan(&self, ctx: &Context, s: ChannelAttentionShape) -> Result<ChannelAttentionPlan> {
        if !self.scale.is_finite() {
            return Err(Error::value(OP, "scale", "a finite number", self.scale));
        }
        let op = LinearAttention { causal: false, dtype: self.dtype, ..Default::default() };
        let shape = LinearAttentionShape::new(s.batch, s.tokens, s.heads, s.channels, s.channels);
        let mut inner = Inner::new(&op, ctx, shape, true)?;
        inner.softmax = Some(self.scale);
        ctx.kernel(inner.softmax_key())?;
        Ok(ChannelAttentionPlan(inner))
    }
}

impl ChannelAttentionPlan {
    /// Bytes of scratch that a call needs: `4 B H C^2` for the state, and with several
    /// [segments](super::LinearAttentionPlan::segments) as much again for each.
    pub fn scratch_bytes(&self) -> u64 {
        self.0.scratch(true).total
    }

    /// A buffer of [`scratch_bytes`](Self::scratch_bytes) for calls with this plan, one after the
    /// other; `None` if that is 0.
    ///
    /// # Errors
    /// [`Error::OtherContext`] if the plan is of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn scratch(&self, ctx: &Context) -> Result<Option<wgpu::Buffer>> {
        ctx.expect_plan(OP, Some(&self.0.home))?;
        ctx.scratch(OP, self.scratch_bytes())
    }

    /// The text of each kernel, for aligned views.
    pub fn wgsl(&self) -> Vec<String> {
        let mut keys = self.0.keys();
        keys.insert(1, self.0.softmax_key());
        keys.iter().map(Key::wgsl).collect()
    }

    /// Records the kernels into the caller's encoder, in a compute pass of their own; submits
    /// nothing.
    ///
    /// # Errors
    /// As [`ChannelAttentionPlan::encode_pass`].
    pub fn encode(
        &self,
        ctx: &Context,
        encoder: &mut wgpu::CommandEncoder,
        args: &ChannelAttentionArgs<'_>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("channel_attention"),
            timestamp_writes: None,
        });
        self.encode_pass(ctx, &mut pass, args)
    }

    /// Records the kernels into the caller's compute pass; submits nothing.
    ///
    /// # Errors
    /// As [`LinearAttentionPlan::encode_pass`](super::LinearAttentionPlan::encode_pass).
    pub fn encode_pass(
        &self,
        ctx: &Context,
        pass: &mut wgpu::ComputePass<'_>,
        a: &ChannelAttentionArgs<'_>,
    ) -> Result<()> {
        // under their own names: below, `v` stands for the keys and `k` for the values, so that
        // the softmax runs over the state's rows and the state needs no transposition
        let s = self.0.shape();
        let shape = [s.batch, s.seq_k, s.heads, s.key_dim];
        let dtype = self.0.dtype();
        a.q.expect(OP, "q", shape, dtype)?;
        a.k.expect(OP, "k", shape, dtype)?;
        a.v.expect(OP, "v", shape, dtype)?;
        let call = Call {
            io: Some((&a.q, &a.o)),
            k: &a.v,
            v: &a.k,
            gates: None,
            beta: None,
            states: (None, None),
            key_sums: (None, None),
            cu: None,
            scratch: a.scratch,
        };
        self.0.record(ctx, pass, &call)
    }
}
