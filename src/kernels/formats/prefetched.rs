//! Prefetched chunks: raw words in registers, loaded long before they are decoded.

use cubecl::prelude::*;

use super::raw::Raw;
use super::registry::locate;
use super::view::{At, MatrixView};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// The raw words of a chunk in registers. Those of another chunk replace them while this one is multiplied.
#[derive(CubeType)]
pub struct Prefetched {
    wide: Array<Words>,
    narrow: Array<u32>,
    #[cube(comptime)]
    wide_count: usize,
    #[cube(comptime)]
    narrow_count: usize,
}

#[cube]
impl Prefetched {
    /// The raw words of the chunk at `at`.
    pub fn of(view: &MatrixView, at: At, #[comptime] ty: GgmlType) -> Prefetched {
        let raw = Raw::load(view, &locate(view, at, ty));
        let (wide_count, narrow_count) = comptime!((raw.wide.len(), raw.narrow.len()));
        let mut prefetched = Prefetched {
            wide: Array::new(comptime!(wide_count.max(1))),
            narrow: Array::new(comptime!(narrow_count.max(1))),
            wide_count,
            narrow_count,
        };
        prefetched.set(&raw);
        prefetched
    }

    /// Replaces the words by those of another chunk, in the same place of its span.
    pub fn replace(&mut self, view: &MatrixView, at: At, #[comptime] ty: GgmlType) {
        self.set(&Raw::load(view, &locate(view, at, ty)));
    }

    /// The same by [`Raw::load_early`].
    pub fn replace_early(&mut self, view: &MatrixView, at: At, #[comptime] ty: GgmlType) {
        self.set(&Raw::load_early(view, &locate(view, at, ty)));
    }

    fn set(&mut self, raw: &Raw) {
        #[unroll]
        for i in 0..self.wide_count {
            self.wide[i] = *raw.wide.index(i);
        }
        #[unroll]
        for i in 0..self.narrow_count {
            self.narrow[i] = *raw.narrow.index(i);
        }
    }

    /// The words.
    pub fn raw(&self) -> Raw {
        let mut raw = Raw::new();
        #[unroll]
        for i in 0..self.wide_count {
            raw.wide.push(self.wide[i]);
        }
        #[unroll]
        for i in 0..self.narrow_count {
            raw.narrow.push(self.narrow[i]);
        }
        raw
    }
}
