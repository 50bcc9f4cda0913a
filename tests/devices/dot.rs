//! The dot product of bytes, by whatever instruction the device has for it.

use cube_gguf::CubeDevice;
use cube_gguf::internals::{Bytes, Words, dot16};
use cubecl::prelude::*;
use libtest_mimic::Trial;

use crate::fixtures::compares;
use crate::summary;

/// Byte pairs: every value with every value.
const PAIRS: usize = 1 << 16;

#[cube(launch)]
fn dots(a: &[Words], b: &[Words], c: &[i32], out: &mut [i32], #[comptime] bytes: Bytes) {
    let position = CUBE_POS_X as usize * CUBE_DIM_X as usize + UNIT_POS_X as usize;
    if position < out.len() {
        out[position] = dot16(a[position], b[position], c[position], bytes);
    }
}

/// Each of the 16 places sees every pair of bytes, and no two places the same pair at once.
fn multiplies_every_pair_of_bytes(device: &CubeDevice, bytes: Bytes) {
    let client = device.client();
    let pair = |position: usize, place: usize| (position + place * 4099) % PAIRS;
    let places = |position| (0..16).map(move |place| pair(position, place));
    let a: Vec<u8> = (0..PAIRS).flat_map(|position| places(position).map(|pair| pair as u8)).collect();
    let b: Vec<u8> = (0..PAIRS).flat_map(|position| places(position).map(|pair| (pair >> 8) as u8)).collect();
    // Sums that wrap, too.
    let c: Vec<i32> = (0..PAIRS as i32).map(|position| position.wrapping_mul(0x9e37_79b1u32 as i32)).collect();
    let expected: Vec<i32> = (0..PAIRS)
        .map(|position| {
            let products = (16 * position..16 * position + 16).map(|i| match bytes {
                Bytes::Signed => a[i] as i8 as i32 * b[i] as i8 as i32,
                Bytes::Unsigned => a[i] as i32 * b[i] as i8 as i32,
            });
            c[position].wrapping_add(products.sum())
        })
        .collect();

    // A unit a cube on the host, whose cubes are as wide as it has cores.
    let width = client.properties().hardware.max_units_per_cube.min(64);
    let width = client.properties().hardware.num_cpu_cores.unwrap_or(width).min(width);
    let out = client.empty(4 * PAIRS);
    let [a, b] = [a, b].map(|bytes| client.create_from_slice(&bytes));
    let c = client.create_from_slice(bytemuck::cast_slice(&c));
    // SAFETY: the lengths are those of the buffers.
    let argument = |handle: &cubecl::server::Handle| unsafe { BufferArg::from_raw_parts(handle.clone(), PAIRS) };
    let (count, dim) = (CubeCount::Static((PAIRS as u32).div_ceil(width), 1, 1), CubeDim::new_1d(width));
    dots::launch(&client, count, dim, argument(&a), argument(&b), argument(&c), argument(&out), bytes);
    let out = client.read_one(out).unwrap();
    let out: Vec<i32> = out.chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(out.len(), PAIRS);
    if let Some(at) = (0..PAIRS).find(|&at| compares() && out[at] != expected[at]) {
        panic!("position {at}: {}, not {}", out[at], expected[at]);
    }
}

pub fn trials(device: &CubeDevice) -> Vec<Trial> {
    let trial = |name: &str, bytes| {
        let on = device.clone();
        summary::trial(format!("{device}/dot/{name}"), move || multiplies_every_pair_of_bytes(&on, bytes))
    };
    vec![
        trial("multiplies_every_pair_of_signed_bytes", Bytes::Signed),
        trial("multiplies_every_pair_of_unsigned_and_signed_bytes", Bytes::Unsigned),
    ]
}
