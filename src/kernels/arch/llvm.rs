//! LLVM intrinsics that CubeCL 0.11.3 has no operation for.

use cubecl::frontend::ReadValue;
use cubecl::ir::attributes::BoolAttr;
use cubecl::ir::prelude::*;
use cubecl::ir::{CanMaterialize, HasSideEffects, NoMemoryEffect, Pure, Scope, cube_op};
use cubecl::prelude::NativeExpand;
use cubecl_llvm::shared::intrinsic::{call_op, i32_const_op};
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::constant::insert_bool_const;
use pliron::builtin::attributes::StringAttr;
use pliron::builtin::types::{BF16Type, FP16Type, IntegerType, Signedness};
use pliron_llvm::llvm_attrs::{LlvmAttrValue, LlvmAttributesAttr};
use pliron_llvm::op_interfaces::CastOpInterface;
use pliron_llvm::ops::{
    AddrSpaceCastOp, BitcastOp, CallIntrinsicOp, ExtractElementOp, ExtractValueOp, InlineAsmOp, InsertElementOp,
    PoisonOp, PtrToIntOp,
};
use pliron_llvm::types::{FuncType, PointerType, StructLayout, StructType, VectorType, VectorTypeKind, VoidType};

use super::matrix_unit::MatrixUnit;
use crate::kernels::floats::FloatType;

/// `c` plus the products of the four bytes of `a` and of `b`.
#[cube_op(name = "cube_gguf.dot4")]
#[result_ty(same_as = c)]
#[op_traits(Pure, CanMaterialize)]
pub struct Dot4Op {
    pub a: Value,
    pub b: Value,
    pub c: Value,
    pub intrinsic: StringAttr,
    pub a_is_signed: BoolAttr,
}

/// The intrinsics of a dot product of four bytes.
pub const SDOT4: &str = "llvm.amdgcn.sdot4";
pub const SUDOT4: &str = "llvm.amdgcn.sudot4";
pub const IDP4A_SIGNED: &str = "llvm.nvvm.idp4a.s.s";
pub const IDP4A_UNSIGNED: &str = "llvm.nvvm.idp4a.u.s";

/// Appends a [`Dot4Op`] by one of these intrinsics.
pub fn dot4(
    scope: &Scope,
    a: NativeExpand<u32>,
    b: NativeExpand<u32>,
    c: NativeExpand<i32>,
    intrinsic: &str,
    a_is_signed: bool,
) -> NativeExpand<i32> {
    let (a, b, c) = (a.read_value(scope), b.read_value(scope), c.read_value(scope));
    let op = Dot4Op::new(scope.ctx_mut(), a, b, c, intrinsic, BoolAttr::new(a_is_signed));
    scope.register_with_result(&op).into()
}

/// `v_perm_b32` of AMD, `prmt` of PTX: the bytes of `low` (0 to 3) and `high` (4 to 7) that the selectors index.
#[cube_op(name = "cube_gguf.perm")]
#[result_ty(same_as = selector)]
#[op_traits(Pure, CanMaterialize)]
pub struct PermOp {
    pub high: Value,
    pub low: Value,
    pub selector: Value,
    pub amd: BoolAttr,
}

/// Appends a [`PermOp`].
pub fn perm(
    scope: &Scope,
    high: NativeExpand<u32>,
    low: NativeExpand<u32>,
    selector: NativeExpand<u32>,
    amd: bool,
) -> NativeExpand<u32> {
    let (high, low, selector) = (high.read_value(scope), low.read_value(scope), selector.read_value(scope));
    let op = PermOp::new(scope.ctx_mut(), high, low, selector, BoolAttr::new(amd));
    scope.register_with_result(&op).into()
}

#[op_interface_impl]
impl ToLLVMDialect for PermOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let (high, low, selector) = (self.high(ctx), self.low(ctx), self.selector(ctx));
        let ty = selector.get_type(ctx);
        let amd = self.amd(ctx).0;
        let call = match amd {
            true => call_op(ctx, "llvm.amdgcn.perm", ty, vec![high, low, selector]),
            false => call_op(ctx, "llvm.nvvm.prmt", ty, vec![low, high, selector]),
        };
        rewriter.insert_op(ctx, &call);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![call.get_result(ctx)]);
        Ok(())
    }
}

/// An approximate function of a float.
#[cube_op(name = "cube_gguf.approximate")]
#[result_ty(same_as = value)]
#[op_traits(Pure, CanMaterialize)]
pub struct ApproximateOp {
    pub value: Value,
    pub intrinsic: StringAttr,
}

/// Appends an [`ApproximateOp`].
pub fn approximate(scope: &Scope, value: NativeExpand<f32>, intrinsic: &str) -> NativeExpand<f32> {
    let value = value.read_value(scope);
    let op = ApproximateOp::new(scope.ctx_mut(), value, intrinsic);
    scope.register_with_result(&op).into()
}

#[op_interface_impl]
impl ToLLVMDialect for ApproximateOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let (value, intrinsic) = (self.value(ctx), String::from(self.intrinsic(ctx).clone()));
        let ty = value.get_type(ctx);
        let call = call_op(ctx, &intrinsic, ty, vec![value]);
        rewriter.insert_op(ctx, &call);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![call.get_result(ctx)]);
        Ok(())
    }
}

/// A copy of a number whose origin LLVM does not see, so that its uses stay after this op.
#[cube_op(name = "cube_gguf.pin_after_barrier")]
#[result_ty(same_as = value)]
#[op_traits(CanMaterialize, HasSideEffects, NoMemoryEffect)]
pub struct ScheduledOp {
    pub value: Value,
}

/// Appends a barrier and a [`ScheduledOp`] of `value`. Instructions that depend on the result stay after the barrier, loads
/// of constant memory included, which the barrier alone does not hold back.
pub fn pin_after_barrier(scope: &Scope, value: NativeExpand<usize>) -> NativeExpand<usize> {
    schedule_barrier(scope);
    let value = value.read_value(scope);
    let op = ScheduledOp::new(scope.ctx_mut(), value);
    scope.register_with_result(&op).into()
}

#[op_interface_impl]
impl ToLLVMDialect for ScheduledOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let value = self.value(ctx);
        let ty = value.get_type(ctx);
        // No instruction: its output is the register of its input.
        let asm = InlineAsmOp::new(ctx, ty, vec![value], "", "=v,0", true);
        rewriter.insert_op(ctx, &asm);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![asm.get_result(ctx)]);
        Ok(())
    }
}

/// A [`MatrixUnit`]'s product, added to `sums`. Its lanes exchange values: it stays where it is.
#[cube_op(name = "cube_gguf.matrix_product")]
#[result_ty(same_as = sums)]
#[op_traits(CanMaterialize, HasSideEffects, NoMemoryEffect)]
pub struct MatrixProductOp {
    pub weights: Value,
    pub x: Value,
    pub sums: Value,
    pub intrinsic: StringAttr,
    pub is_f16: BoolAttr,
}

/// The intrinsics of a product of matrices.
const MMA: &str = "llvm.nvvm.mma.m16n8k16.row.col.bf16";
const MMA_F16: &str = "llvm.nvvm.mma.m16n8k16.row.col.f32.f32";
const WMMA_RDNA3: &str = "llvm.amdgcn.wmma.f32.16x16x16.bf16.v8f32.v16i16";
const WMMA_RDNA3_F16: &str = "llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v16f16";
const WMMA_RDNA4: &str = "llvm.amdgcn.wmma.f32.16x16x16.bf16.v8f32.v8i16";
const WMMA_RDNA4_F16: &str = "llvm.amdgcn.wmma.f32.16x16x16.f16.v8f32.v8f16";
const MFMA: &str = "llvm.amdgcn.mfma.f32.16x16x16bf16.1k";
const MFMA_F16: &str = "llvm.amdgcn.mfma.f32.16x16x16f16";

/// Appends a [`MatrixProductOp`] of weights, activations and sums.
pub fn matrix_product(scope: &Scope, [weights, x, sums]: [Value; 3], unit: MatrixUnit, ty: FloatType) -> Value {
    let is_f16 = ty == FloatType::F16;
    let of = |bf16: &'static str, f16: &'static str| if is_f16 { f16 } else { bf16 };
    let intrinsic = match unit {
        MatrixUnit::MmaSync => of(MMA, MMA_F16),
        MatrixUnit::Wgmma { .. } => unreachable!("a warpgroup's product is an operation of its own"),
        MatrixUnit::WmmaRdna3 => of(WMMA_RDNA3, WMMA_RDNA3_F16),
        MatrixUnit::WmmaRdna4 => of(WMMA_RDNA4, WMMA_RDNA4_F16),
        MatrixUnit::Mfma => of(MFMA, MFMA_F16),
    };
    let op = MatrixProductOp::new(scope.ctx_mut(), weights, x, sums, intrinsic, BoolAttr::new(is_f16));
    scope.register_with_result(&op)
}

#[op_interface_impl]
impl ToLLVMDialect for MatrixProductOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let (weights, x, sums) = (self.weights(ctx), self.x(ctx), self.sums(ctx));
        let intrinsic = String::from(self.intrinsic(ctx).clone());
        // AMD's intrinsics take bf16 as words of 16 bits.
        let half: TypeHandle = match self.is_f16(ctx).0 {
            true => FP16Type::get(ctx).into(),
            false => IntegerType::get(ctx, 16, Signedness::Signless).into(),
        };
        let product = if intrinsic.starts_with("llvm.nvvm") {
            let mut registers: Vec<_> = [weights, x].into_iter().flat_map(|v| registers(ctx, rewriter, v)).collect();
            if self.is_f16(ctx).0 {
                registers = registers.into_iter().map(|word| as_halves(ctx, rewriter, word, half)).collect();
            }
            mma(ctx, rewriter, registers, sums, &intrinsic)?
        } else {
            // AMD's instructions take rows of activations first, so that a lane's sums are of one row of weights.
            let mut operands = vec![as_halves(ctx, rewriter, x, half), as_halves(ctx, rewriter, weights, half), sums];
            if intrinsic.contains(".mfma.") {
                // No broadcast of one operand's blocks, no permutation of the other's.
                operands.extend([0; 3].map(|flag| constant(ctx, rewriter, flag)));
            }
            let call = call_op(ctx, &intrinsic, sums.get_type(ctx), operands);
            appended(ctx, rewriter, &call)
        };
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![product]);
        Ok(())
    }
}

/// `mma.sync`, which takes and gives single registers.
fn mma(
    ctx: &mut Context,
    rewriter: &mut DialectConversionRewriter,
    operands: Vec<Value>,
    sums: Value,
    intrinsic: &str,
) -> Result<Value> {
    let all = [operands, registers(ctx, rewriter, sums)].concat();
    let result = registers_of(ctx, sums);
    let taken = all.iter().map(|register| register.get_type(ctx)).collect();
    let signature = FuncType::get(ctx, result, taken, false);
    let call = CallIntrinsicOp::new(ctx, intrinsic.to_owned().into(), signature, all);
    let call = appended(ctx, rewriter, &call);
    from_registers(ctx, rewriter, call, sums)
}

/// The elements of a vector.
fn registers(ctx: &mut Context, rewriter: &mut DialectConversionRewriter, vector: Value) -> Vec<Value> {
    let count = lanes(ctx, vector);
    let element = |i| {
        let at = constant(ctx, rewriter, i as i32);
        let register = ExtractElementOp::new(ctx, vector, at);
        appended(ctx, rewriter, &register)
    };
    (0..count).map(element).collect()
}

/// The type of an instruction that gives the elements of a vector in registers: a struct.
fn registers_of(ctx: &mut Context, vector: Value) -> TypeHandle {
    let element = vector.get_type(ctx).deref(ctx).downcast_ref::<VectorType>().map(VectorType::elem_type);
    let fields = element.into_iter().cycle().take(lanes(ctx, vector) as usize).collect();
    StructType::get_unnamed(ctx, (fields, StructLayout::Unpacked)).into()
}

/// What an instruction gave in registers, as a vector of the type of `like`.
fn from_registers(
    ctx: &mut Context,
    rewriter: &mut DialectConversionRewriter,
    given: Value,
    like: Value,
) -> Result<Value> {
    let nothing = PoisonOp::new(ctx, like.get_type(ctx));
    let mut vector = appended(ctx, rewriter, &nothing);
    for i in 0..lanes(ctx, like) {
        let register = ExtractValueOp::new(ctx, given, vec![i])?;
        let register = appended(ctx, rewriter, &register);
        let at = constant(ctx, rewriter, i as i32);
        let with = InsertElementOp::new(ctx, vector, register, at);
        vector = appended(ctx, rewriter, &with);
    }
    Ok(vector)
}

/// `wgmma.mma_async` of weights in registers and activations that `descriptor` describes, added to `sums`. No one may read or
/// write the operands before a [`WarpgroupWaitOp`].
#[cube_op(name = "cube_gguf.warpgroup_product")]
#[result_ty(same_as = sums)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct WarpgroupProductOp {
    pub weights: Value,
    pub descriptor: Value,
    pub sums: Value,
}

/// Appends a [`WarpgroupProductOp`].
pub fn warpgroup_product(scope: &Scope, [weights, descriptor, sums]: [Value; 3]) -> Value {
    let op = WarpgroupProductOp::new(scope.ctx_mut(), weights, descriptor, sums);
    scope.register_with_result(&op)
}

#[op_interface_impl]
impl ToLLVMDialect for WarpgroupProductOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let (weights, descriptor, sums) = (self.weights(ctx), self.descriptor(ctx), self.sums(ctx));
        let count = lanes(ctx, sums) as usize;
        let weights = registers(ctx, rewriter, weights);
        let at = |from: usize, count: usize| {
            let names: Vec<_> = (from..from + count).map(|i| format!("${i}")).collect();
            names.join(", ")
        };
        // A plane's registers hold two sums of 16 rows for each lane and row of activations.
        let tokens = 2 * count;
        let template = format!(
            "wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.bf16.bf16 {{{}}}, {{{}}}, ${}, 1, 1, 1, 0;",
            at(0, count),
            at(2 * count, weights.len()),
            2 * count + weights.len(),
        );
        let inputs = [weights, vec![descriptor]].concat();
        let product = in_place(ctx, rewriter, sums, inputs, &template, ",r,r,r,r,l,~{memory}")?;
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![product]);
        Ok(())
    }
}

/// The sums of the [`WarpgroupProductOp`]s so far, which are done but for those of the last `pending` groups.
#[cube_op(name = "cube_gguf.warpgroup_wait")]
#[result_ty(same_as = sums)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct WarpgroupWaitOp {
    pub sums: Value,
    pub pending: StringAttr,
}

/// Appends a [`WarpgroupWaitOp`].
pub fn warpgroup_wait(scope: &Scope, sums: Value, pending: usize) -> Value {
    let op = WarpgroupWaitOp::new(scope.ctx_mut(), sums, pending.to_string());
    scope.register_with_result(&op)
}

#[op_interface_impl]
impl ToLLVMDialect for WarpgroupWaitOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let sums = self.sums(ctx);
        let template = format!("wgmma.wait_group.sync.aligned {};", String::from(self.pending(ctx).clone()));
        let done = in_place(ctx, rewriter, sums, Vec::new(), &template, ",~{memory}")?;
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![done]);
        Ok(())
    }
}

/// Inline PTX that changes the elements of a vector of floats in their registers, `$0` on; then come the same again, and
/// then `inputs`, of which `constraints` tells.
fn in_place(
    ctx: &mut Context,
    rewriter: &mut DialectConversionRewriter,
    vector: Value,
    inputs: Vec<Value>,
    template: &str,
    constraints: &str,
) -> Result<Value> {
    let elements = registers(ctx, rewriter, vector);
    let count = elements.len();
    let outputs = vec!["=f"; count].join(",");
    let tied: Vec<_> = (0..count).map(|i| i.to_string()).collect();
    let constraints = format!("{outputs},{}{constraints}", tied.join(","));
    let result = registers_of(ctx, vector);
    let asm = InlineAsmOp::new(ctx, result, [elements, inputs].concat(), template, &constraints, true);
    let mut convergent = LlvmAttributesAttr::new();
    convergent.set("convergent", LlvmAttrValue::Unit);
    asm.set_attr_llvm_inline_asm_attrs(ctx, convergent);
    let asm = appended(ctx, rewriter, &asm);
    from_registers(ctx, rewriter, asm, vector)
}

/// The address of a pointer's target in its memory, of the type of `like`.
#[cube_op(name = "cube_gguf.address")]
#[result_ty(same_as = like)]
#[op_traits(CanMaterialize, HasSideEffects, NoMemoryEffect)]
pub struct AddressOp {
    pub pointer: Value,
    /// Of the result's type.
    pub like: Value,
    pub shared: BoolAttr,
}

/// Appends an [`AddressOp`].
pub fn address(scope: &Scope, pointer: Value, shared: bool) -> NativeExpand<u64> {
    let like = NativeExpand::<u64>::from(0u64).read_value(scope);
    let op = AddressOp::new(scope.ctx_mut(), pointer, like, BoolAttr::new(shared));
    scope.register_with_result(&op).into()
}

#[op_interface_impl]
impl ToLLVMDialect for AddressOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        const GLOBAL_SPACE: u32 = 1;
        const SHARED_SPACE: u32 = 3;
        let (mut pointer, ty) = (self.pointer(ctx), self.like(ctx).get_type(ctx));
        let space = if self.shared(ctx).0 { SHARED_SPACE } else { GLOBAL_SPACE };
        let in_space: TypeHandle = PointerType::get(ctx, space).into();
        if pointer.get_type(ctx) != in_space {
            let cast = AddrSpaceCastOp::new(ctx, pointer, in_space);
            pointer = appended(ctx, rewriter, &cast);
        }
        let number = PtrToIntOp::new(ctx, pointer, ty);
        let number = appended(ctx, rewriter, &number);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![number]);
        Ok(())
    }
}

/// `ld.global` of PTX, of one word or four, which no other access of memory passes.
#[cube_op(name = "cube_gguf.load_early")]
#[result_ty(same_as = like)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct LoadEarlyOp {
    pub from: Value,
    /// Of the result's type.
    pub like: Value,
}

/// Appends a [`LoadEarlyOp`].
pub fn load_early(scope: &Scope, from: Value, like: Value) -> Value {
    let op = LoadEarlyOp::new(scope.ctx_mut(), from, like);
    scope.register_with_result(&op)
}

#[op_interface_impl]
impl ToLLVMDialect for LoadEarlyOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let (from, like) = (self.from(ctx), self.like(ctx));
        let (ty, template, constraints) = match lanes(ctx, like) {
            1 => (like.get_type(ctx), "ld.global.b32 $0, [$1];", "=r,l,~{memory}"),
            _ => (registers_of(ctx, like), "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l,~{memory}"),
        };
        let load = InlineAsmOp::new(ctx, ty, vec![from], template, constraints, true);
        let mut value = appended(ctx, rewriter, &load);
        if lanes(ctx, like) > 1 {
            value = from_registers(ctx, rewriter, value, like)?;
        }
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![value]);
        Ok(())
    }
}

/// A statement of PTX on memory, whose operands are `$0` and `$2` of 32 bits and `$1` of 64; it may leave some out.
#[cube_op(name = "cube_gguf.asynchronous")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct AsynchronousOp {
    pub first: Value,
    pub second: Value,
    pub third: Value,
    pub statement: StringAttr,
}

/// Appends an [`AsynchronousOp`].
pub fn asynchronous(scope: &Scope, [first, second, third]: [Value; 3], statement: &str) {
    let op = AsynchronousOp::new(scope.ctx_mut(), first, second, third, statement);
    scope.register(&op);
}

#[op_interface_impl]
impl ToLLVMDialect for AsynchronousOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let operands = vec![self.first(ctx), self.second(ctx), self.third(ctx)];
        let statement = String::from(self.statement(ctx).clone());
        let void = VoidType::get(ctx).into();
        let asm = InlineAsmOp::new(ctx, void, operands, &statement, "r,l,r,~{memory}", true);
        rewriter.insert_op(ctx, &asm);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// A statement of PTX without operands, which orders accesses of memory.
#[cube_op(name = "cube_gguf.memory_statement")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct MemoryStatementOp {
    pub statement: StringAttr,
}

/// Appends a [`MemoryStatementOp`].
pub fn memory_statement(scope: &Scope, statement: &str) {
    let op = MemoryStatementOp::new(scope.ctx_mut(), statement);
    scope.register(&op);
}

#[op_interface_impl]
impl ToLLVMDialect for MemoryStatementOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let statement = String::from(self.statement(ctx).clone());
        let void = VoidType::get(ctx).into();
        let asm = InlineAsmOp::new(ctx, void, Vec::new(), &statement, "~{memory}", true);
        rewriter.insert_op(ctx, &asm);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// Words as twice as many halves of a type.
fn as_halves(ctx: &mut Context, rewriter: &mut DialectConversionRewriter, words: Value, half: TypeHandle) -> Value {
    let halves = VectorType::get(ctx, half, 2 * lanes(ctx, words), VectorTypeKind::Fixed).into();
    let cast = BitcastOp::new(ctx, words, halves);
    appended(ctx, rewriter, &cast)
}

/// Elements of a vector; 1 for a scalar.
fn lanes(ctx: &Context, value: Value) -> u32 {
    value.get_type(ctx).deref(ctx).downcast_ref::<VectorType>().map_or(1, VectorType::num_elements)
}

fn constant(ctx: &mut Context, rewriter: &mut DialectConversionRewriter, value: i32) -> Value {
    let constant = i32_const_op(ctx, value);
    appended(ctx, rewriter, &constant)
}

/// The result of an op, which is appended.
fn appended(ctx: &mut Context, rewriter: &mut DialectConversionRewriter, op: &dyn Op) -> Value {
    let operation = op.get_operation();
    rewriter.insert_operation(ctx, operation);
    operation.deref(ctx).get_result(0)
}

/// `cvt.rn.bf16x2.f32` of PTX: two floats rounded to bf16.
#[cube_op(name = "cube_gguf.bf16_pair")]
#[result_ty(same_as = word)]
#[op_traits(Pure, CanMaterialize)]
pub struct Bf16PairOp {
    pub low: Value,
    pub high: Value,
    /// Of the result's type.
    pub word: Value,
}

/// Appends a [`Bf16PairOp`].
pub fn bf16_pair(scope: &Scope, low: NativeExpand<f32>, high: NativeExpand<f32>) -> NativeExpand<u32> {
    let word = NativeExpand::<u32>::from(0u32).read_value(scope);
    let (low, high) = (low.read_value(scope), high.read_value(scope));
    let op = Bf16PairOp::new(scope.ctx_mut(), low, high, word);
    scope.register_with_result(&op).into()
}

#[op_interface_impl]
impl ToLLVMDialect for Bf16PairOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let (low, high, word) = (self.low(ctx), self.high(ctx), self.word(ctx).get_type(ctx));
        let bf16 = BF16Type::get(ctx).into();
        let pair = VectorType::get(ctx, bf16, 2, VectorTypeKind::Fixed).into();
        let call = call_op(ctx, "llvm.nvvm.ff2bf16x2.rn", pair, vec![high, low]);
        let call = appended(ctx, rewriter, &call);
        let cast = BitcastOp::new(ctx, call, word);
        let cast = appended(ctx, rewriter, &cast);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![cast]);
        Ok(())
    }
}

/// Appends a barrier that LLVM's scheduler for AMD moves nothing across.
pub fn schedule_barrier(scope: &Scope) {
    let nothing = i32_const_op(scope.ctx_mut(), 0);
    scope.register(&nothing);
    let ctx = scope.ctx_mut();
    let (void, nothing) = (VoidType::get(ctx).into(), nothing.get_result(ctx));
    scope.register(&call_op(ctx, "llvm.amdgcn.sched.barrier", void, vec![nothing]));
}

#[op_interface_impl]
impl ToLLVMDialect for Dot4Op {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> Result<()> {
        let (a, b, c) = (self.a(ctx), self.b(ctx), self.c(ctx));
        let (intrinsic, a_is_signed) = (String::from(self.intrinsic(ctx).clone()), self.a_is_signed(ctx).0);
        let mut flag = |value| insert_bool_const(ctx, rewriter, value);
        // The last flag of AMD's intrinsics tells whether the sum saturates.
        let operands = match intrinsic.as_str() {
            SDOT4 => vec![a, b, c, flag(false)],
            SUDOT4 => vec![flag(a_is_signed), a, flag(true), b, c, flag(false)],
            _ => vec![a, b, c],
        };
        let sum_ty = c.get_type(ctx);
        let call = call_op(ctx, &intrinsic, sum_ty, operands);
        rewriter.insert_op(ctx, &call);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![call.get_result(ctx)]);
        Ok(())
    }
}
