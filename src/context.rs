//! A device, its queue, and the kernels compiled on it.

use std::{
    collections::HashMap,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, Waker},
};

use crate::{
    Caps, Error, Result, Tuning,
    shader::{Kernel, Key},
};

/// A device, its queue, what it can do, and the kernels compiled on it so far.
///
/// Cheap to clone; clones share the kernels. `Send + Sync`.
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
    kernels: Mutex<HashMap<Key, Arc<Kernel>>>,
    /// Opened by this crate, which may poll it and has installed its handlers.
    owned: bool,
    /// Set by the device-lost callback of owned devices.
    lost: Arc<Mutex<Option<String>>>,
    /// Every dispatch so far.
    #[cfg(test)]
    dispatched: Mutex<Vec<Dispatched>>,
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
        let instance = instance();
        let wanted = std::env::var("WGPU_ADAPTER_NAME").ok().filter(|n| !n.is_empty());
        let adapter = match wanted {
            Some(name) => {
                let all = enumerate(&instance).await;
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
            None => instance
                .request_adapter(&wgpu::RequestAdapterOptions {
                    power_preference: wgpu::PowerPreference::from_env()
                        .unwrap_or(wgpu::PowerPreference::HighPerformance),
                    ..Default::default()
                })
                .await
                .map_err(|e| Error::NoAdapter(e.to_string()))?,
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
    pub async fn adapters() -> Vec<wgpu::Adapter> {
        enumerate(&instance()).await
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

    /// Why the device was lost, if this crate opened it and it was.
    pub fn lost(&self) -> Option<String> {
        lock(&self.shared.lost).clone()
    }

    /// Number of kernels compiled so far.
    pub fn compiled_kernels(&self) -> usize {
        lock(&self.shared.kernels).len()
    }

    /// The WGSL text of every kernel compiled so far as a browser is given it, each once, sorted: to
    /// look at, or to try on another compiler. Without those that read 64-bit words, which WGSL does
    /// not know and no browser is given ([`Caps::wide_loads`]).
    pub fn compiled_wgsl(&self) -> Vec<String> {
        let mut keys: Vec<Key> = lock(&self.shared.kernels).keys().cloned().collect();
        keys.retain(Key::is_portable);
        let mut texts: Vec<String> = keys.iter().map(Key::browser_wgsl).collect();
        texts.sort_unstable();
        texts.dedup();
        texts
    }

    /// Drops the compiled kernels; plans stay valid and compile them again when next encoded. Software drivers hold tens of megabytes for each.
    pub fn forget_kernels(&self) {
        lock(&self.shared.kernels).clear();
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
                let reason =
                    self.lost().or_else(|| message.contains("is lost").then(|| message.clone()));
                Err(match reason {
                    Some(reason) => Error::DeviceLost { op, reason },
                    None => Error::Device { op, message },
                })
            }
        }
    }

    /// The kernel for `key`, compiled at most once per context and its clones.
    pub(crate) fn kernel(&self, key: Key) -> Result<Arc<Kernel>> {
        if let Some(kernel) = lock(&self.shared.kernels).get(&key) {
            return Ok(Arc::clone(kernel));
        }
        // compiled outside the lock: a slow driver must not hold up the other threads
        let kernel = Arc::new(Kernel::compile(self, &key)?);
        Ok(Arc::clone(lock(&self.shared.kernels).entry(key).or_insert(kernel)))
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
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of a future that is ready at once, as error scopes are on native targets.
fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

async fn enumerate(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let backends = wgpu::Backends::from_env().unwrap_or(wgpu::Backends::all());
    let all = instance.enumerate_adapters(backends).await;
    all.into_iter()
        .filter(|a| {
            a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
                && a.limits().max_storage_buffers_per_shader_stage > 0
        })
        .collect()
}
