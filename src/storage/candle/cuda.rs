//! Candle's CUDA tensors beside CubeCL's CUDA runtime: both use the GPU's primary context, so that either reads the other's memory;
//! their streams wait for each other by events.
//!
//! ```text
//! the caller's thread                         the runtime's own thread, where its calls return at once
//!     allocate the results, on Candle's stream
//!     record `queued` on Candle's stream
//!     hand the rest on, and wait awake  --->  CubeCL's stream waits for `queued`
//!                                             copy the inputs, launch, copy the results
//!                                       <---  record `copied` on CubeCL's stream, behind the last copy
//!     Candle's stream waits for `copied`
//! ```
//!
//! Neither thread waits for the GPU.

use std::hint::spin_loop;
use std::iter;
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};

use candle_core::cuda_backend::cudarc::driver::result::{event, memcpy_dtod_async, stream};
use candle_core::cuda_backend::cudarc::driver::sys::{CUdeviceptr, CUevent_wait_flags, CUstream};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use candle_core::cuda_backend::{CudaStorageSlice, cudarc::driver::DriverError};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};
use cubecl::cuda::CudaRuntime;
use cubecl::device_handle::DeviceHandle;
use cubecl::future::block_on;
use cubecl::server::{Handle, ServerStorage};
use cubecl_common::device::{DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl_server::runtime::Runtime;
use cubecl_server::stream::WriteScoped;
use half::{bf16, f16};

use super::candle_error;
use super::transfer::{SharedGpu, Work};
use crate::storage::device::{Backend, CubeDevice};

/// Whether both are one GPU.
pub(super) fn is_shared(gpu: &CudaDevice, device: &CubeDevice) -> bool {
    device.backend() == Backend::Cuda && device.index() == gpu.cuda_stream().context().ordinal()
}

impl SharedGpu for CudaDevice {
    fn call(
        &self,
        device: &CubeDevice,
        inputs: &[Tensor],
        work: Work,
        results: Vec<Shape>,
        dtype: DType,
    ) -> Result<Vec<Tensor>> {
        let failed = |error: DriverError| candle_error(device.failed(error));
        let stream = self.cuda_stream();
        let read: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();
        // What comes with an address keeps its memory for as long, and tells others on Candle's side of the access.
        let (from, reading): (Vec<Memory>, Vec<SyncOnDrop>) =
            read.iter().map(|(storage, layout)| to_read(storage, layout, &stream)).collect::<Result<_>>()?;
        let alloc = |shape: &Shape| allocated(self, shape.elem_count(), dtype);
        let mut storages: Vec<CudaStorage> = results.iter().map(alloc).collect::<Result<_>>()?;
        let (to, writing): (Vec<Memory>, Vec<SyncOnDrop>) = storages
            .iter_mut()
            .zip(&results)
            .map(|(storage, shape)| to_write(storage, shape.elem_count(), &stream))
            .collect::<Result<_>>()?;
        let queued = Arc::new(stream.record_event(None).map_err(failed)?);
        let copied = Arc::new(stream.context().new_event(None).map_err(failed)?);
        let server = DeviceHandle::new(id_of(device));
        let there = There { device: device.clone(), server, queued, copied: copied.clone() };
        let done = awaited(device, move || there.call(&from, work, &to));
        if let Err(error) = done {
            // Some copies may be under way, of memory that is free from here on.
            let _ = block_on(device.client().sync());
            return Err(candle_error(error));
        }
        stream.wait(&copied).map_err(failed)?;
        drop((reading, writing));
        let tensor = |(storage, shape)| Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false);
        Ok(storages.into_iter().zip(results).map(tensor).collect())
    }
}

/// What the driver says of what it was asked to queue.
type Queued = std::result::Result<(), DriverError>;

/// Some of the GPU's memory.
#[derive(Clone, Copy)]
struct Memory {
    address: CUdeviceptr,
    bytes: usize,
}

/// The values of a contiguous tensor.
fn to_read<'a>(storage: &'a Storage, layout: &Layout, stream: &'a CudaStream) -> Result<(Memory, SyncOnDrop<'a>)> {
    let Storage::Cuda(storage) = storage else { candle_core::bail!("values in the memory of another device") };
    let ((address, guard), size) = match &storage.slice {
        CudaStorageSlice::F32(values) => (values.device_ptr(stream), size_of::<f32>()),
        CudaStorageSlice::F16(values) => (values.device_ptr(stream), size_of::<f16>()),
        CudaStorageSlice::BF16(values) => (values.device_ptr(stream), size_of::<bf16>()),
        CudaStorageSlice::U32(values) => (values.device_ptr(stream), size_of::<u32>()),
        _ => candle_core::bail!("values of a type that no kernel takes"),
    };
    let address = address + (layout.start_offset() * size) as u64;
    Ok((Memory { address, bytes: layout.shape().elem_count() * size }, guard))
}

/// Memory of Candle's for values of a type.
fn allocated(gpu: &CudaDevice, len: usize, dtype: DType) -> Result<CudaStorage> {
    // No allocation is empty.
    let len = len.max(1);
    // SAFETY: `There::call` queues copies to all of it, or else nobody gets it.
    let slice = unsafe {
        match dtype {
            DType::F16 => CudaStorageSlice::F16(gpu.alloc(len)?),
            DType::BF16 => CudaStorageSlice::BF16(gpu.alloc(len)?),
            _ => CudaStorageSlice::F32(gpu.alloc(len)?),
        }
    };
    Ok(CudaStorage { slice, device: gpu.clone() })
}

/// Where Candle has the values of what was [`allocated`].
fn to_write<'a>(storage: &'a mut CudaStorage, len: usize, stream: &'a CudaStream) -> Result<(Memory, SyncOnDrop<'a>)> {
    let ((address, guard), size) = match &mut storage.slice {
        CudaStorageSlice::F32(values) => (values.device_ptr_mut(stream), size_of::<f32>()),
        CudaStorageSlice::F16(values) => (values.device_ptr_mut(stream), size_of::<f16>()),
        CudaStorageSlice::BF16(values) => (values.device_ptr_mut(stream), size_of::<bf16>()),
        _ => candle_core::bail!("results of a type that no kernel gives"),
    };
    Ok((Memory { address, bytes: len * size }, guard))
}

/// The part of a call that is done on the runtime's thread.
struct There {
    device: CubeDevice,
    server: DeviceHandle<<CudaRuntime as Runtime>::Server>,
    queued: Arc<CudaEvent>,
    copied: Arc<CudaEvent>,
}

impl There {
    fn call(&self, inputs: &[Memory], work: Work, results: &[Memory]) -> crate::Result<()> {
        let buffers: Vec<Handle> = inputs.iter().map(|input| self.import(input)).collect::<crate::Result<_>>()?;
        let made = work(&buffers)?;
        for (values, to) in made.iter().zip(results) {
            self.export(values, to)?;
        }
        Ok(())
    }

    /// A copy of what Candle has there.
    fn import(&self, from: &Memory) -> crate::Result<Handle> {
        let buffer = self.device.client().empty(from.bytes);
        // SAFETY: the buffer has as many bytes as the tensor, which the caller keeps.
        self.on_stream(&buffer, |to, stream| unsafe { self.copy(to, from.address, from.bytes, stream) })?;
        Ok(buffer)
    }

    /// Copies values to what Candle has for them.
    fn export(&self, values: &Handle, to: &Memory) -> crate::Result<()> {
        if to.bytes == 0 {
            return Ok(());
        }
        // SAFETY: the kernel made as many values as the tensor has, which the caller keeps.
        self.on_stream(values, |from, stream| unsafe { self.copy(to.address, from, to.bytes, stream) })
    }

    /// Queues a copy behind what Candle has queued, and tells Candle of its end.
    ///
    /// # Safety
    ///
    /// Both addresses must have as many bytes, until the copy is done.
    unsafe fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) -> Queued {
        let (queued, copied) = (self.queued.cu_event(), self.copied.cu_event());
        // SAFETY: the events live, and so does the stream: CubeCL destroys none while its server runs.
        unsafe {
            stream::wait_event(stream, queued, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)?;
            memcpy_dtod_async(to, from, bytes, stream)?;
            event::record(copied, stream)
        }
    }

    /// Calls `work` with a buffer's address and the stream whose kernels fill and read it.
    fn on_stream(
        &self,
        buffer: &Handle,
        work: impl FnOnce(CUdeviceptr, CUstream) -> Queued + Send,
    ) -> crate::Result<()> {
        let (binding, id) = (buffer.clone().binding(), buffer.stream);
        let done = self.server.submit_blocking(|server| {
            // The buffer is neither freed nor moved while this is held, and its memory is used again only behind `work`.
            let memory = server.get_resource(binding, id).map_err(|error| error.to_string())?;
            let mut streams = server.write_streams().resolve(id, iter::empty()).map_err(|error| error.to_string())?;
            work(memory.resource().ptr, streams.current().sys).map_err(|error| error.to_string())
        });
        let failed = |reason| self.device.failed(reason);
        done.map_err(|error| failed(format!("{error:?}")))?.map_err(failed)
    }
}

/// CubeCL's number of a device.
fn id_of(device: &CubeDevice) -> DeviceId {
    device.client().service_id().device
}

/// A service beside the device's server, on whose thread tasks may call that.
struct Neighbour;

impl DeviceService for Neighbour {
    fn init(_device: DeviceId) -> Self {
        Self
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        Arc::new(())
    }
}

/// How often the caller of a task looks for its end before it sleeps: a thread takes longer to wake up than most tasks.
const LOOKS: usize = 100_000;

/// What a task gives that is done on the thread of the device's server.
fn awaited(device: &CubeDevice, task: impl FnOnce() -> crate::Result<()> + Send + 'static) -> crate::Result<()> {
    let (sender, receiver) = sync_channel(1);
    let neighbour = DeviceHandle::<Neighbour>::new(id_of(device));
    // Nobody is left to be told where the caller is gone.
    neighbour.submit(move |_| drop(sender.send(task())));
    neighbour.flush_queue();
    for _ in 0..LOOKS {
        match receiver.try_recv() {
            Err(TryRecvError::Empty) => spin_loop(),
            Err(TryRecvError::Disconnected) => break,
            Ok(done) => return done,
        }
    }
    receiver.recv().unwrap_or_else(|_| Err(device.failed("the runtime's thread gave up")))
}
