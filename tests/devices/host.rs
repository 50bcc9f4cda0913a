//! What needs no device: the host decoders, the layouts, the byte order.

use cube_gguf::gguf::{Endian, GgmlType};
use cube_gguf::internals::{MAX_COMPONENTS, format};
use libtest_mimic::{Failed, Trial};

use crate::fixtures::{Fixture, assert_same};

/// A test of a format alone.
type Check = fn(&Fixture);

pub const CHECKS: &[(&str, Check)] = &[
    ("decodes_as_the_reference", decodes_as_the_reference),
    ("reads_big_endian", reads_big_endian),
    ("layout_moves_every_bit_once", layout_moves_every_bit_once),
    ("layout_costs_at_most_three_percent", layout_costs_at_most_three_percent),
];

fn decodes_as_the_reference(fixture: &Fixture) {
    for case in &fixture.tensors {
        let mut out = vec![0.0; case.n * case.k];
        format(fixture.ty).unwrap().dequantize_blocks(&case.data, &mut out);
        assert_same(&out, &case.expected, &case.name);
    }
}

fn reads_big_endian(fixture: &Fixture) {
    let format = format(fixture.ty).unwrap();
    for case in &fixture.big_endian {
        assert_eq!(case.endian, Endian::Big);
        let data = format.little_endian(&case.data, Endian::Big).unwrap();
        let mut out = vec![0.0; case.n * case.k];
        format.dequantize_blocks(&data, &mut out);
        assert_same(&out, &case.expected, &case.name);
    }
}

/// Every bit of a block has one place on the device, so that nothing is lost and nothing is stored twice.
fn layout_moves_every_bit_once(fixture: &Fixture) {
    let layout = (format(fixture.ty).unwrap().layout)();
    assert_eq!(layout.block_bytes, fixture.ty.block_bytes());
    assert!(layout.components.len() <= MAX_COMPONENTS);
    let mut uses = vec![0; 8 * layout.block_bytes];
    for component in &layout.components {
        for &bit in &component.fields {
            assert_eq!(bit as u32 % component.width, 0, "a field crosses a multiple of its width");
            uses[bit as usize..][..component.width as usize].iter_mut().for_each(|uses| *uses += 1);
        }
    }
    assert!(uses.iter().all(|&uses| uses == 1));
}

fn layout_costs_at_most_three_percent(fixture: &Fixture) {
    let layout = (format(fixture.ty).unwrap().layout)();
    let block = fixture.ty.block_size();
    for k in (2048usize.next_multiple_of(block)..16384).step_by(block) {
        let rows = 64;
        let words = layout.place(rows, k / block).unwrap().words;
        let gguf = rows * fixture.ty.row_bytes(k).unwrap();
        let ratio = 4.0 * words as f64 / gguf as f64;
        assert!(ratio <= 1.03, "k = {k}: {ratio}");
    }
}

pub fn trials() -> Vec<Trial> {
    let every_weight_type_has_a_format = || {
        for ty in GgmlType::ALL {
            assert_eq!(format(ty).is_some(), ty.is_weights(), "{ty}");
        }
        Ok::<(), Failed>(())
    };
    vec![Trial::test("host/every_weight_type_has_a_format", every_weight_type_has_a_format)]
}
