//! The C functions: those that CubeCL's HIP runtime calls, and the ones that go with them.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::panic::{self, AssertUnwindSafe};

use cubecl_hip_sys as hip;
use cubecl_hip_sys::{
    hipDevice_t, hipDeviceProp_tR0600, hipDeviceptr_t, hipError_t, hipEvent_t, hipFunction_t, hipGraph_t,
    hipGraphExec_t, hipGraphNode_t, hipGraphNodeType, hipMemcpyKind, hipModule_t, hipStream_t, hipStreamCaptureMode,
    hiprtcProgram, hiprtcResult,
};

use crate::code_object;
use crate::error::{Code, Error, Result, refuse};
use crate::launch::Shape;
use crate::memory::{Copy, End, Owner, Side};
use crate::runtime::{Operation, Runtime, process};

/// HIP 6.0, whose functions these are.
const VERSION: c_int = 60_000_000;

thread_local! {
    /// The device that `hipSetDevice` chose for the thread.
    static DEVICE: Cell<usize> = const { Cell::new(0) };
}

/// HIP's functions: each answers with a code, and the value of its body goes where the pointer behind `=>` says. Each
/// has the type that CubeCL's bindings have for it.
macro_rules! hip_functions {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(=> $out:ident)? |$runtime:pat_param| $body:block)*) => {$(
        /// # Safety
        ///
        /// As HIP's reference says of the pointers.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> hipError_t {
            answer(stringify!($name), |$runtime: &Runtime| {
                $(check($out)?;)?
                let _value = $body;
                // SAFETY: the pointer is not null, and the caller's promise is that it can be written to.
                $(unsafe { $out.write(_value) };)?
                Ok(())
            })
        }
        const _: unsafe extern "C" fn($($type),*) -> hipError_t = hip::$name;
    )*};
}

hip_functions! {
    fn hipGetDeviceCount(count: *mut c_int) => count |hip| { hip.device_count()? }

    fn hipSetDevice(device: c_int) |hip| { DEVICE.set(hip.device(device)?) }

    fn hipSetDeviceFlags(_flags: c_uint) |_| {}

    fn hipGetDevicePropertiesR0600(properties: *mut hipDeviceProp_tR0600, device: c_int) => properties |hip| {
        hip.properties(hip.device(device)?)
    }

    fn hipRuntimeGetVersion(version: *mut c_int) => version |_| { VERSION }

    fn hipDeviceGetPCIBusId(id: *mut c_char, room: c_int, device: hipDevice_t) |hip| {
        let name = hip.pci_bus_id(hip.device(device)?);
        check(id)?;
        if usize::try_from(room).is_ok_and(|room| room <= name.len()) || room < 0 {
            refuse!(InvalidValue, "{room} bytes of room for the {} of {name}", name.len() + 1);
        }
        // SAFETY: there is room for the name and its end.
        unsafe {
            id.copy_from_nonoverlapping(name.as_ptr().cast(), name.len());
            id.add(name.len()).write(0);
        }
    }

    fn hipMemGetInfo(free: *mut usize, total: *mut usize) => total |hip| {
        check(free)?;
        let (available, capacity) = hip.memory_info(DEVICE.get());
        // SAFETY: the pointer is not null, and the caller's promise is that it can be written to.
        unsafe { free.write(available) };
        capacity
    }

    fn hipMalloc(pointer: *mut *mut c_void, bytes: usize) => pointer |hip| {
        hip.allocate(bytes, Owner::Device(DEVICE.get()))? as *mut c_void
    }

    fn hipFree(pointer: *mut c_void) |hip| { hip.free(pointer as usize, Side::Device)? }

    fn hipHostMalloc(pointer: *mut *mut c_void, bytes: usize, _flags: c_uint) => pointer |hip| {
        hip.allocate(bytes, Owner::Host)? as *mut c_void
    }

    fn hipFreeHost(pointer: *mut c_void) |hip| { hip.free(pointer as usize, Side::Host)? }

    fn hipMemcpyHtoDAsync(to: hipDeviceptr_t, from: *const c_void, bytes: usize, stream: hipStream_t) |hip| {
        let copy = Copy::flat((Side::Device, to as usize), (Side::Host, from as usize), bytes);
        hip.submit(stream as usize, Operation::Copy(copy))?
    }

    fn hipMemcpyDtoHAsync(to: *mut c_void, from: hipDeviceptr_t, bytes: usize, stream: hipStream_t) |hip| {
        let copy = Copy::flat((Side::Host, to as usize), (Side::Device, from as usize), bytes);
        hip.submit(stream as usize, Operation::Copy(copy))?
    }

    fn hipMemcpyDtoDAsync(to: hipDeviceptr_t, from: hipDeviceptr_t, bytes: usize, stream: hipStream_t) |hip| {
        let copy = Copy::flat((Side::Device, to as usize), (Side::Device, from as usize), bytes);
        hip.submit(stream as usize, Operation::Copy(copy))?
    }

    fn hipMemcpy2DAsync(
        to: *mut c_void,
        to_pitch: usize,
        from: *const c_void,
        from_pitch: usize,
        width: usize,
        rows: usize,
        kind: hipMemcpyKind,
        stream: hipStream_t,
    ) |hip| {
        let (to_side, from_side) = match kind {
            hip::hipMemcpyKind_hipMemcpyHostToDevice => (Side::Device, Side::Host),
            hip::hipMemcpyKind_hipMemcpyDeviceToHost => (Side::Host, Side::Device),
            hip::hipMemcpyKind_hipMemcpyDeviceToDevice => (Side::Device, Side::Device),
            other => refuse!(InvalidMemcpyDirection, "a copy of the kind {other}"),
        };
        let copy = Copy {
            to: End { side: to_side, address: to as usize, pitch: to_pitch },
            from: End { side: from_side, address: from as usize, pitch: from_pitch },
            width,
            rows,
        };
        hip.submit(stream as usize, Operation::Copy(copy))?
    }

    fn hipStreamCreateWithFlags(stream: *mut hipStream_t, _flags: c_uint) => stream |hip| {
        hip.create_stream() as hipStream_t
    }

    fn hipStreamDestroy(stream: hipStream_t) |hip| { hip.destroy_stream(stream as usize)? }

    fn hipStreamSynchronize(stream: hipStream_t) |hip| { hip.synchronize_stream(stream as usize)? }

    fn hipStreamWaitEvent(stream: hipStream_t, event: hipEvent_t, _flags: c_uint) |hip| {
        hip.wait_for_event(stream as usize, event as usize)?
    }

    fn hipEventCreateWithFlags(event: *mut hipEvent_t, _flags: c_uint) => event |hip| {
        hip.create_event() as hipEvent_t
    }

    fn hipEventDestroy(event: hipEvent_t) |hip| { hip.destroy_event(event as usize)? }

    fn hipEventRecord(event: hipEvent_t, stream: hipStream_t) |hip| {
        hip.record_event(event as usize, stream as usize)?
    }

    fn hipEventSynchronize(event: hipEvent_t) |hip| { hip.synchronize_event(event as usize)? }

    fn hipEventElapsedTime(milliseconds: *mut f32, start: hipEvent_t, stop: hipEvent_t) => milliseconds |hip| {
        hip.elapsed_milliseconds(start as usize, stop as usize)?
    }

    fn hipModuleLoadData(module: *mut hipModule_t, image: *const c_void) => module |hip| {
        check(image)?;
        // SAFETY: the caller's promise: a code object.
        let image = unsafe { code_object::bytes_at(image.cast()) }?;
        hip.load_module(DEVICE.get(), image)? as hipModule_t
    }

    fn hipModuleUnload(module: hipModule_t) |hip| { hip.unload_module(module as usize)? }

    fn hipModuleGetFunction(function: *mut hipFunction_t, module: hipModule_t, name: *const c_char) => function |hip| {
        check(name)?;
        // SAFETY: the caller's promise: a C string.
        let name = unsafe { CStr::from_ptr(name) };
        hip.function(module as usize, &name.to_string_lossy())? as hipFunction_t
    }

    fn hipModuleLaunchKernel(
        function: hipFunction_t,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        lds_bytes: c_uint,
        stream: hipStream_t,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) |hip| {
        let count = hip.pointer_count(function as usize)?;
        if !extra.is_null() {
            refuse!(NotSupported, "arguments in one buffer");
        }
        if count > 0 {
            check(arguments)?;
        }
        let argument = |number: usize| {
            // SAFETY: the caller's promise: as many pointers as the kernel has arguments.
            let value = unsafe { arguments.add(number).read() };
            check(value)?;
            // SAFETY: and each to the argument's value, which is a pointer.
            Ok(unsafe { value.cast::<u64>().read_unaligned() })
        };
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], lds_bytes };
        let arguments = (0..count).map(argument).collect::<Result<_>>()?;
        let launch = hip.prepare(function as usize, shape, arguments)?;
        hip.submit(stream as usize, Operation::Launch(launch))?
    }

    fn hipStreamBeginCapture(stream: hipStream_t, _mode: hipStreamCaptureMode) |hip| {
        hip.begin_capture(stream as usize)?
    }

    fn hipStreamEndCapture(stream: hipStream_t, graph: *mut hipGraph_t) => graph |hip| {
        hip.end_capture(stream as usize)? as hipGraph_t
    }

    fn hipGraphGetNodes(graph: hipGraph_t, nodes: *mut hipGraphNode_t, count: *mut usize) |hip| {
        check(count)?;
        let found = hip.graph_nodes(graph as usize)?;
        // SAFETY: the count can be read and written; where there is an array, it says how many nodes that has room for.
        unsafe {
            if nodes.is_null() {
                count.write(found.len());
            } else {
                let room = count.read();
                (0..room).for_each(|i| nodes.add(i).write(found.get(i).copied().unwrap_or(0) as hipGraphNode_t));
                count.write(room.min(found.len()));
            }
        }
    }

    fn hipGraphNodeGetType(node: hipGraphNode_t, kind: *mut hipGraphNodeType) => kind |hip| {
        hip.node_type(node as usize)?
    }

    fn hipGraphDestroy(graph: hipGraph_t) |hip| { hip.destroy_graph(graph as usize)? }

    fn hipGraphInstantiate(
        executable: *mut hipGraphExec_t,
        graph: hipGraph_t,
        _error_node: *mut hipGraphNode_t,
        _log: *mut c_char,
        _log_room: usize,
    ) => executable |hip| {
        hip.instantiate(graph as usize)? as hipGraphExec_t
    }

    fn hipGraphExecDestroy(executable: hipGraphExec_t) |hip| { hip.destroy_executable(executable as usize)? }

    fn hipGraphUpload(executable: hipGraphExec_t, stream: hipStream_t) |hip| {
        hip.upload_graph(executable as usize, stream as usize)?
    }

    fn hipGraphLaunch(executable: hipGraphExec_t, stream: hipStream_t) |hip| {
        hip.launch_graph(executable as usize, stream as usize)?
    }
}

/// The compiler of HIP C++, which is not here: CubeCL's `hip-cpp` stops at its first call.
///
/// # Safety
///
/// Touches none of the pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hiprtcCreateProgram(
    _program: *mut hiprtcProgram,
    _source: *const c_char,
    _name: *const c_char,
    _header_count: c_int,
    _headers: *const *const c_char,
    _header_names: *const *const c_char,
) -> hiprtcResult {
    eprintln!("hip-stand-in: hiprtcCreateProgram: the stand-in has no compiler of HIP C++");
    hip::hiprtcResult_HIPRTC_ERROR_PROGRAM_CREATION_FAILURE
}

/// The answer to a call: its error, if any, is counted and has a line on stderr. A panic is an error like any other,
/// for the caller is C.
fn answer(call: &str, body: impl FnOnce(&Runtime) -> Result<()>) -> hipError_t {
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| process().and_then(body)));
    let panicked = |_| Err(Error { code: Code::Unknown, message: "the stand-in panicked".to_owned() });
    let Err(error) = outcome.unwrap_or_else(panicked) else { return hip::hipError_t_hipSuccess };
    let message = format!("{call}: {error}");
    eprintln!("hip-stand-in: {message}");
    if let Ok(runtime) = process() {
        runtime.counts.count_error(message);
    }
    error.code as hipError_t
}

fn check<T>(pointer: *const T) -> Result<()> {
    if pointer.is_null() {
        refuse!(InvalidValue, "a null pointer");
    }
    Ok(())
}
