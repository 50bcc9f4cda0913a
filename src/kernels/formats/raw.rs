//! The raw words of a chunk: a format's `locate` tells where they are, its `decode` takes them by number.

use cubecl::prelude::*;

use super::view::{MatrixView, WordPlace};
use crate::kernels::arch::warpgroup::{load_early, load_word_early};
use crate::kernels::vector::Words;

/// Where the words of a chunk are.
#[derive(CubeType)]
pub struct Places {
    pub(super) wide: Sequence<usize>,
    pub(super) narrow: Sequence<WordPlace>,
}

#[cube]
impl Places {
    /// No places.
    pub fn new() -> Places {
        Places { wide: Sequence::new(), narrow: Sequence::new() }
    }

    /// Adds that of a vector.
    pub fn push_wide(&mut self, vector: usize) {
        self.wide.push(vector);
    }

    /// Adds that of a word.
    pub fn push(&mut self, word: WordPlace) {
        self.narrow.push(word);
    }
}

/// The words of a chunk: 16-byte vectors and single words.
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

    /// Loads the words at `places`.
    pub fn load(view: &MatrixView, places: &Places) -> Raw {
        let mut raw = Raw::new();
        #[unroll]
        for i in 0..comptime!(places.wide.len()) {
            raw.wide.push(view.vector_at(*places.wide.index(i)));
        }
        #[unroll]
        for i in 0..comptime!(places.narrow.len()) {
            raw.narrow.push(view.word_at(places.narrow.index(i)));
        }
        raw
    }

    /// The same on NVIDIA, by loads that stay where they are (see [`load_early`]).
    pub fn load_early(view: &MatrixView, places: &Places) -> Raw {
        let mut raw = Raw::new();
        let from = view.address();
        #[unroll]
        for i in 0..comptime!(places.wide.len()) {
            raw.wide.push(load_early(from + u64::cast_from(*places.wide.index(i)) * 16));
        }
        #[unroll]
        for i in 0..comptime!(places.narrow.len()) {
            raw.narrow.push(load_word_early(from + u64::cast_from(places.narrow.index(i).word()) * 4));
        }
        raw
    }

    /// Vector `i`, in the order of their places.
    pub fn wide(&self, #[comptime] i: usize) -> Words {
        *self.wide.index(i)
    }

    /// Word `i`, in the order of their places.
    pub fn word(&self, #[comptime] i: usize) -> u32 {
        *self.narrow.index(i)
    }
}
