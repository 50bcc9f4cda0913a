//! The merge loop that both kinds of BPE share.
//!
//! ```text
//! symbols = the characters (or bytes) of a word
//! queue   = every two neighbours that may merge
//! while the queue has a best pair (highest priority, then leftmost):
//!     if neither of the two has changed since it was queued:
//!         merge the right symbol into the left one
//!         queue the new symbol with each of its neighbours
//! ```
//!
//! A pair that changed is not removed from the queue; it is recognised when it
//! comes up, by its length.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A run of a word's bytes that is, or may become part of, a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Where it starts in the word.
    pub start: usize,
    /// Its bytes; 0 once it has been merged into another.
    pub len: usize,
    /// The token that it is, if it is one.
    pub id: Option<u32>,
}

impl Symbol {
    pub fn end(&self) -> usize {
        self.start + self.len
    }
}

/// A queued pair: ordered by priority, then by place, leftmost first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair<P> {
    priority: P,
    left: Reverse<usize>,
    right: usize,
    /// The bytes of both: any other sum later means that one has changed.
    len: usize,
    /// The token that they make.
    id: u32,
}

/// The neighbours of a symbol that are still there.
#[derive(Clone, Copy)]
struct Links {
    previous: Option<usize>,
    next: Option<usize>,
}

/// Merges neighbours for as long as `token_of` finds a token for any two, and
/// returns the symbols that are left.
///
/// `token_of` gives the priority and the id of what two symbols make.
pub(super) fn merge<P: Ord>(
    symbols: Vec<Symbol>,
    token_of: impl Fn(&Symbol, &Symbol) -> Option<(P, u32)>,
) -> impl Iterator<Item = Symbol> {
    let links = (0..symbols.len())
        .map(|index| Links {
            previous: index.checked_sub(1),
            next: Some(index + 1).filter(|&next| next < symbols.len()),
        })
        .collect();
    let mut word = Word { symbols, links, queue: BinaryHeap::new(), token_of };
    for right in 1..word.symbols.len() {
        word.enqueue(Some(right - 1), Some(right));
    }
    while let Some(pair) = word.queue.pop() {
        word.apply(&pair);
    }
    word.symbols.into_iter().filter(|symbol| symbol.len > 0)
}

struct Word<P, F> {
    symbols: Vec<Symbol>,
    links: Vec<Links>,
    queue: BinaryHeap<Pair<P>>,
    token_of: F,
}

impl<P: Ord, F: Fn(&Symbol, &Symbol) -> Option<(P, u32)>> Word<P, F> {
    fn enqueue(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let [a, b] = [&self.symbols[left], &self.symbols[right]];
        if let Some((priority, id)) = (self.token_of)(a, b) {
            self.queue.push(Pair { priority, left: Reverse(left), right, len: a.len + b.len, id });
        }
    }

    fn apply(&mut self, pair: &Pair<P>) {
        let (Reverse(left), right) = (pair.left, pair.right);
        let [a, b] = [self.symbols[left].len, self.symbols[right].len];
        if a == 0 || b == 0 || a + b != pair.len {
            return;
        }
        self.symbols[left].len = pair.len;
        self.symbols[left].id = Some(pair.id);
        self.symbols[right].len = 0;

        let after = self.links[right].next;
        self.links[left].next = after;
        if let Some(after) = after {
            self.links[after].previous = Some(left);
        }
        self.enqueue(self.links[left].previous, Some(left));
        self.enqueue(Some(left), after);
    }
}
