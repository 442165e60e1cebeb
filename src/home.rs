//! Which device a tensor, a plan or a context belongs to.
//!
//! wgpu numbers devices and buffers anew in each of its instances and compares them by these numbers
//! alone: two devices, or two buffers, of different instances may be equal. So what this crate makes
//! remembers its device here.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
};

use crate::{
    Error, Result,
    context::{lock, poll_once},
};

/// Held while it is seen whether a device is known.
static ADOPTING: Mutex<()> = Mutex::new(());

/// A device, told apart from all others of this process.
#[derive(Debug)]
pub(crate) struct Home {
    /// Devices are counted as they become known.
    number: u64,
    device: wgpu::Device,
    adapter: String,
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {} ({})", self.number, self.adapter)
    }
}

impl Home {
    /// That of a device that may be known already.
    pub(crate) fn of(device: &wgpu::Device) -> Arc<Self> {
        // two threads may adopt one device
        let _alone = lock(&ADOPTING);
        // looked at after the registry's lock is gone: what is dropped last may be a device
        let known: Vec<Arc<Self>> = registry(|r| {
            r.homes.retain(|home| home.strong_count() > 0);
            r.homes.iter().filter_map(Weak::upgrade).collect()
        });
        let same = known.into_iter().find(|home| same_device(&home.device, device));
        same.unwrap_or_else(|| {
            let info = device.adapter_info();
            let home = Arc::new(Self {
                number: number(),
                device: device.clone(),
                adapter: format!("{}, {}", info.name, info.backend),
            });
            registry(|r| r.homes.push(Arc::downgrade(&home)));
            home
        })
    }

    /// Whether this is the other's device.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.number == other.number
    }

    /// Refuses `what` of `op` if it is known to be of another device.
    pub(crate) fn expect(
        &self,
        op: &'static str,
        what: &'static str,
        owner: Option<&Self>,
    ) -> Result<()> {
        match owner {
            Some(owner) if !self.is(owner) => Err(Error::OtherContext {
                op,
                what,
                owner: owner.to_string(),
                given: self.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// [`Home::expect`] for a buffer: known is one that lies in a [`Memory`].
    pub(crate) fn expect_buffer(
        &self,
        op: &'static str,
        what: &'static str,
        buffer: &wgpu::Buffer,
    ) -> Result<()> {
        let owner = registry(|r| r.buffers.get(&address(buffer)).cloned());
        self.expect(op, what, owner.as_deref())
    }
}

/// A buffer whose device is known by the place where its handle lies, which is the same for as long
/// as anyone can refer to it: of a `&wgpu::Buffer` alone nobody could tell.
#[derive(Debug)]
pub(crate) struct Memory {
    buffer: wgpu::Buffer,
    home: Arc<Home>,
}

impl Memory {
    pub(crate) fn new(buffer: wgpu::Buffer, home: Arc<Home>) -> Arc<Self> {
        let memory = Arc::new(Self { buffer, home });
        let home = Arc::clone(&memory.home);
        registry(|r| r.buffers.insert(address(&memory.buffer), home));
        memory
    }

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    pub(crate) fn home(&self) -> &Home {
        &self.home
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        registry(|r| r.buffers.remove(&address(&self.buffer)));
    }
}

fn address(buffer: &wgpu::Buffer) -> usize {
    std::ptr::from_ref(buffer).addr()
}

/// Whether two handles are of one device.
///
/// A device keeps its own error scopes: an error in one of the handles is caught by the other's.
fn same_device(a: &wgpu::Device, b: &wgpu::Device) -> bool {
    // in browsers this says it all
    if a != b || cfg!(target_arch = "wasm32") {
        return a == b;
    }
    // outside, so that nothing is left uncaught
    let outer = b.push_error_scope(wgpu::ErrorFilter::Validation);
    let inner = a.push_error_scope(wgpu::ErrorFilter::Validation);
    drop(b.create_buffer(&wgpu::BufferDescriptor {
        label: Some("refused on purpose"),
        size: 4,
        usage: wgpu::BufferUsages::empty(),
        mapped_at_creation: false,
    }));
    let caught = poll_once(inner.pop()).flatten().is_some();
    drop(outer.pop());
    caught
}

/// What is known in this process.
#[derive(Default)]
struct Registry {
    devices: u64,
    homes: Vec<Weak<Home>>,
    /// By their addresses.
    buffers: HashMap<usize, Arc<Home>>,
    instances: Vec<(wgpu::Backends, wgpu::Instance)>,
}

fn number() -> u64 {
    registry(|r| {
        r.devices += 1;
        r.devices
    })
}

/// Handles of wgpu stay in their thread in browsers.
#[cfg(target_arch = "wasm32")]
fn registry<R>(f: impl FnOnce(&mut Registry) -> R) -> R {
    thread_local! {
        static REGISTRY: std::cell::RefCell<Registry> = std::cell::RefCell::default();
    }
    REGISTRY.with_borrow_mut(f)
}

#[cfg(not(target_arch = "wasm32"))]
fn registry<R>(f: impl FnOnce(&mut Registry) -> R) -> R {
    use std::sync::LazyLock;
    static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);
    f(&mut lock(&REGISTRY))
}

/// The instances to look for adapters of `backends` in: one for all of a process, so that wgpu can
/// tell their buffers apart.
///
/// But for OpenGL, where an instance has one context of the driver, which one thread at a time may
/// use: there each caller gets an instance of its own, and with it may work in a thread of its own.
pub(crate) fn instances(backends: wgpu::Backends) -> Vec<(wgpu::Backends, wgpu::Instance)> {
    let open = |backends| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        descriptor.backends = backends;
        wgpu::Instance::new(descriptor)
    };
    let (shared, own) = (backends - wgpu::Backends::GL, backends & wgpu::Backends::GL);
    let mut all = Vec::new();
    if !shared.is_empty() {
        let instance = registry(|r| match r.instances.iter().find(|(b, _)| *b == shared) {
            Some((_, instance)) => instance.clone(),
            None => {
                let instance = open(shared);
                r.instances.push((shared, instance.clone()));
                instance
            }
        });
        all.push((shared, instance));
    }
    if !own.is_empty() {
        all.push((own, open(own)));
    }
    all
}
