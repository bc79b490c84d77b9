//! Memory as the kernels want it: aligned, zeroed by the system, shared between threads by disjoint pieces.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;

use memmap2::MmapMut;

/// A cache line and the widest vector.
const ALIGNMENT: usize = 64;

/// Zeroed bytes at a cache line's start. Fresh pages come from the system as they are first written.
pub struct ZeroedBytes {
    base: *mut u8,
    layout: Layout,
    /// From `base` to the first aligned byte.
    offset: usize,
    len: usize,
}

// SAFETY: owned plain memory; shared access through `&self` only reads.
unsafe impl Send for ZeroedBytes {}
// SAFETY: as above.
unsafe impl Sync for ZeroedBytes {}

impl ZeroedBytes {
    /// Aborts as every failed allocation does; panics where `len` is no possible size.
    pub fn new(len: usize) -> ZeroedBytes {
        // Asked for with a small alignment: for larger ones the system allocator writes the zeros itself, and
        // all of the KV cache would be resident from the start.
        let layout = len
            .checked_add(ALIGNMENT)
            .and_then(|size| Layout::from_size_align(size, 16).ok())
            .unwrap_or_else(|| panic!("{len} bytes are more than the address space holds"));
        // SAFETY: the size is at least ALIGNMENT, so not zero.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        ZeroedBytes { base, layout, offset: base.align_offset(ALIGNMENT), len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_ptr(&self) -> *const u8 {
        // SAFETY: `offset < ALIGNMENT` lies inside the allocation.
        unsafe { self.base.add(self.offset) }
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.as_ptr().cast_mut()
    }
}

impl Drop for ZeroedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base, self.layout) }
    }
}

/// Scratch float32 values, aligned; grows and is kept.
#[derive(Default)]
pub struct Scratch {
    bytes: Option<ZeroedBytes>,
}

impl Scratch {
    /// `len` values of unspecified (but initialised) content.
    pub fn get(&mut self, len: usize) -> &mut [f32] {
        let wanted = len.checked_mul(4).expect("a step's activations fit the address space");
        if self.bytes.as_ref().is_none_or(|b| b.len() < wanted) {
            // Freed first, so that both are never there at once.
            self.bytes = None;
            self.bytes = Some(ZeroedBytes::new(wanted.next_power_of_two()));
        }
        let Some(bytes) = &mut self.bytes else { return &mut [] };
        // SAFETY: aligned to 64, at least `wanted` bytes long, and any bits are an f32.
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

/// Zeroed bytes for weights: pages of their own, large ones where the system has them, because a stream over small pages
/// is held up at the end of each.
pub struct Pages(MmapMut);

/// From here on large pages pay.
#[cfg(target_os = "linux")]
const MIN_HUGE_BYTES: usize = 4 << 20;

impl Pages {
    /// Panics where the system has no memory left, as every failed allocation ends the process.
    pub fn new(len: usize) -> Pages {
        let pages =
            MmapMut::map_anon(len.max(1)).unwrap_or_else(|e| panic!("no memory for {len} bytes of weights: {e}"));
        #[cfg(target_os = "linux")]
        if len >= MIN_HUGE_BYTES {
            // Where the system has none, small ones do.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        Pages(pages)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
