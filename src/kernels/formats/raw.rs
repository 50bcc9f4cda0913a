//! The raw words of a chunk: a format's `load` pushes them, its `decode` takes them by number.

use cubecl::prelude::*;

use crate::kernels::vector::Words;

/// The words of a chunk as they come from memory: 16-byte vectors and single words.
#[derive(CubeType)]
pub struct Raw {
    pub(super) wide: Sequence<Words>,
    pub(super) narrow: Sequence<u32>,
}

#[cube]
impl Raw {
    /// No words.
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
