//! Loading apart from decoding: a format says once how a unit is decoded from its planes, and what it reads on the way can be
//! on its way long before.

use std::collections::VecDeque;
use std::sync::LazyLock;

use cubecl::frontend::ReadValue;
use cubecl::ir::pliron::identifier::Identifier;
use cubecl::ir::prelude::{Context, Value};
use cubecl::ir::{Scope, ident};
use cubecl::prelude::*;

use super::registry::unit;
use super::view::{At, Planes, Unit};
use crate::gguf::GgmlType;
use crate::kernels::vector::Words;

/// What a unit reads of its planes, in registers.
#[derive(CubeType)]
pub struct Loads {
    wide: Array<Words>,
    narrow: Array<u32>,
    #[cube(comptime)]
    wide_count: usize,
    #[cube(comptime)]
    narrow_count: usize,
}

#[cube]
impl Loads {
    /// The loads for the unit at `at`.
    pub fn of(planes: &Planes, at: At, #[comptime] ty: GgmlType) -> Loads {
        let read = read(planes, at, ty);
        let (wide_count, narrow_count) = comptime!((read.wide.len(), read.narrow.len()));
        let mut loads = Loads {
            wide: Array::new(comptime!(wide_count.max(1))),
            narrow: Array::new(comptime!(narrow_count.max(1))),
            wide_count,
            narrow_count,
        };
        loads.set(&read);
        loads
    }

    /// Replaces them by those for another unit, which is in the same place of its span.
    pub fn replace(&mut self, planes: &Planes, at: At, #[comptime] ty: GgmlType) {
        let read = read(planes, at, ty);
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

    /// The unit that they are for, as [`unit()`] decodes it.
    pub fn decode(&self, planes: &Planes, codebook: &[u32], at: At, #[comptime] ty: GgmlType) -> Unit {
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
        let unit = unit(planes, codebook, at, ty);
        given();
        unit
    }
}

/// What the decoding of a unit read, in order.
#[derive(CubeType)]
struct Read {
    wide: Sequence<Words>,
    narrow: Sequence<u32>,
}

/// All that the decoding of a unit reads. The rest of it has no effect, and the compiler leaves it out.
#[cube]
fn read(planes: &Planes, at: At, #[comptime] ty: GgmlType) -> Read {
    note();
    let _unit = unit(planes, &planes.codebook, at, ty);
    noted()
}

/// Who watches the reads of a kernel's planes while it is written.
enum Watch {
    /// Notes what was read.
    Noting(Vec<Value>, Vec<Value>),
    /// Gives what was read before instead.
    Giving(VecDeque<Value>, VecDeque<Value>),
}

static WATCH: LazyLock<Identifier> = LazyLock::new(|| ident("cube_gguf_watch"));

/// The kernel's watch.
fn watch(ctx: &mut Context) -> Option<&mut Watch> {
    let key = *ctx.aux_data_map.get(&*WATCH)?;
    ctx.aux_data.get_mut(key)?.downcast_mut()
}

/// Ends the kernel's watch.
fn unwatch(scope: &Scope) -> Option<Watch> {
    let ctx = scope.ctx_mut();
    let key = ctx.aux_data_map.remove(&*WATCH)?;
    ctx.aux_data.remove(key)?.downcast().ok().map(|watch| *watch)
}

fn begin(scope: &Scope, watch: Watch) {
    let ctx = scope.ctx_mut();
    let key = ctx.aux_data.insert(Box::new(watch));
    ctx.aux_data_map.insert(WATCH.clone(), key);
}

/// 16 bytes that were read from a plane: every such read goes through here.
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

/// A word that was read from a plane: every such read goes through here.
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
