//! Memory as the kernels want it: aligned, zeroed by the system, shared between threads by disjoint pieces.

use std::marker::PhantomData;

// The allocator of the program, for the one of its functions that is called below.
use libmimalloc_sys as _;
use memmap2::MmapMut;

/// Zeroed bytes in pages of their own: of what nobody has written yet, none is in memory. (An allocator writes a header in
/// front of what it hands out, and with large pages that is 2 MiB for each region of a KV cache.) Large pages where the
/// system has them, because a stream over small ones is held up at the end of each.
pub struct Pages(MmapMut);

/// From here on large pages pay.
#[cfg(target_os = "linux")]
const MIN_HUGE_BYTES: usize = 4 << 20;

impl Pages {
    /// Panics where the system has no memory left, as every failed allocation ends the process.
    pub fn new(len: usize) -> Pages {
        let pages = MmapMut::map_anon(len.max(1)).unwrap_or_else(|e| panic!("no memory for {len} bytes: {e}"));
        #[cfg(target_os = "linux")]
        if len >= MIN_HUGE_BYTES {
            // Where the system has none, small ones do.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        Pages(pages)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

unsafe extern "C" {
    fn mi_collect(force: bool);
}

/// Gives what the allocator has free back to the system. It does so by itself, but a second after, and only where something
/// is allocated then: what reading a tokenizer took would stand beside the weights.
pub fn give_back_free() {
    // SAFETY: may be called by any thread at any time, also where another allocator serves the program.
    unsafe { mi_collect(true) }
}

/// Scratch float32 values, aligned; grows and is kept.
#[derive(Default)]
pub struct Scratch {
    bytes: Option<Pages>,
}

impl Scratch {
    /// `len` values of unspecified (but initialised) content.
    pub fn get(&mut self, len: usize) -> &mut [f32] {
        let wanted = len.checked_mul(4).expect("a step's activations fit the address space");
        if self.bytes.as_ref().is_none_or(|b| b.len() < wanted) {
            // Freed first, so that both are never there at once.
            self.bytes = None;
            self.bytes = Some(Pages::new(wanted.next_power_of_two()));
        }
        let Some(bytes) = &mut self.bytes else { return &mut [] };
        // SAFETY: aligned to a page, at least `wanted` bytes long, and any bits are an f32.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) }
    }
}

/// A mutable slice handed to several threads, each of which writes its own elements.
#[derive(Clone, Copy)]
pub struct Shared<'a, T> {
    ptr: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: `slice` and `ptr` put the duty of disjointness on their callers.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Shared { ptr: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// The elements `start..start + len`; panics outside the slice.
    ///
    /// # Safety
    /// No other thread reads or writes them meanwhile.
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the slice; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }

    /// For kernels that write single elements; they stay below `len`.
    pub fn ptr(&self) -> *mut T {
        self.ptr
    }
}
