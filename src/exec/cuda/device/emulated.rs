//! What the emulator has in place of pinned memory and graphs: copies that are made as late as they may be, and launches
//! written down.
//!
//! Invariant: whoever touches a piece of pinned memory before its copy is done, or launches a graph whose memory was given
//! back, gets an error, where a GPU would compute with wrong bytes.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use super::staging::{PIECE_BYTES, Piece};
use super::{Address, GraphId, Product, Shape};
use crate::model::ops::DeviceError;

/// A copy that was asked for.
struct Copy {
    host: Address,
    device: Address,
    bytes: usize,
    /// Of what the host's memory held then, where that is copied.
    uploads: Option<u64>,
}

/// Copies that are under way, in their order.
#[derive(Default)]
pub struct Copies(Mutex<Vec<Copy>>);

impl Copies {
    /// Makes them all.
    pub fn complete(&self) -> Result<(), DeviceError> {
        let copies = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for Copy { host, device, bytes, uploads } in copies {
            // SAFETY: who asked for the copy promised that the device's memory is there; a piece outlives its copies.
            unsafe {
                match uploads {
                    Some(before) if before != hash(host, bytes) => {
                        let message = "pinned memory was written to before its copy was done";
                        return Err(DeviceError::Failed(message.into()));
                    }
                    Some(_) => std::ptr::copy_nonoverlapping(host as *const u8, device as *mut u8, bytes),
                    None => std::ptr::copy_nonoverlapping(device as *const u8, host as *mut u8, bytes),
                }
            }
        }
        Ok(())
    }

    fn push(&self, copy: Copy) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
    }
}

/// # Safety
/// `at` is followed by that many bytes.
unsafe fn hash(at: Address, bytes: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    // SAFETY: the caller's promise.
    hasher.write(unsafe { std::slice::from_raw_parts(at as *const u8, bytes) });
    hasher.finish()
}

/// Memory of the host, which is written and read when a copy can be put off no longer.
pub struct EmulatedPiece {
    memory: *mut [u8],
    copies: Arc<Copies>,
}

// SAFETY: it owns its memory.
unsafe impl Send for EmulatedPiece {}

impl EmulatedPiece {
    pub fn new(copies: &Arc<Copies>) -> EmulatedPiece {
        let memory = vec![0u8; PIECE_BYTES].into_boxed_slice();
        EmulatedPiece { memory: Box::into_raw(memory), copies: copies.clone() }
    }
}

impl Piece for EmulatedPiece {
    fn memory(&self) -> *mut u8 {
        self.memory.cast()
    }

    unsafe fn start_upload(&mut self, to: Address, bytes: usize) -> Result<(), DeviceError> {
        let host = self.memory() as Address;
        // SAFETY: a piece has as many.
        let uploads = Some(unsafe { hash(host, bytes) });
        self.copies.push(Copy { host, device: to, bytes, uploads });
        Ok(())
    }

    unsafe fn start_download(&mut self, from: Address, bytes: usize) -> Result<(), DeviceError> {
        self.copies.push(Copy { host: self.memory() as Address, device: from, bytes, uploads: None });
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.copies.complete()
    }
}

impl Drop for EmulatedPiece {
    fn drop(&mut self) {
        // Copies to device memory that is gone by now would be made too late: who frees that makes them before.
        let _ = self.copies.complete();
        // SAFETY: made of a box, and given back once.
        drop(unsafe { Box::from_raw(self.memory) });
    }
}

/// What a graph does, one after the other.
pub enum Work {
    /// A kernel with its parameters' values.
    Kernel { kernel: &'static str, shape: Shape, params: Vec<u64> },
    /// By a library.
    Product(Product),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Work::Kernel { kernel, .. } => kernel,
            Work::Product(_) => "a product",
        })
    }
}

pub struct Written {
    pub work: Work,
    /// Starts of the allocations that it uses.
    pub memory: Vec<Address>,
}

/// Graphs, and the capture that is under way.
#[derive(Default)]
pub struct Graphs {
    capture: Option<Capture>,
    kept: HashMap<GraphId, Arc<Vec<Written>>>,
    last: GraphId,
}

#[derive(Default)]
struct Capture {
    launches: Vec<Written>,
    is_spoiled: bool,
}

impl Graphs {
    pub fn begin(&mut self) -> Result<(), DeviceError> {
        if self.capture.replace(Capture::default()).is_some() {
            return Err(DeviceError::Failed("a capture in a capture".into()));
        }
        Ok(())
    }

    pub fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    pub fn write(&mut self, launch: Written) {
        if let Some(capture) = &mut self.capture {
            capture.launches.push(launch);
        }
    }

    /// An error where launches are being captured: what was asked for cannot be.
    pub fn refuse(&mut self, what: &str) -> Result<(), DeviceError> {
        match &mut self.capture {
            None => Ok(()),
            Some(capture) => {
                capture.is_spoiled = true;
                Err(DeviceError::Failed(format!("{what} while launches are captured")))
            }
        }
    }

    pub fn end(&mut self) -> Result<GraphId, DeviceError> {
        match self.capture.take() {
            None => Err(DeviceError::Failed("no capture has begun".into())),
            Some(Capture { is_spoiled: true, .. }) => Err(DeviceError::Failed("the capture was spoiled".into())),
            Some(Capture { launches, .. }) => {
                self.last += 1;
                self.kept.insert(self.last, Arc::new(launches));
                Ok(self.last)
            }
        }
    }

    pub fn get(&self, graph: GraphId) -> Option<Arc<Vec<Written>>> {
        self.kept.get(&graph).cloned()
    }

    pub fn free(&mut self, graph: GraphId) {
        self.kept.remove(&graph).expect("a graph of this device, given back once");
    }
}
