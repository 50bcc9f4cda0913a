//! Reads of little-endian fields of a GGUF block, for the host decoders.

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
