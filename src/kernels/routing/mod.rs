//! Which rows of weights go with which rows of activations, where a tensor is a stack of experts and each token has some of
//! them.
//!
//! A *pair* is a token and one of its experts: pair `token * slots + slot`, and a row of the result. A product takes pairs one by
//! one, as their ids name experts ([`Pairs`]), or in tiles of one expert's pairs after they were sorted ([`Tiles`]).

mod sort;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::launch::{buffer, used_bytes};
use crate::{Error, Result};
pub use sort::Sorted;
use sort::{NO_PAIR, sort};

/// The experts of some tokens: `[tokens, slots]` ids on a device. Cloning shares them, and what products found out about them.
#[derive(Clone)]
pub struct Routing {
    ids: Handle,
    tokens: usize,
    slots: usize,
    experts: usize,
    /// The pairs in tiles of so many, for all products of these tokens.
    sorted: Arc<Mutex<BTreeMap<usize, Arc<Sorted>>>>,
}

impl Routing {
    /// Routing by u32 ids of `experts` experts on a device, `slots` a token. An id that names no expert gives rows of NaNs: a kernel
    /// cannot return an error.
    ///
    /// # Errors
    ///
    /// [`Error::Ids`] where the handle has not as many aligned ids, or there are none to name.
    pub fn new(ids: Handle, tokens: usize, slots: usize, experts: usize) -> Result<Self> {
        let aligned = ids.offset_start.unwrap_or(0).is_multiple_of(4);
        let len = used_bytes(&ids) / 4;
        let fits = tokens.checked_mul(slots).is_some_and(|pairs| pairs <= len && u32::try_from(pairs).is_ok());
        match aligned && fits && (1..u32::MAX as usize).contains(&experts) {
            true => Ok(Self { ids, tokens, slots, experts, sorted: Arc::default() }),
            false => Err(Error::Ids { tokens, slots, experts, len }),
        }
    }

    /// The buffer of the ids.
    pub fn handle(&self) -> &Handle {
        &self.ids
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Experts of a token.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Pairs of a token and one of its experts: rows of a product's result.
    pub fn pairs(&self) -> usize {
        self.tokens * self.slots
    }

    /// Experts of the weights.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The pairs in tiles of at most `tile` of one expert.
    pub(super) fn sorted(&self, client: &Client, tile: usize) -> Arc<Sorted> {
        let mut sorted = self.sorted.lock().unwrap_or_else(PoisonError::into_inner);
        sorted.entry(tile).or_insert_with(|| Arc::new(sort(client, self, tile))).clone()
    }
}

impl fmt::Debug for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Routing({} tokens, {} of {} experts each)", self.tokens, self.slots, self.experts)
    }
}

/// Routing of activations.
#[derive(Clone, Copy)]
pub struct Route<'a> {
    pub routing: &'a Routing,
    /// Pairs side by side that share a row of activations: a token's slots, or 1.
    pub sharers: usize,
}

impl Route<'_> {
    /// The pairs as an argument of a launch in which each has `cubes` cubes, of experts of `rows` rows.
    pub fn pairs(&self, rows: usize, cubes: usize) -> PairsLaunch {
        PairsLaunch::new(buffer(&self.routing.ids, 4), self.routing.experts, rows, self.sharers, cubes)
    }
}

/// Pairs one by one.
#[derive(CubeType, CubeLaunch)]
pub struct Pairs {
    ids: Box<[u32]>,
    experts: usize,
    /// Rows of weights of an expert.
    rows: usize,
    /// See [`Route::sharers`].
    sharers: usize,
    /// Cubes that take the rows of a pair's expert.
    cubes: usize,
}

/// A cube's pair.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Pair {
    /// The pair, and row of the result.
    pub index: usize,
    /// The row of activations.
    pub token: usize,
    /// The first row of the expert's weights.
    pub first_row: usize,
    /// Whether there is such an expert; else the result is NaN.
    pub is_known: bool,
    /// The cube among those of the pair.
    pub cube: usize,
}

#[cube]
impl Pairs {
    /// The pair of cube `cube` of the launch.
    pub fn of_cube(&self, cube: usize) -> Pair {
        let index = cube / self.cubes;
        let expert = usize::cast_from(self.ids[index]);
        Pair {
            index,
            token: index / self.sharers,
            first_row: min(expert, self.experts - 1) * self.rows,
            is_known: expert < self.experts,
            cube: cube % self.cubes,
        }
    }
}

/// Words of a tile of [`Tiles`]: the expert, its first packed row, and the one past its last.
const TILE_WORDS: usize = 3;

/// Sorted pairs in tiles of one expert's.
#[derive(CubeType, CubeLaunch)]
pub struct Tiles {
    tiles: Box<[u32]>,
    /// The pair of each packed row.
    pairs: Box<[u32]>,
    experts: usize,
    /// Rows of weights of an expert.
    rows: usize,
}

/// A tile of packed rows that are multiplied with one expert's weights.
#[derive(CubeType, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub struct Tile {
    /// The first packed row.
    pub begin: usize,
    /// The one past the last: the first again where the tile is empty.
    pub end: usize,
    /// The first row of the expert's weights.
    pub first_row: usize,
    /// Whether there is such an expert; else the result is NaN.
    pub is_known: bool,
}

#[cube]
impl Tiles {
    /// Tile `index`.
    pub fn tile(&self, index: usize) -> Tile {
        let at = index * TILE_WORDS;
        let expert = usize::cast_from(self.tiles[at]);
        Tile {
            begin: usize::cast_from(self.tiles[at + 1]),
            end: usize::cast_from(self.tiles[at + 2]),
            first_row: min(expert, self.experts - 1) * self.rows,
            is_known: expert < self.experts,
        }
    }

    /// The pair of a packed row, and row of the result.
    pub fn pair(&self, row: usize) -> usize {
        usize::cast_from(self.pairs[row])
    }
}

/// Where the packed rows of sorted pairs come from.
#[derive(CubeType, CubeLaunch)]
pub struct Sources {
    /// The pair of each packed row.
    pairs: Box<[u32]>,
    /// See [`Route::sharers`].
    sharers: usize,
}

#[cube]
impl Sources {
    /// Whether a packed row has a pair.
    pub fn has(&self, row: usize) -> bool {
        self.pairs[row] != NO_PAIR
    }

    /// The row of activations of a packed row.
    pub fn token(&self, row: usize) -> usize {
        usize::cast_from(self.pairs[row]) / self.sharers
    }
}
