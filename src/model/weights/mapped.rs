//! A file as memory: the only place outside the executors where the compiler is told something it cannot check.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::Bytes;

struct Mapped(Mmap);

impl Bytes for Mapped {
    fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn release(&self, range: Range<usize>) {
        // Whole pages inside the range, so that neighbours stay.
        const PAGE: usize = 4096;
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        #[cfg(unix)]
        if start < end {
            // SAFETY: the map is private, read-only and of a file, so that the bytes read again are the file's.
            let _ = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}

/// Maps a model's file, read-only.
pub fn map(path: &Path) -> io::Result<Arc<dyn Bytes>> {
    let file = File::open(path)?;
    // SAFETY: the map is private and read-only. Its bytes are only ever read as plain numbers, so a writer changing the
    // file changes values, never types; truncating it under us raises SIGBUS, as for any program that maps its model.
    // Replacing it by a new file (a rename) is fine.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Arc::new(Mapped(map)))
}
