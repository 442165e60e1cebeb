//! The one error type of the crate.

/// What a call can fail with.
///
/// Every variant that a caller's argument can cause names the operator (`op`), the argument or
/// quantity (`what`), what was expected and what was got, so that the message alone is enough to
/// mend the call.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A dimension, count or shape that the operator does not accept.
    #[error("{op}: {what}: expected {expected}, got {got}")]
    Shape {
        /// Operator, e.g. `attention`.
        op: &'static str,
        /// Argument or dimension.
        what: &'static str,
        /// The legal values.
        expected: String,
        /// What the caller passed.
        got: String,
    },
    /// A scalar option outside its range, NaN included.
    #[error("{op}: {what}: expected {expected}, got {got}")]
    Value {
        /// Operator.
        op: &'static str,
        /// Option.
        what: &'static str,
        /// The legal values.
        expected: String,
        /// What the caller passed.
        got: String,
    },
    /// A tensor of another element type than the plan was made for.
    #[error("{op}: {what}: expected elements of type {expected}, got {got}")]
    DType {
        /// Operator.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// The plan's element type.
        expected: crate::DType,
        /// The tensor's element type.
        got: crate::DType,
    },
    /// A view that reaches past the end of its buffer.
    #[error("{op}: {what}: the view ends at byte {end}, its buffer at byte {size}")]
    OutOfRange {
        /// Operator, or `tensor` when a view is made.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// One past the last byte that the view touches.
        end: u64,
        /// The buffer's size in bytes.
        size: u64,
    },
    /// A view or buffer whose address or size the device cannot bind.
    #[error("{op}: {what}: {quantity} must be a multiple of {multiple}, got {got}")]
    Misaligned {
        /// Operator, or `tensor` when a view is made.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// What is misaligned, in words.
        quantity: &'static str,
        /// The required multiple.
        multiple: u64,
        /// What the caller passed.
        got: u64,
    },
    /// Strides that an argument cannot have: the last axis not contiguous, or an output that
    /// writes one element twice.
    #[error("{op}: {what}: expected {expected}, got strides {strides:?} for shape {shape:?}")]
    Strides {
        /// Operator.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// The rule that is broken.
        expected: &'static str,
        /// Shape of the view.
        shape: Vec<u32>,
        /// Strides of the view, in elements.
        strides: Vec<u64>,
    },
    /// An output that shares its buffer with another argument where that cannot be.
    ///
    /// A device tracks use per buffer, not per byte range: what one kernel reads and what it writes
    /// cannot lie in one buffer, even in ranges that are apart. Where kernels write both, or can be
    /// made to read as if they wrote (by a text of their own), ranges apart are taken: outputs beside
    /// outputs in attention, also of triples, of merged parts and on maps; the caches and what is
    /// appended to them; `q`, `k` and `v` beside outputs in attention, unless they are quantised. Apart
    /// are ranges that have no word of four bytes in common, and layouts that take turns in a common
    /// stride, as keys and values side by side in `[.., 2, ..]`. (In browsers bindings must be
    /// apart too, and they begin at multiples of [`Caps::offset_alignment`](crate::Caps).)
    #[error(
        "{op}: output {output} shares its buffer with {other}; give it a buffer of its own, or, where \
         the operator takes that, a range apart"
    )]
    SharedBuffer {
        /// Operator.
        op: &'static str,
        /// The output.
        output: &'static str,
        /// The other argument.
        other: &'static str,
    },
    /// A tensor, a buffer or a plan of another device than the context's.
    #[error("{op}: {what} belongs to {owner}, the context to {given}")]
    OtherContext {
        /// Operator, or `tensor` or `download`.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// The device that it belongs to: a number and the adapter.
        owner: String,
        /// The context's device.
        given: String,
    },
    /// A buffer created without a usage that the call needs.
    #[error("{op}: {what}: the buffer lacks usage {missing:?}")]
    Usage {
        /// Operator.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// The usage that is missing.
        missing: wgpu::BufferUsages,
    },
    /// An optional argument that this plan needs, or one that it cannot take.
    #[error("{op}: {what}: {problem}")]
    Argument {
        /// Operator.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A size that does not fit the integers or the limits of the device.
    #[error("{op}: needs {need} {what}, the limit is {limit}")]
    Limit {
        /// Operator.
        op: &'static str,
        /// The limited quantity, with its unit.
        what: &'static str,
        /// What the problem needs; saturated at `u64::MAX`.
        need: u64,
        /// What there is.
        limit: u64,
    },
    /// A device feature that the request needs and the device lacks.
    #[error("{op}: this device lacks {feature}")]
    Unsupported {
        /// Operator.
        op: &'static str,
        /// The missing feature.
        feature: String,
    },
    /// No adapter matches the request.
    #[error("no adapter: {0}")]
    NoAdapter(String),
    /// The adapter refused to open a device.
    #[error("the adapter did not open a device: {0}")]
    NoDevice(String),
    /// The device ran out of memory.
    #[error("{op}: out of device memory{}", .bytes.map(|b| format!(" (asked for {b} bytes)")).unwrap_or_default())]
    OutOfMemory {
        /// Operator or helper.
        op: &'static str,
        /// Size of the allocation that failed, where known.
        bytes: Option<u64>,
    },
    /// The device is lost: driver reset, removal, or `Device::destroy`. Open a new context.
    #[error("{op}: the device is lost: {reason}")]
    DeviceLost {
        /// Operator or helper.
        op: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The driver did not compile a kernel.
    #[error("{kernel}: the device refused the kernel: {message}")]
    Compile {
        /// File and entry point.
        kernel: String,
        /// The compiler's message.
        message: String,
    },
    /// Any other refusal by wgpu. Please report it: the checks of this crate should come first.
    #[error("{op}: the device refused a call: {message}")]
    Device {
        /// Operator or helper.
        op: &'static str,
        /// wgpu's message.
        message: String,
    },
    /// The device did not answer within the caller's patience.
    #[error("{op}: no answer from the device after {seconds} s")]
    Timeout {
        /// Helper.
        op: &'static str,
        /// How long was waited.
        seconds: u64,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Shape`] from anything printable.
    pub(crate) fn shape(
        op: &'static str,
        what: &'static str,
        expected: impl ToString,
        got: impl ToString,
    ) -> Self {
        Self::Shape { op, what, expected: expected.to_string(), got: got.to_string() }
    }

    /// An [`Error::Value`] from anything printable.
    pub(crate) fn value(
        op: &'static str,
        what: &'static str,
        expected: impl ToString,
        got: impl ToString,
    ) -> Self {
        Self::Value { op, what, expected: expected.to_string(), got: got.to_string() }
    }

    /// An [`Error::Argument`].
    pub(crate) fn argument(op: &'static str, what: &'static str, problem: impl ToString) -> Self {
        Self::Argument { op, what, problem: problem.to_string() }
    }
}
