//! The `tilewise` program.
fn main() {}
