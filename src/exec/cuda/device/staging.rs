//! Copies between the host and a device through pieces of pinned memory, which the device reads and writes by itself.
//!
//! Owns a ring of pieces, made when they are first needed. Invariant: a piece is not touched while a copy from or to it is
//! under way; the emulator's pieces find out who breaks this.

use std::collections::VecDeque;

use super::Address;
use crate::model::ops::DeviceError;

/// Of a piece: long enough that a copy's start costs nothing beside it.
pub const PIECE_BYTES: usize = 4 << 20;
/// While one is filled, others are on their way.
const NUM_PIECES: usize = 4;

/// [`PIECE_BYTES`] of pinned memory.
pub trait Piece: Send {
    /// Start of its memory.
    fn memory(&self) -> *mut u8;
    /// Starts to copy its first bytes to the device, after all that was asked for before.
    ///
    /// # Safety
    /// No copy of this piece is under way; `to` is followed by that many bytes of one allocation.
    unsafe fn start_upload(&mut self, to: Address, bytes: usize) -> Result<(), DeviceError>;
    /// Starts to copy from the device to its first bytes, after all that was asked for before.
    ///
    /// # Safety
    /// As for [`Piece::start_upload`].
    unsafe fn start_download(&mut self, from: Address, bytes: usize) -> Result<(), DeviceError>;
    /// Waits until the copy that was started last is done.
    fn wait(&mut self) -> Result<(), DeviceError>;
}

/// The ring: the piece that was used longest ago is next.
pub struct Staging<P> {
    pieces: Vec<P>,
    next: usize,
}

impl<P> Default for Staging<P> {
    fn default() -> Self {
        Staging { pieces: Vec::new(), next: 0 }
    }
}

impl<P: Piece> Staging<P> {
    /// The next piece, of which no copy is under way.
    fn take(&mut self, new: &impl Fn() -> Result<P, DeviceError>) -> Result<usize, DeviceError> {
        let index = self.next;
        if index == self.pieces.len() {
            self.pieces.push(new()?);
        }
        self.pieces[index].wait()?;
        self.next = (index + 1) % NUM_PIECES;
        Ok(index)
    }

    /// Copies to the device; does not wait for more than a piece to be free. `from` may change afterwards.
    ///
    /// # Safety
    /// `to` is followed by that many bytes of one allocation.
    pub unsafe fn upload(
        &mut self,
        new: impl Fn() -> Result<P, DeviceError>,
        to: Address,
        from: &[u8],
    ) -> Result<(), DeviceError> {
        for (i, part) in from.chunks(PIECE_BYTES).enumerate() {
            let index = self.take(&new)?;
            let piece = &mut self.pieces[index];
            // SAFETY: a piece holds as much, and nobody else uses it; the rest is the caller's promise.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), piece.memory(), part.len());
                piece.start_upload(to + (i * PIECE_BYTES) as u64, part.len())?;
            }
        }
        Ok(())
    }

    /// Copies from the device, when all that was asked for before is done.
    ///
    /// # Safety
    /// `from` is followed by that many bytes of one allocation.
    pub unsafe fn download(
        &mut self,
        new: impl Fn() -> Result<P, DeviceError>,
        to: &mut [u8],
        from: Address,
    ) -> Result<(), DeviceError> {
        let mut started = VecDeque::with_capacity(NUM_PIECES);
        let arrive = |pieces: &mut [P], (index, part): (usize, &mut [u8])| {
            let piece: &mut P = &mut pieces[index];
            piece.wait()?;
            // SAFETY: a piece holds as much, and its copy is done.
            unsafe { std::ptr::copy_nonoverlapping(piece.memory(), part.as_mut_ptr(), part.len()) };
            Ok(())
        };
        for (i, part) in to.chunks_mut(PIECE_BYTES).enumerate() {
            if started.len() == NUM_PIECES
                && let Some(oldest) = started.pop_front()
            {
                arrive(&mut self.pieces, oldest)?;
            }
            let index = self.take(&new)?;
            // SAFETY: nobody else uses the piece; the rest is the caller's promise.
            unsafe { self.pieces[index].start_download(from + (i * PIECE_BYTES) as u64, part.len())? };
            started.push_back((index, part));
        }
        started.into_iter().try_for_each(|oldest| arrive(&mut self.pieces, oldest))
    }
}
