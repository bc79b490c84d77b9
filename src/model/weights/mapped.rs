//! A file as memory: the only place outside the executors where the compiler is told something it cannot check.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::Bytes;

struct Mapped(Mmap);

impl Bytes for Mapped {
    fn as_bytes(&self) -> &[u8] {
        &self.0
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
