//! The cards: whose compiler makes their code, and how many pieces of each kind they have.

/// Whose compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// ACO, of Mesa's RADV.
    Amd,
    /// NAK, of Mesa's NVK. It is not NVIDIA's own compiler.
    Nvidia,
    /// brw, of Mesa's ANV.
    Intel,
}

impl Vendor {
    /// File of the Vulkan driver.
    pub(crate) fn driver(self) -> &'static str {
        match self {
            Self::Amd => "libvulkan_radeon.so",
            Self::Nvidia => "libvulkan_nouveau.so",
            Self::Intel => "libvulkan_intel.so",
        }
    }

    /// The library that answers for the kernel, where Mesa has one; Intel's is built from `xe_stub.c`.
    pub(crate) fn shim(self) -> Option<&'static str> {
        match self {
            Self::Amd => Some("libamdgpu_noop_drm_shim.so"),
            Self::Nvidia => Some("libnouveau_noop_drm_shim.so"),
            Self::Intel => None,
        }
    }

    /// The variable that tells the shim which chip to be.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Amd => "AMDGPU_GPU_ID",
            Self::Nvidia => "NOUVEAU_CHIPSET",
            Self::Intel => "XE_STUB",
        }
    }

    /// For headings.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Amd => "AMD (ACO, the compiler of Mesa's RADV)",
            Self::Nvidia => "NVIDIA (NAK, the compiler of Mesa's NVK; not NVIDIA's own)",
            Self::Intel => "Intel (brw, the compiler of Mesa's ANV)",
        }
    }
}

/// A card.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Card {
    /// Its name in the crate's `CARDS`.
    pub(crate) name: &'static str,
    pub(crate) vendor: Vendor,
    /// Its name among the shim's chips.
    pub(crate) chip: &'static str,
    /// Lanes that finish a multiply-add each clock: of one SIMD (AMD), of one SM (NVIDIA), of one
    /// vector engine (Intel).
    pub(crate) lanes: f64,
    /// Bytes of workgroup memory of one SM, for NVIDIA's warps at a time; 0 elsewhere.
    pub(crate) shared: u32,
    /// Vector engines that share workgroup memory, for Intel; 0 elsewhere.
    pub(crate) engines: f64,
}

const fn amd(name: &'static str, chip: &'static str, lanes: f64) -> Card {
    Card { name, vendor: Vendor::Amd, chip, lanes, shared: 0, engines: 0.0 }
}

const fn nvidia(name: &'static str, chip: &'static str, lanes: f64, shared: u32) -> Card {
    Card { name, vendor: Vendor::Nvidia, chip, lanes, shared: shared << 10, engines: 0.0 }
}

const fn intel(name: &'static str, lanes: f64, engines: f64) -> Card {
    Card { name, vendor: Vendor::Intel, chip: name, lanes, shared: 0, engines }
}

/// Every card that a compiler is asked for. `browser` is none: it has no compiler of its own.
pub(crate) const CARDS: &[Card] = &[
    amd("rdna2", "navi21", 32.0),
    // two multiply-adds at a time where they pair
    amd("rdna3", "navi31", 64.0),
    amd("rdna4", "gfx1201", 64.0),
    nvidia("ampere", "170", 64.0, 164),
    nvidia("ada", "192", 128.0, 100),
    nvidia("hopper", "180", 128.0, 228),
    nvidia("blackwell", "1b2", 128.0, 100),
    Card { chip: "tgl", ..intel("xelp", 8.0, 16.0) },
    intel("dg2", 8.0, 16.0),
    Card { chip: "bmg", ..intel("xe2", 16.0, 8.0) },
    Card { chip: "ptl", ..intel("xe3", 16.0, 8.0) },
];

impl Card {
    /// The card of that name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        CARDS.iter().find(|card| card.name == name)
    }
}
