//! The problems that are timed, one list for all: `tilewise bench` makes its cases of them, and so do
//! the benches of `benches/`, each with variations of its own.
#![allow(dead_code, reason = "each program uses a part")]

/// Lengths of self-attention, of [`ATTENTION_HEADS`] heads of [`ATTENTION_DIM`].
pub(crate) const ATTENTION_LENGTHS: [u32; 3] = [512, 1024, 2048];
pub(crate) const ATTENTION_HEADS: u32 = 8;
pub(crate) const ATTENTION_DIM: u32 = 64;

/// Lengths of linear attention.
pub(crate) const LINEAR_LENGTHS: [u32; 3] = [1024, 4096, 16_384];

/// A line of tokens, its window, and a stride for shared windows.
pub(crate) const LINES: [(u32, u32, u32); 2] = [(4096, 63, 32), (4096, 255, 64)];

/// The side of a square map, of its window, and a stride.
pub(crate) const SQUARES: [(u32, u32, u32); 3] = [(56, 7, 7), (64, 13, 8), (128, 21, 16)];

/// The side of a cube, of its window, and a stride.
pub(crate) const CUBE: (u32, u32, u32) = (16, 5, 4);

/// Sides of windows on a square map of [`GROWTH_SIDE`].
pub(crate) const GROWTH: [u32; 10] = [3, 5, 7, 9, 11, 13, 17, 21, 25, 31];
pub(crate) const GROWTH_SIDE: u32 = 64;

/// Degrees of Gaunt products.
pub(crate) const DEGREES: [u32; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// Rows and columns of transforms, and how many in a call.
pub(crate) const TRANSFORMS: [([u32; 2], u32); 17] = [
    ([1, 16], 65_536),
    ([1, 32], 32_768),
    ([1, 64], 16_384),
    ([1, 100], 10_000),
    ([1, 128], 8192),
    ([1, 256], 4096),
    ([1, 512], 2048),
    ([1, 1000], 1024),
    ([1, 1024], 1024),
    ([1, 1021], 256),
    ([1, 2048], 512),
    ([1, 4096], 256),
    ([1, 1 << 16], 16),
    ([1, 1 << 20], 1),
    ([21, 21], 2048),
    ([64, 64], 256),
    ([256, 256], 16),
];
