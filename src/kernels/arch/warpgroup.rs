//! Hopper's asynchronous instructions: products of warpgroups (four planes), and copies to shared memory.
//!
//! A product takes its rows of activations from shared memory, as *core matrices*: eight rows of 16 bytes, one after the other.
//! PTX ISA 8.7, "Asynchronous Warpgroup Level Matrix Instructions": K-major operands without swizzle.

use cubecl::prelude::*;

#[cfg(feature = "llvm")]
use super::llvm;
use crate::kernels::vector::Words;

/// Rows of a core matrix.
pub const CORE_ROWS: usize = 8;

/// Bytes of a core matrix.
const CORE_BYTES: usize = 16 * CORE_ROWS;

/// The description of the activations of an instruction for [`multiply_add_async`], which begin at address `first` of shared
/// memory. Neighbours in the depth are neighbours in memory, neighbours in the rows `depth` core matrices apart.
#[cube]
pub fn descriptor(first: u32, #[comptime] depth: usize) -> u64 {
    let offsets = comptime!(((CORE_BYTES / 16) as u64) << 16 | ((depth * CORE_BYTES / 16) as u64) << 32);
    u64::cast_from((first & 0x3_ffff) >> 4) | offsets
}

/// `sums` plus the product of a plane's rows of weights, as [`multiply_add`](super::matrix_unit::multiply_add) takes them, and
/// the activations that a [`descriptor`] describes. The product is done when [`wait_for_products`] has returned the sums.
///
/// All lanes of a warpgroup must get here together.
#[cube]
#[allow(unused_variables)]
pub fn multiply_add_async<S: Size>(weights: Words, descriptor: u64, sums: Vector<f32, S>) -> Vector<f32, S> {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        {
            let operands = [weights.read_value(scope), descriptor.read_value(scope), sums.read_value(scope)];
            return llvm::warpgroup_product(scope, operands).into();
        }
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM's targets have warpgroups")
    })
}

/// Lets the products that follow see the operands that were written to registers before.
#[cube]
pub fn begin_products() {
    statement("wgmma.fence.sync.aligned;");
}

/// Ends a group of products.
#[cube]
pub fn end_products() {
    statement("wgmma.commit_group.sync.aligned;");
}

/// `sums` with the products that were started before, but for those of the last `pending` groups.
#[cube]
#[allow(unused_variables)]
pub fn wait_for_products<S: Size>(sums: Vector<f32, S>, #[comptime] pending: usize) -> Vector<f32, S> {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        {
            let sums = sums.read_value(scope);
            return llvm::warpgroup_wait(scope, sums, pending).into();
        }
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM's targets have warpgroups")
    })
}

/// The address of vectors in shared memory, which has 32 bits, or in global memory.
#[cube]
#[allow(unused_variables)]
pub fn address(vectors: &[Words], #[comptime] shared: bool) -> u64 {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        {
            // SAFETY: the pointer is made a number.
            let pointer = unsafe { *vectors.__expand_as_ptr_method(scope) }.value(scope);
            return llvm::address(scope, pointer, shared);
        }
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM's targets have warpgroups")
    })
}

/// Makes the 8 bytes at an address of shared memory a barrier of `count` arrivals a phase.
#[cube]
pub fn make_barrier(barrier: u32, #[comptime] count: usize) {
    asynchronous(barrier, 0u64, 0u32, comptime!(format!("mbarrier.init.shared::cta.b64 [$0], {count};")));
}

/// Lets all that come after the next [`sync_cube`] see the barriers that this unit has made, copies included.
#[cube]
pub fn publish_barriers() {
    statement("fence.mbarrier_init.release.cluster;");
    statement("fence.proxy.async.shared::cta;");
}

/// Arrives at a barrier.
#[cube]
pub fn arrive(barrier: u32) {
    asynchronous(barrier, 0u64, 0u32, comptime!("mbarrier.arrive.shared::cta.b64 _, [$0];".to_string()));
}

/// Arrives at a barrier whose phase ends no sooner than copies to it have brought `bytes` more.
#[cube]
pub fn arrive_and_expect(barrier: u32, #[comptime] bytes: usize) {
    let template = comptime!(format!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {bytes};"));
    asynchronous(barrier, 0u64, 0u32, template);
}

/// Waits until a barrier's phase of this parity has ended: the first phase has parity 0.
#[cube]
pub fn wait_at(barrier: u32, parity: u32) {
    let template = comptime!(
        "{\n.reg .pred ended;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 ended, [$0], $2;\n@!ended bra again;\n}"
            .to_string()
    );
    asynchronous(barrier, 0u64, parity, template);
}

/// Starts to copy bytes, a multiple of 16, from an address of global memory to one of shared memory, and tells a barrier of them
/// when they are there.
#[cube]
pub fn copy_async(to: u32, from: u64, #[comptime] bytes: usize, barrier: u32) {
    let template = comptime!(format!(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], {bytes}, [$2];"
    ));
    asynchronous(to, from, barrier, template);
}

#[cube]
#[allow(unused_variables)]
fn asynchronous(first: u32, second: u64, third: u32, #[comptime] template: String) {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        {
            let operands = [first.read_value(scope), second.read_value(scope), third.read_value(scope)];
            llvm::asynchronous(scope, operands, &template);
        }
    })
}

/// The four words at an address in global memory.
///
/// The load stays where it is, ahead of the next barrier. Another one `ptxas` moves down to where registers are free for its
/// result, and so to where that is waited for.
#[cube]
#[allow(unused_variables)]
pub fn load_early(from: u64) -> Words {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        {
            let (from, like) = (from.read_value(scope), Words::__expand_empty(scope).read_value(scope));
            return llvm::load_early(scope, from, like).into();
        }
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM's targets have warpgroups")
    })
}

/// The word at an address in global memory, as [`load_early`].
#[cube]
#[allow(unused_variables)]
pub fn load_word_early(from: u64) -> u32 {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        {
            let (from, like) = (from.read_value(scope), NativeExpand::<u32>::from(0u32).read_value(scope));
            return llvm::load_early(scope, from, like).into();
        }
        #[cfg(not(feature = "llvm"))]
        unreachable!("only LLVM's targets have warpgroups")
    })
}

/// A statement of PTX without operands, which orders accesses of memory.
#[cube]
#[allow(unused_variables)]
pub fn statement(#[comptime] statement: &'static str) {
    intrinsic!(|scope| {
        #[cfg(feature = "llvm")]
        llvm::memory_statement(scope, statement);
    })
}
