//! Graphics cards that plans can be made for without having one.

use crate::{Caps, DeviceClass, Tier};

/// What planning may know of a card, as its Vulkan driver reports it.
///
/// ```
/// use tilewise::{CARDS, Caps, Tier};
/// let ada = tilewise::Card::find("ada").expect("it is in the list");
/// assert_eq!(ada.caps().subgroup, Some((32, 32)));
/// assert_eq!(ada.caps().tier, Tier::Subgroup);
/// assert!(CARDS.iter().any(|card| card.name == "browser"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Card {
    /// Short name, for command lines.
    pub name: &'static str,
    /// Vendor, architecture and a card that has it.
    pub title: &'static str,
    /// Smallest and largest subgroup, `None` where kernels get no subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// Bytes of workgroup memory.
    pub workgroup_storage: u32,
    /// Invocations in one workgroup.
    pub invocations: u32,
    /// Bytes that one storage binding can span.
    pub binding_size: u64,
    /// Storage buffers in one kernel.
    pub storage_buffers: u32,
    /// Alignment of a storage binding's offset, in bytes.
    pub offset_alignment: u32,
    /// 16-bit float arithmetic in kernels.
    pub f16: bool,
}

/// A card with a Vulkan driver of its own: 1024 invocations, bindings of up to 2 GiB.
const fn native(
    name: &'static str,
    title: &'static str,
    subgroup: (u32, u32),
    workgroup_storage: u32,
) -> Card {
    Card {
        name,
        title,
        subgroup: Some(subgroup),
        workgroup_storage,
        invocations: 1024,
        binding_size: (1 << 31) - 4,
        storage_buffers: 64,
        offset_alignment: 32,
        f16: true,
    }
}

/// Every card in the list. Subgroups and workgroup memory are those that Mesa's drivers of release 26
/// report: RADV, NVK, ANV. NVIDIA's and AMD's own drivers report the same subgroups.
pub const CARDS: &[Card] = &[
    native("rdna2", "AMD RDNA 2 (Radeon RX 6900 XT)", (32, 64), 64 << 10),
    native("rdna3", "AMD RDNA 3 (Radeon RX 7900 XTX)", (32, 64), 64 << 10),
    native("rdna4", "AMD RDNA 4 (Radeon RX 9070 XT)", (32, 64), 64 << 10),
    native("ampere", "NVIDIA Ampere (A100)", (32, 32), 48 << 10),
    native("ada", "NVIDIA Ada (GeForce RTX 4090)", (32, 32), 48 << 10),
    native("hopper", "NVIDIA Hopper (H100)", (32, 32), 48 << 10),
    native("blackwell", "NVIDIA Blackwell (GeForce RTX 5090)", (32, 32), 48 << 10),
    native("xelp", "Intel Xe-LP (Iris Xe)", (8, 32), 48 << 10),
    native("dg2", "Intel Xe-HPG (Arc A770)", (8, 32), 48 << 10),
    native("xe2", "Intel Xe2 (Arc B580)", (16, 32), 48 << 10),
    native("xe3", "Intel Xe3 (Panther Lake)", (16, 32), 48 << 10),
    Card {
        name: "browser",
        title: "any browser's WebGPU, with its default limits",
        subgroup: None,
        workgroup_storage: 16 << 10,
        invocations: 256,
        binding_size: 128 << 20,
        storage_buffers: 8,
        offset_alignment: 256,
        f16: false,
    },
];

impl Card {
    /// The card of that [`name`](Self::name).
    pub fn find(name: &str) -> Option<&'static Self> {
        CARDS.iter().find(|card| card.name == name)
    }

    /// What a plan for this card is made from.
    pub fn caps(&self) -> Caps {
        Caps {
            tier: if self.subgroup.is_some() { Tier::Subgroup } else { Tier::Portable },
            class: DeviceClass::Gpu,
            subgroup: self.subgroup,
            workgroup_storage: self.workgroup_storage,
            invocations: self.invocations,
            binding_size: self.binding_size,
            buffer_size: self.binding_size.max(256 << 20),
            storage_buffers: self.storage_buffers,
            offset_alignment: self.offset_alignment,
            f16: self.f16,
            ..Caps::minimum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_stand_once() {
        for (i, card) in CARDS.iter().enumerate() {
            assert!(card.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()));
            assert!(CARDS[..i].iter().all(|other| other.name != card.name), "{}", card.name);
            assert_eq!(Card::find(card.name), Some(card));
        }
        assert_eq!(Card::find("voodoo"), None);
    }

    /// A browser's limits are the least that there are.
    #[test]
    fn a_browser_has_the_minimum() {
        assert_eq!(Card::find("browser").map(Card::caps), Some(Caps::minimum()));
    }
}
