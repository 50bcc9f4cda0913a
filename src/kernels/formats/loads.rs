//! Loading apart from decoding: a format says once how a chunk is decoded from its view, and what it reads on the way can be
//! on its way long before.

use std::collections::VecDeque;
use std::sync::LazyLock;

use cubecl::frontend::ReadValue;
use cubecl::ir::pliron::identifier::Identifier;
use cubecl::ir::prelude::{Context, Value};
use cubecl::ir::{Scope, ident};
use cubecl::prelude::*;

use super::registry::chunk;
use super::view::{At, Chunk, MatrixView};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// What a chunk reads of its view, in registers.
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
    /// The loads for the chunk at `at`.
    pub fn of(view: &MatrixView, at: At, #[comptime] ty: GgmlType) -> Prefetched {
        let read = read(view, at, ty);
        let (wide_count, narrow_count) = comptime!((read.wide.len(), read.narrow.len()));
        let mut loads = Prefetched {
            wide: Array::new(comptime!(wide_count.max(1))),
            narrow: Array::new(comptime!(narrow_count.max(1))),
            wide_count,
            narrow_count,
        };
        loads.set(&read);
        loads
    }

    /// Replaces them by those for another chunk, which is in the same place of its span.
    pub fn replace(&mut self, view: &MatrixView, at: At, #[comptime] ty: GgmlType) {
        let read = read(view, at, ty);
        self.set(&read);
    }

    fn set(&mut self, read: &Read) {
        #[unroll]
        for i in 0..self.wide_count {
            self.wide[i] = *read.wide.index(i);
        }
        #[unroll]
        for i in 0..self.narrow_count {
            self.narrow[i] = *read.narrow.index(i);
        }
    }

    /// The chunk that they are for, as [`chunk()`] decodes it.
    pub fn decode(&self, view: &MatrixView, codebook: &[u32], at: At, #[comptime] ty: GgmlType) -> Chunk {
        let mut read = Read { wide: Sequence::new(), narrow: Sequence::new() };
        #[unroll]
        for i in 0..self.wide_count {
            read.wide.push(self.wide[i]);
        }
        #[unroll]
        for i in 0..self.narrow_count {
            read.narrow.push(self.narrow[i]);
        }
        give(&read);
        let chunk = chunk(view, codebook, at, ty);
        given();
        chunk
    }
}

/// What the decoding of a chunk read, in order.
#[derive(CubeType)]
struct Read {
    wide: Sequence<Words>,
    narrow: Sequence<u32>,
}

/// All that the decoding of a chunk reads. The rest of it has no effect, and the compiler leaves it out.
#[cube]
fn read(view: &MatrixView, at: At, #[comptime] ty: GgmlType) -> Read {
    note();
    let _chunk = chunk(view, &view.codebook, at, ty);
    noted()
}

/// Who watches the reads of a kernel's components while it is written.
enum Watch {
    /// Notes what was read.
    Noting(Vec<Value>, Vec<Value>),
    /// Gives what was read before instead.
    Giving(VecDeque<Value>, VecDeque<Value>),
}

static WATCH: LazyLock<Identifier> = LazyLock::new(|| ident("cube_gguf_watch"));

/// The kernel's watch.
fn watch(ctx: &mut Context) -> Option<&mut Watch> {
    let problem = *ctx.aux_data_map.get(&*WATCH)?;
    ctx.aux_data.get_mut(problem)?.downcast_mut()
}

/// Ends the kernel's watch.
fn unwatch(scope: &Scope) -> Option<Watch> {
    let ctx = scope.ctx_mut();
    let problem = ctx.aux_data_map.remove(&*WATCH)?;
    ctx.aux_data.remove(problem)?.downcast().ok().map(|watch| *watch)
}

fn begin(scope: &Scope, watch: Watch) {
    let ctx = scope.ctx_mut();
    let problem = ctx.aux_data.insert(Box::new(watch));
    ctx.aux_data_map.insert(WATCH.clone(), problem);
}

/// 16 bytes that were read from a component: every such read goes through here.
#[cube]
#[allow(unused_variables)]
pub fn wide(value: Words) -> Words {
    intrinsic!(|scope| {
        let value = value.read_value(scope);
        match watch(scope.ctx_mut()) {
            Some(Watch::Noting(wide, _)) => wide.push(value),
            Some(Watch::Giving(wide, _)) => return wide.pop_front().expect("decoding reads the same again").into(),
            None => {}
        }
        value.into()
    })
}

/// A word that was read from a component: every such read goes through here.
#[cube]
#[allow(unused_variables)]
pub fn narrow(value: u32) -> u32 {
    intrinsic!(|scope| {
        let value = value.read_value(scope);
        match watch(scope.ctx_mut()) {
            Some(Watch::Noting(_, narrow)) => narrow.push(value),
            Some(Watch::Giving(_, narrow)) => return narrow.pop_front().expect("decoding reads the same again").into(),
            None => {}
        }
        value.into()
    })
}

/// From here on, reads are noted.
#[cube]
fn note() {
    intrinsic!(|scope| begin(scope, Watch::Noting(Vec::new(), Vec::new())))
}

/// What was read since [`note()`].
#[cube]
fn noted() -> Read {
    intrinsic!(|scope| {
        let (mut read_wide, mut read_narrow) = (Sequence::__expand_new(scope), Sequence::__expand_new(scope));
        if let Some(Watch::Noting(wide, narrow)) = unwatch(scope) {
            wide.into_iter().for_each(|value| read_wide.__expand_push_method(scope, value.into()));
            narrow.into_iter().for_each(|value| read_narrow.__expand_push_method(scope, value.into()));
        }
        ReadExpand { wide: read_wide, narrow: read_narrow }
    })
}

/// From here on, reads are those of `read`, one after the other.
#[cube]
#[allow(unused_variables)]
fn give(read: &Read) {
    intrinsic!(|scope| {
        let wide = (0..read.wide.len()).map(|i| read.wide.__expand_index_method(scope, i.into()).read_value(scope));
        let narrow =
            (0..read.narrow.len()).map(|i| read.narrow.__expand_index_method(scope, i.into()).read_value(scope));
        begin(scope, Watch::Giving(wide.collect(), narrow.collect()))
    })
}

/// Ends [`give()`].
#[cube]
fn given() {
    intrinsic!(|scope| {
        unwatch(scope);
    })
}
