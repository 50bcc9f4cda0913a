//! What a decoder computes between its products: norms, rotary embeddings, attention over a cache, gates, the
//! choice among experts, the likeliest token; and what those products are multiplied by, summed up.
//!
//! All values are f32, rows of a token each. Positions are read from the device, so that a step may be recorded once and
//! replayed for every token.

pub mod attention;
pub mod elementwise;
pub mod experts;
pub mod largest;
pub mod norm;
pub mod rotary;
pub mod squares;
mod team;

use cubecl::client::Client;
use cubecl::server::Handle;

/// Room for `values` f32.
fn values(client: &Client, values: usize) -> Handle {
    client.empty((4 * values).next_multiple_of(16).max(16))
}
