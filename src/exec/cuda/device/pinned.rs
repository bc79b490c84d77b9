//! Pinned memory of an NVIDIA GPU's host, and graphs of its launches.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::nvidia::error;
use super::staging::{PIECE_BYTES, Piece};
use super::{Address, GraphId};
use crate::model::ops::DeviceError;

/// A piece of host memory that the driver knows, and the event that follows its copy.
pub struct PinnedPiece {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    memory: *mut u8,
    event: sys::CUevent,
    is_busy: bool,
}

// SAFETY: memory and event belong to the context, not to a thread.
unsafe impl Send for PinnedPiece {}

impl PinnedPiece {
    /// For copies in the order of this stream. The host reads it too, so it is not write-combined.
    pub fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<PinnedPiece, DeviceError> {
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(|e| error("event", e))?;
        // SAFETY: plain bytes, given back once.
        match unsafe { result::malloc_host(PIECE_BYTES, 0) } {
            Ok(memory) => {
                let (context, stream) = (context.clone(), stream.clone());
                Ok(PinnedPiece { context, stream, memory: memory.cast(), event, is_busy: false })
            }
            Err(e) => {
                // SAFETY: just made, and not used.
                let _ = unsafe { result::event::destroy(event) };
                Err(error("pinned host memory", e))
            }
        }
    }

    fn mark(&mut self) -> Result<(), DeviceError> {
        // SAFETY: both are of one context.
        unsafe { result::event::record(self.event, self.stream.cu_stream()) }.map_err(|e| error("event", e))?;
        self.is_busy = true;
        Ok(())
    }
}

impl Piece for PinnedPiece {
    fn memory(&self) -> *mut u8 {
        self.memory
    }

    unsafe fn start_upload(&mut self, to: Address, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: it has as many bytes, which stand until the event; the rest is the caller's promise.
        unsafe {
            let from = std::slice::from_raw_parts(self.memory, bytes);
            result::memcpy_htod_async(to, from, self.stream.cu_stream()).map_err(|e| error("upload", e))?;
        }
        self.mark()
    }

    unsafe fn start_download(&mut self, from: Address, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as above.
        unsafe {
            let to = std::slice::from_raw_parts_mut(self.memory, bytes);
            result::memcpy_dtoh_async(to, from, self.stream.cu_stream()).map_err(|e| error("download", e))?;
        }
        self.mark()
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        if std::mem::take(&mut self.is_busy) {
            // SAFETY: it was recorded.
            unsafe { result::event::synchronize(self.event) }.map_err(|e| error("a copy", e))?;
        }
        Ok(())
    }
}

impl Drop for PinnedPiece {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            let _ = self.wait();
            // SAFETY: no copy is under way, and both are given back once.
            unsafe {
                let _ = result::free_host(self.memory.cast());
                let _ = result::event::destroy(self.event);
            }
        }
    }
}

/// From a capture on this stream to a graph that can be launched.
pub fn end_capture(stream: &CudaStream) -> Result<GraphId, DeviceError> {
    // SAFETY: the stream is alive; a capture that was spoiled ends with an error.
    let graph = unsafe { result::stream::end_capture(stream.cu_stream()) }.map_err(|e| error("capture", e))?;
    if graph.is_null() {
        return Err(DeviceError::Failed("the capture gave no graph".into()));
    }
    // SAFETY: just made; what is launched keeps nothing of it.
    unsafe {
        let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
        let _ = result::graph::destroy(graph);
        made.map(|graph| graph as GraphId).map_err(|e| error("graph", e))
    }
}

/// # Safety
/// One of [`end_capture`], not yet freed, of which no launch is under way when its memory is given back.
pub unsafe fn free_graph(graph: GraphId) {
    // SAFETY: the caller's promise. A lost context takes its graphs with it, so nothing can be done then.
    let _ = unsafe { result::graph::exec_destroy(graph as sys::CUgraphExec) };
}
