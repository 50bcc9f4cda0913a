//! What a chunk loads of its components, apart from what it becomes: a format's `load` pushes, its `decode` takes by number.

use cubecl::prelude::*;

use crate::kernels::vector::Words;

/// What a chunk loads of its components, as it comes from memory: 16-byte vectors and words.
#[derive(CubeType)]
pub struct Raw {
    pub(super) wide: Sequence<Words>,
    pub(super) narrow: Sequence<u32>,
}

#[cube]
impl Raw {
    /// Nothing yet.
    pub fn new() -> Raw {
        Raw { wide: Sequence::new(), narrow: Sequence::new() }
    }

    /// Adds a vector.
    pub fn push_wide(&mut self, value: Words) {
        self.wide.push(value);
    }

    /// Adds a word.
    pub fn push(&mut self, word: u32) {
        self.narrow.push(word);
    }

    /// Vector `i`, in the order in which they were added.
    pub fn wide(&self, #[comptime] i: usize) -> Words {
        *self.wide.index(i)
    }

    /// Word `i`, in the order in which they were added.
    pub fn word(&self, #[comptime] i: usize) -> u32 {
        *self.narrow.index(i)
    }
}
