//! A device, its queue, and the kernels compiled on it.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, Waker},
};

use crate::{
    Caps, Error, Result, Tuning,
    home::{Home, instances},
    shader::{Kernel, Key},
};

/// A device, its queue, what it can do, and the kernels compiled on it so far.
///
/// Cheap to clone; clones share the kernels. `Send + Sync`.
///
/// Tensors and plans belong to the device of the context that they were made with, and only contexts
/// of that device take them ([`Context::same_device`]): others answer [`Error::OtherContext`]. Of a
/// `wgpu::Buffer` that this crate did not make, wgpu itself knows the device, and refuses it as well,
/// if both devices are of one instance of wgpu, as all are that this crate opens, but for those of
/// OpenGL. Buffers of another instance, or of an OpenGL device opened apart, cannot be told
/// from the context's own, nor can encoders be: there the caller must see to it.
///
/// ```no_run
/// # fn main() -> tilewise::Result<()> {
/// let ctx = tilewise::Context::new_blocking()?;
/// println!("{} with {} kernels", ctx.device.adapter_info().name, ctx.caps.tier);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Context {
    /// The device.
    pub device: wgpu::Device,
    /// Its queue.
    pub queue: wgpu::Queue,
    /// What planning may know of the device.
    pub caps: Caps,
    shared: Arc<Shared>,
    tuning: Option<Arc<Tuning>>,
}

#[derive(Debug)]
struct Shared {
    home: Arc<Home>,
    kernels: Mutex<Kernels>,
    /// Opened by this crate, which may poll it and has installed its handlers.
    owned: bool,
    /// Set by the device-lost callback of owned devices.
    lost: Arc<Mutex<Option<String>>>,
    /// Every dispatch so far.
    #[cfg(test)]
    dispatched: Mutex<Vec<Dispatched>>,
}

/// The compiled kernels.
#[derive(Debug, Default)]
struct Kernels {
    /// With the time of their last use.
    held: HashMap<Key, (Arc<Kernel>, u64)>,
    /// Uses so far.
    uses: u64,
    /// Most that are held.
    limit: Option<usize>,
    /// Times that one was compiled.
    compilations: usize,
    /// Keys of all that were ever compiled, for their texts: small.
    compiled: HashSet<Key>,
}

impl Kernels {
    fn get(&mut self, key: &Key) -> Option<Arc<Kernel>> {
        let (kernel, last) = self.held.get_mut(key)?;
        self.uses += 1;
        *last = self.uses;
        Some(Arc::clone(kernel))
    }

    fn insert(&mut self, key: Key, kernel: Arc<Kernel>) {
        self.uses += 1;
        self.compilations += 1;
        self.compiled.insert(key.clone());
        self.held.insert(key, (kernel, self.uses));
        self.drop_oldest();
    }

    fn drop_oldest(&mut self) {
        while self.limit.is_some_and(|limit| self.held.len() > limit) {
            let oldest = self.held.iter().min_by_key(|(_, (_, last))| *last);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.held.remove(&key);
        }
    }
}

/// A dispatch that was encoded.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dispatched {
    pub(crate) label: String,
    pub(crate) wgsl: String,
    /// The kernel's `Params`.
    pub(crate) params: Vec<u8>,
    pub(crate) groups: [u32; 3],
}

impl Context {
    /// Opens the adapter that `WGPU_BACKEND` and `WGPU_ADAPTER_NAME` ask for, else the
    /// high-performance one, with all the limits it has and the features that kernels here use.
    /// Needs no window.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] listing what there is, [`Error::NoDevice`].
    pub async fn new() -> Result<Self> {
        let wanted = std::env::var("WGPU_ADAPTER_NAME").ok().filter(|n| !n.is_empty());
        let adapter = match wanted {
            Some(name) => {
                let all = Self::adapters().await;
                let lower = name.to_lowercase();
                let names: Vec<String> = all.iter().map(|a| a.get_info().name).collect();
                all.into_iter()
                    .find(|a| a.get_info().name.to_lowercase().contains(&lower))
                    .ok_or_else(|| {
                        Error::NoAdapter(format!(
                            "WGPU_ADAPTER_NAME={name} matches none of {names:?}"
                        ))
                    })?
            }
            None => preferred().await?,
        };
        Self::from_adapter(&adapter).await
    }

    /// [`Context::new`], blocking.
    ///
    /// # Errors
    /// As [`Context::new`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new_blocking() -> Result<Self> {
        pollster::block_on(Self::new())
    }

    /// Every adapter that can run compute shaders, on the backends that `WGPU_BACKEND` allows.
    ///
    /// All calls look into one instance of wgpu, made by the first, but for adapters of OpenGL, of
    /// which each call has an instance of its own (its devices may work in one thread at a time).
    pub async fn adapters() -> Vec<wgpu::Adapter> {
        let mut all = Vec::new();
        for (backends, instance) in instances(allowed()) {
            all.extend(instance.enumerate_adapters(backends).await);
        }
        all.retain(|a| {
            a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
                && a.limits().max_storage_buffers_per_shader_stage > 0
        });
        all
    }

    /// Opens `adapter` with all the limits it has and the features that kernels here use.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub async fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self> {
        let useful = wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SHADER_INT64
            | wgpu::Features::TIMESTAMP_QUERY;
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("tilewise"),
                required_features: adapter.features() & useful,
                required_limits: adapter.limits(),
                ..Default::default()
            })
            .await
            .map_err(|e| Error::NoDevice(e.to_string()))?;
        let ctx = Self::with_owner(device, queue, true);
        let lost = Arc::clone(&ctx.shared.lost);
        ctx.device.set_device_lost_callback(move |reason, message| {
            *lock(&lost) = Some(format!("{reason:?}: {message}"));
        });
        ctx.device.on_uncaptured_error(Arc::new(|error| log::error!("uncaptured: {error}")));
        Ok(ctx)
    }

    /// Adopts a device and queue that the caller owns.
    ///
    /// Installs no handler on the device and submits nothing to the queue; only
    /// [`Tensor::download`](crate::Tensor::download), [`Context::wait`] and the timing helper,
    /// when called, submit and poll. What the kernels can use is what the device was opened with:
    /// ask the adapter for its limits and for `SUBGROUP` (and `TIMESTAMP_QUERY` to time;
    /// `SHADER_INT64` makes decoding faster on Mesa's CPU driver before release 25). The loss
    /// of the device is the caller's to watch for (`Device::set_device_lost_callback`): wgpu accepts
    /// calls on a lost device in silence.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::with_owner(device, queue, false)
    }

    fn with_owner(device: wgpu::Device, queue: wgpu::Queue, owned: bool) -> Self {
        let caps = Caps::of(&device);
        let shared = Shared {
            home: Home::of(&device),
            kernels: Mutex::default(),
            owned,
            lost: Arc::default(),
            #[cfg(test)]
            dispatched: Mutex::default(),
        };
        Self { device, queue, caps, shared: Arc::new(shared), tuning: None }
    }

    /// The same device planned for as if it had `caps`: to force a tier, or to imitate a smaller
    /// device. Claiming more than the device has makes kernels fail to compile.
    #[must_use]
    pub fn with_caps(&self, caps: Caps) -> Self {
        Self { caps, ..self.clone() }
    }

    /// The same device, with tiles from `tuning` for plans that leave theirs open.
    #[must_use]
    pub fn with_tuning(&self, tuning: Tuning) -> Self {
        Self { tuning: Some(Arc::new(tuning)), ..self.clone() }
    }

    /// The table that plans look into.
    pub fn tuning(&self) -> Option<&Tuning> {
        self.tuning.as_deref()
    }

    /// The same device with kernels of `tier` only.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device cannot run them.
    pub fn with_tier(&self, tier: crate::Tier) -> Result<Self> {
        let caps = self.caps.with_tier(tier).ok_or_else(|| Error::Unsupported {
            op: "context",
            feature: "subgroup operations (Features::SUBGROUP)".into(),
        })?;
        Ok(self.with_caps(caps))
    }

    /// The same device planned for as one of `class`; see [`Caps::with_class`].
    #[must_use]
    pub fn with_class(&self, class: crate::DeviceClass) -> Self {
        self.with_caps(self.caps.with_class(class))
    }

    /// Blocks until all that was submitted so far is done.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Timeout`] after ten minutes.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(&self, op: &'static str) -> Result<()> {
        let seconds = 600;
        let poll = self.device.poll(wgpu::PollType::Wait {
            submission_index: None,
            timeout: Some(std::time::Duration::from_secs(seconds)),
        });
        if let Some(reason) = self.lost() {
            return Err(Error::DeviceLost { op, reason });
        }
        match poll {
            Ok(_) => Ok(()),
            Err(wgpu::PollError::Timeout) => Err(Error::Timeout { op, seconds }),
            Err(other) => Err(Error::Device { op, message: other.to_string() }),
        }
    }

    /// Whether both are contexts of one device: their tensors and plans may be used with either.
    ///
    /// So it is with clones, with what `with_caps`, `with_tier` and `with_tuning` return, and with
    /// contexts that adopted the same device. (`wgpu::Device`'s own `==` does not tell devices of
    /// different instances apart.)
    pub fn same_device(&self, other: &Self) -> bool {
        self.home().is(other.home())
    }

    pub(crate) fn home(&self) -> &Arc<Home> {
        &self.shared.home
    }

    /// Refuses a plan that was made on another device. One that was designed without a device may be
    /// used on any.
    pub(crate) fn expect_plan(&self, op: &'static str, home: Option<&Arc<Home>>) -> Result<()> {
        self.home().expect(op, "the plan", home.map(AsRef::as_ref))
    }

    /// Why the device was lost, if this crate opened it and it was.
    pub fn lost(&self) -> Option<String> {
        lock(&self.shared.lost).clone()
    }

    /// Number of kernels held: compiled so far and not forgotten.
    pub fn compiled_kernels(&self) -> usize {
        lock(&self.shared.kernels).held.len()
    }

    /// The WGSL text of every kernel compiled so far as a browser is given it, each once, sorted: to
    /// look at, or to try on another compiler; also of those that were forgotten. Without those that
    /// read 64-bit words, which WGSL does not know and no browser is given ([`Caps::wide_loads`]).
    pub fn compiled_wgsl(&self) -> Vec<String> {
        self.compiled_texts().into_iter().map(|(_, text)| text).collect()
    }

    /// [`Context::compiled_wgsl`], each text with the label of its kernel before it: file, entry point
    /// and constants.
    pub fn compiled_texts(&self) -> Vec<(String, String)> {
        let mut keys: Vec<Key> = lock(&self.shared.kernels).compiled.iter().cloned().collect();
        keys.retain(Key::is_portable);
        let mut texts: Vec<_> = keys.iter().map(|k| (k.label(), k.browser_wgsl())).collect();
        texts.sort_unstable_by(|a, b| (&a.1, &a.0).cmp(&(&b.1, &b.0)));
        texts.dedup_by(|a, b| a.1 == b.1);
        texts
    }

    /// Drops the compiled kernels; plans stay valid and compile them again when next encoded. Software
    /// drivers hold tens of megabytes for each.
    pub fn forget_kernels(&self) {
        lock(&self.shared.kernels).held.clear();
    }

    /// The same device, on which at most `limit` kernels are held from now on: beyond, the one whose
    /// last use is longest ago is forgotten, as by [`Context::forget_kernels`]. Clones share their
    /// kernels and with them the limit, those made before too. At first there is none.
    ///
    /// For programs that plan many problems, one after the other. With fewer than a plan encodes
    /// (one to some ten), each call compiles again. Plans of Gaunt products keep the kernels that they
    /// have used as long as they live.
    #[must_use]
    pub fn with_kernel_limit(&self, limit: usize) -> Self {
        let mut kernels = lock(&self.shared.kernels);
        kernels.limit = Some(limit);
        kernels.drop_oldest();
        drop(kernels);
        self.clone()
    }

    /// Compiles the kernels that `encode` needs and that are not held, and returns how many: it records
    /// into an encoder that is thrown away, and nothing runs.
    ///
    /// Planning compiles the kernels for usual views. Others, of views whose rows do not start at
    /// multiples of four elements, or with other optional tensors, the first call compiles, which takes
    /// from milliseconds to a second each; here they can be had before it matters.
    ///
    /// ```no_run
    /// # use tilewise::{Context, attention::{AttentionArgs, AttentionPlan}};
    /// # fn f(ctx: &Context, plan: &AttentionPlan, args: AttentionArgs<'_>) -> tilewise::Result<()> {
    /// let compiled = ctx.compile_ahead(|encoder| plan.encode(ctx, encoder, &args))?;
    /// # let _ = compiled; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn compile_ahead(
        &self,
        encode: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<usize> {
        let count = || lock(&self.shared.kernels).compilations;
        let before = count();
        encode(&mut self.device.create_command_encoder(&Default::default()))?;
        Ok(count() - before)
    }

    /// A buffer of at least `bytes` bytes (rounded up to 16, never empty), zeroed.
    pub(crate) fn create_buffer(
        &self,
        op: &'static str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let size = bytes.max(1).checked_next_multiple_of(16).unwrap_or(u64::MAX);
        if size > self.caps.buffer_size {
            let limit = self.caps.buffer_size;
            return Err(Error::Limit { op, what: "bytes in one buffer", need: size, limit });
        }
        self.guard(op, Some(size), || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(op),
                size,
                usage,
                mapped_at_creation: false,
            })
        })
    }

    /// A buffer for a plan's scratch; `None` if it needs none.
    pub(crate) fn scratch(&self, op: &'static str, bytes: u64) -> Result<Option<wgpu::Buffer>> {
        let usage = wgpu::BufferUsages::STORAGE;
        (bytes > 0).then(|| self.create_buffer(op, bytes, usage)).transpose()
    }

    /// A uniform buffer holding `params`: one for each encode, so that several encodes can share
    /// a submission.
    pub(crate) fn uniform(&self, op: &'static str, params: &[u8]) -> Result<wgpu::Buffer> {
        self.initialised(op, params, wgpu::BufferUsages::UNIFORM)
    }

    /// A read-only storage buffer holding a table, for plans that own one.
    // used by the plans of table-driven operators
    #[allow(dead_code, reason = "operators with host tables use it")]
    pub(crate) fn table(&self, op: &'static str, bytes: &[u8]) -> Result<wgpu::Buffer> {
        self.initialised(op, bytes, wgpu::BufferUsages::STORAGE)
    }

    fn initialised(
        &self,
        op: &'static str,
        bytes: &[u8],
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let size = (bytes.len() as u64).max(1).next_multiple_of(16);
        if size > self.caps.buffer_size {
            let limit = self.caps.buffer_size;
            return Err(Error::Limit { op, what: "bytes in one buffer", need: size, limit });
        }
        self.guard(op, Some(size), || {
            let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(op),
                size,
                usage,
                mapped_at_creation: true,
            });
            // a lost device hands out buffers that cannot be mapped; the scope reports it
            if let Ok(mut mapped) = buffer.get_mapped_range_mut(..) {
                mapped.slice(..bytes.len()).copy_from_slice(bytes);
            }
            buffer.unmap();
            buffer
        })
    }

    /// Runs `f` and returns what the device refused in it as an error.
    ///
    /// On native targets errors are known at once. In a browser they arrive later and go to the
    /// device's own handler: all that can be checked here is checked before `f`.
    pub(crate) fn guard<R>(
        &self,
        op: &'static str,
        bytes: Option<u64>,
        f: impl FnOnce() -> R,
    ) -> Result<R> {
        // a lost device accepts every call in silence, and says so only to its callback
        #[cfg(not(target_arch = "wasm32"))]
        if self.shared.owned {
            let _ = self.device.poll(wgpu::PollType::Poll);
        }
        if let Some(reason) = self.lost() {
            return Err(Error::DeviceLost { op, reason });
        }
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let result = f();
        // scopes nest, so all must be popped before the first error returns
        let caught =
            [poll_once(memory.pop()), poll_once(internal.pop()), poll_once(validation.pop())];
        match caught.into_iter().flatten().flatten().next() {
            None => Ok(result),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(Error::OutOfMemory { op, bytes }),
            Some(error) => {
                let message = error.to_string();
                if let Some(stranger) = self.stranger(op, &message) {
                    return Err(stranger);
                }
                let reason =
                    self.lost().or_else(|| message.contains("is lost").then(|| message.clone()));
                Err(match reason {
                    Some(reason) => Error::DeviceLost { op, reason },
                    None => Error::Device { op, message: causes(&error) },
                })
            }
        }
    }

    /// wgpu's complaint of a resource of another device of the same instance.
    fn stranger(&self, op: &'static str, message: &str) -> Option<Error> {
        let line = message.lines().find(|line| line.contains(" doesn't match Device"))?;
        let (owner, _) = line.split_once(" doesn't match ")?;
        let (device, resource) = owner.split_once(" of ")?;
        let owner = format!("another ({}: {resource})", device.trim());
        Some(Error::OtherContext { op, what: "a buffer", owner, given: self.home().to_string() })
    }

    /// The kernel for `key`, compiled at most once per context and its clones, unless it was forgotten.
    pub(crate) fn kernel(&self, key: Key) -> Result<Arc<Kernel>> {
        if let Some(kernel) = lock(&self.shared.kernels).get(&key) {
            return Ok(kernel);
        }
        // compiled outside the lock: a slow driver must not hold up the other threads
        let compiled = Arc::new(Kernel::compile(self, &key)?);
        let mut kernels = lock(&self.shared.kernels);
        // another thread may have been faster
        if let Some(kernel) = kernels.get(&key) {
            return Ok(kernel);
        }
        kernels.insert(key, Arc::clone(&compiled));
        Ok(compiled)
    }

    /// Notes a dispatch.
    #[cfg(test)]
    pub(crate) fn note(&self, dispatched: Dispatched) {
        lock(&self.shared.dispatched).push(dispatched);
    }

    /// The dispatches since the last call.
    #[cfg(test)]
    #[cfg_attr(not(feature = "conformance"), allow(dead_code, reason = "a test of golden cases"))]
    pub(crate) fn take_dispatched(&self) -> Vec<Dispatched> {
        std::mem::take(&mut lock(&self.shared.dispatched))
    }

    /// Submits a copy of the first `bytes` of `buffer` and returns the future of its contents.
    pub(crate) fn start_read(
        &self,
        buffer: &wgpu::Buffer,
        bytes: u64,
    ) -> Result<impl Future<Output = Result<Vec<u8>>> + use<>> {
        const OP: &str = "download";
        let size = bytes.max(1).next_multiple_of(4);
        let staging = self.create_buffer(
            OP,
            size,
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        )?;
        let answer = Arc::new(Answer::default());
        self.guard(OP, None, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size.min(buffer.size()));
            self.queue.submit([encoder.finish()]);
            let answer = Arc::clone(&answer);
            staging.map_async(wgpu::MapMode::Read, .., move |result| answer.set(result));
        })?;
        let lost = Arc::clone(&self.shared.lost);
        Ok(async move {
            if answer.wait().await.is_err() {
                let reason = lock(&lost).clone();
                return Err(match reason {
                    Some(reason) => Error::DeviceLost { op: OP, reason },
                    None => {
                        Error::Device { op: OP, message: "the copy could not be mapped".into() }
                    }
                });
            }
            let mapped = staging
                .get_mapped_range(..)
                .map_err(|e| Error::Device { op: OP, message: e.to_string() })?;
            let mut data = mapped.to_vec();
            data.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
            drop(mapped);
            staging.unmap();
            Ok(data)
        })
    }
}

/// wgpu's complaint, the cause first: what was called, and with which label, comes last.
fn causes(error: &wgpu::Error) -> String {
    let first = std::error::Error::source(error);
    let mut causes: Vec<String> = std::iter::successors(first, |e| e.source())
        .map(|e| e.to_string().trim().to_owned())
        .collect();
    if causes.is_empty() {
        return error.to_string();
    }
    causes.reverse();
    // errors that say no more than their source
    causes.dedup();
    causes.join("; ")
}

/// The answer of a `map_async`, awaited.
#[derive(Default)]
struct Answer(Mutex<AnswerState>);

#[derive(Default)]
struct AnswerState {
    result: Option<Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

impl Answer {
    fn set(&self, result: Result<(), wgpu::BufferAsyncError>) {
        let mut state = lock(&self.0);
        state.result = Some(result);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    async fn wait(&self) -> Result<(), wgpu::BufferAsyncError> {
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.0);
            match state.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// A lock that outlives a panic elsewhere: what it guards is never left half-written.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of a future that is ready at once, as error scopes are on native targets.
pub(crate) fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// The backends that `WGPU_BACKEND` allows.
fn allowed() -> wgpu::Backends {
    wgpu::Backends::from_env().unwrap_or(wgpu::Backends::all())
}

/// The adapter that wgpu prefers, of those of all instances.
async fn preferred() -> Result<wgpu::Adapter> {
    let power_preference =
        wgpu::PowerPreference::from_env().unwrap_or(wgpu::PowerPreference::HighPerformance);
    let options = wgpu::RequestAdapterOptions { power_preference, ..Default::default() };
    // wgpu's own order
    let place = |adapter: &wgpu::Adapter| match (adapter.get_info().device_type, power_preference) {
        (_, wgpu::PowerPreference::None) => 0,
        (wgpu::DeviceType::IntegratedGpu, wgpu::PowerPreference::LowPower) => 0,
        (wgpu::DeviceType::DiscreteGpu, _) => 1,
        (wgpu::DeviceType::IntegratedGpu, _) => 2,
        (wgpu::DeviceType::Other, _) => 3,
        (wgpu::DeviceType::VirtualGpu, _) => 4,
        (wgpu::DeviceType::Cpu, _) => 5,
    };
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    for (_, instance) in instances(allowed()) {
        match instance.request_adapter(&options).await {
            Ok(adapter) => found.push(adapter),
            Err(reason) => reasons.push(reason.to_string()),
        }
    }
    // of equals the first
    found.into_iter().min_by_key(place).ok_or_else(|| Error::NoAdapter(reasons.join("; ")))
}
