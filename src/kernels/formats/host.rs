//! Bit positions of fields of a GGUF block, for layouts, and reads of the fields, for the host decoders.

use half::f16;

pub fn u16_at(block: &[u8], byte: usize) -> u16 {
    u16::from_le_bytes([block[byte], block[byte + 1]])
}

pub fn u32_at(block: &[u8], byte: usize) -> u32 {
    u16_at(block, byte) as u32 | (u16_at(block, byte + 2) as u32) << 16
}

pub fn f16_at(block: &[u8], byte: usize) -> f32 {
    f16::from_bits(u16_at(block, byte)).to_f32()
}

/// The bit of value `v`'s nibble, where `qs` starts at `byte`.
pub fn nibble_bit(byte: usize) -> impl Fn(usize) -> usize {
    move |v| 8 * (byte + v % 16) + 4 * (v / 16)
}

/// The nibble of value `v` of 32, where `qs` starts at `byte`.
pub fn nibble_at(block: &[u8], byte: usize, v: usize) -> u8 {
    block[byte + v % 16] >> (4 * (v / 16)) & 0xf
}

/// The bit of value `v`'s two-bit code: each half of the block is 32 bytes of four codes, 32 values apart.
pub fn crumb_bit(byte: usize) -> impl Fn(usize) -> usize {
    move |v| 8 * (byte + 32 * (v / 128) + v % 32) + 2 * (v % 128 / 32)
}

/// The two-bit code of value `v` of 256, where its bytes start at `byte`.
pub fn crumb_at(block: &[u8], byte: usize, v: usize) -> u8 {
    block[byte + 32 * (v / 128) + v % 32] >> (2 * (v % 128 / 32)) & 3
}
