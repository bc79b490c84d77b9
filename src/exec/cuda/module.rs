//! The kernels as machine code: those that were built beforehand, one archive for each chip, and chips' names.
//!
//! `scripts/check-kernels.sh prebuilt` makes the archives and `kernels/prebuilt/MANIFEST`; CI compares both with the sources.

use std::io::Read;

use crate::model::ops::DeviceError;

/// A chip's compute capability, and the archive (tar, zstd) of what was built for it.
struct Archive {
    capability: (i32, i32),
    /// Whether it runs on this chip only: the code uses what later ones need not have.
    is_exact: bool,
    name: &'static str,
    bytes: &'static [u8],
}

macro_rules! archives {
    ($($major:literal, $minor:literal, $is_exact:literal, $name:literal;)*) => {
        [$(Archive {
            capability: ($major, $minor),
            is_exact: $is_exact,
            name: $name,
            bytes: include_bytes!(concat!("../../../kernels/prebuilt/", $name, ".tar.zst")),
        }),*]
    };
}

static ARCHIVES: [Archive; 6] = archives! {
    8, 0, false, "sm_80";
    8, 6, false, "sm_86";
    8, 9, false, "sm_89";
    9, 0, true, "sm_90a";
    10, 0, true, "sm_100a";
    12, 0, false, "sm_120";
};

/// What the kernels are written for.
pub const OLDEST: (i32, i32) = (8, 0);

/// More than any archive holds, unpacked.
const MAX_BYTES: u64 = 64 << 20;

/// Kernels of one source file.
pub struct Cubin {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The kernels for a chip of this compute capability.
pub fn prebuilt(capability: (i32, i32)) -> Result<Vec<Cubin>, DeviceError> {
    unpack(archive(capability)?.bytes)
        .map_err(|e| DeviceError::Lost(format!("the kernels in this program are damaged: {e}")))
}

/// The chip that its kernels are built for, as `sm_90a`, and whether they are in the program.
pub fn name(capability: (i32, i32)) -> (String, bool) {
    match archive(capability) {
        Ok(archive) => (archive.name.to_owned(), true),
        Err(_) => (chips(capability)[0].clone(), false),
    }
}

/// Names of what runs on a chip of this capability, as compilers call it; the first is what to compile for.
pub fn chips((major, minor): (i32, i32)) -> Vec<String> {
    // From 9.0 on, some of what a chip can do is under a name for it alone (a), or for its family (f).
    let names: &[&str] = if major >= 9 { &["a", "f", ""] } else { &[""] };
    names.iter().map(|suffix| format!("sm_{major}{minor}{suffix}")).collect()
}

fn archive((major, minor): (i32, i32)) -> Result<&'static Archive, DeviceError> {
    // Code for a chip runs on later ones of its generation.
    let fits = |archive: &&Archive| {
        let (own_major, own_minor) = archive.capability;
        own_major == major && if archive.is_exact { own_minor == minor } else { own_minor <= minor }
    };
    ARCHIVES.iter().rfind(fits).ok_or_else(|| {
        let known = ARCHIVES.each_ref().map(|a| format!("{}.{}", a.capability.0, a.capability.1)).join(", ");
        DeviceError::Lost(format!(
            "this program has no kernels for compute capability {major}.{minor}, only for {known}"
        ))
    })
}

fn unpack(archive: &[u8]) -> std::io::Result<Vec<Cubin>> {
    let plain = ruzstd::decoding::StreamingDecoder::new(archive).map_err(std::io::Error::other)?;
    let mut tar = tar::Archive::new(plain.take(MAX_BYTES));
    tar.entries()?
        .map(|entry| {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            Ok(Cubin { name, bytes })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_archive_has_the_same_files_and_they_are_cubins() {
        let files = |archive: &Archive| -> BTreeSet<String> {
            let cubins = unpack(archive.bytes).unwrap();
            assert!(cubins.iter().all(|cubin| cubin.bytes.starts_with(b"\x7fELF")), "{:?}", archive.capability);
            cubins.into_iter().map(|cubin| cubin.name).collect()
        };
        let first = files(&ARCHIVES[0]);
        assert!(first.contains("attention_decode.cubin"), "{first:?}");
        assert!(ARCHIVES.iter().all(|archive| files(archive) == first));
    }

    #[test]
    fn chips_are_called_as_compilers_call_them() {
        assert_eq!(chips((8, 7)), ["sm_87"]);
        assert_eq!(chips((10, 3)), ["sm_103a", "sm_103f", "sm_103"]);
        assert_eq!((name((8, 7)), name((10, 3))), (("sm_86".to_owned(), true), ("sm_103a".to_owned(), false)));
    }

    #[test]
    fn a_chip_takes_the_newest_code_that_it_can_run() {
        let size = |capability| prebuilt(capability).map(|cubins| cubins.iter().map(|c| c.bytes.len()).sum::<usize>());
        let of = |index: usize| unpack(ARCHIVES[index].bytes).unwrap().iter().map(|c| c.bytes.len()).sum::<usize>();
        assert_eq!(size((8, 7)).unwrap(), of(1));
        assert_eq!(size((9, 0)).unwrap(), of(3));
        assert_eq!(size((12, 1)).unwrap(), of(5));
        for unknown in [(7, 5), (9, 1), (10, 3), (13, 0)] {
            let message = size(unknown).unwrap_err().to_string();
            assert!(message.contains(&format!("{}.{}", unknown.0, unknown.1)), "{message}");
        }
    }
}
