//! Where a GPU's kernels come from: a folder that was asked for, this program, what was compiled before, NVRTC.

use std::path::PathBuf;

use super::builds::Builds;
use super::compile::{Compiler, Progress};
use super::device::libraries::Places;
use super::module::{self, Cubin};
use crate::model::ops::DeviceError;

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct KernelOptions {
    pub libraries: Places,
    /// `engine.cuda_kernels`: comes before what the program has, and is added to.
    pub folder: Option<PathBuf>,
}

impl KernelOptions {
    /// The folder that is added to; `None` where there is nowhere to put anything.
    pub fn builds(&self) -> Option<Builds> {
        self.folder.as_ref().map(Builds::at).or_else(Builds::of_user)
    }

    /// The kernels for a chip of this compute capability, and where they come from.
    pub fn load(&self, capability: (i32, i32), progress: Progress) -> Result<(Vec<Cubin>, String), DeviceError> {
        let chips = module::chips(capability);
        let builds = self.builds();
        if self.folder.is_some()
            && let Some(build) = builds.as_ref().and_then(|builds| builds.find(&chips, None))
        {
            return Ok((build.cubins, format!("{} ({})", build.path.display(), build.compiler)));
        }
        let absent = match module::prebuilt(capability) {
            Ok(cubins) => return Ok((cubins, "the program".into())),
            Err(absent) => absent,
        };
        let compiler = Compiler::nvrtc(&self.libraries);
        let about = compiler.as_ref().ok().map(Compiler::about);
        if let Some(build) = builds.as_ref().and_then(|builds| builds.find(&chips, about.as_deref())) {
            return Ok((build.cubins, format!("{} ({})", build.path.display(), build.compiler)));
        }
        let compiler = compiler.map_err(|reason| {
            DeviceError::Lost(format!("{absent}; NVRTC would compile them: {reason}; or set engine.device=cpu"))
        })?;
        let (chip, about) = (&chips[0], compiler.about());
        tracing::info!("compiling kernels for {chip} with {about}, which takes up to a minute, once");
        let cubins =
            compiler.build(chip, progress).map_err(|reason| DeviceError::Lost(format!("{absent}; {reason}")))?;
        match builds.map(|builds| builds.put(chip, &about, &cubins)) {
            Some(Ok(path)) => tracing::info!("compiled kernels are kept in {}", path.display()),
            Some(Err(error)) => tracing::warn!("compiled kernels cannot be kept, so each start compiles them: {error}"),
            None => tracing::warn!("compiled kernels cannot be kept: neither XDG_CACHE_HOME nor HOME is set"),
        }
        Ok((cubins, about))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::exec::cuda::sources::Source;

    /// NVRTC's wheel where the script has put it; said aloud where it is not.
    fn nvrtc() -> Option<Places> {
        let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvrtc-venv");
        let pythons = std::fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
        let folder = pythons.map(|p| p.path().join("site-packages/nvidia/cu13/lib")).find(|folder| folder.is_dir());
        if folder.is_none() {
            eprintln!("skipped: {} is missing: run scripts/check-kernels.sh nvrtc", venv.display());
        }
        Some(Places::new(folder?.to_str()))
    }

    /// The kernels' names, as their sections are called.
    fn kernels(cubins: &[Cubin]) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for cubin in cubins {
            assert!(cubin.bytes.starts_with(b"\x7fELF"), "{}", cubin.name);
            for text in cubin.bytes.split(|byte| *byte == 0) {
                let name = std::str::from_utf8(text).ok().and_then(|text| text.strip_prefix(".text."));
                names.extend(
                    name.filter(|name| name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())).map(String::from),
                );
            }
        }
        names
    }

    #[test]
    fn nvrtc_makes_all_kernels_for_a_new_chip_once() {
        let Some(libraries) = nvrtc() else { return };
        let cache = tempfile::tempdir().unwrap();
        let options = KernelOptions { libraries, folder: Some(cache.path().to_owned()) };
        let mut shown = Vec::new();
        let (cubins, origin) = options.load((10, 3), &mut |done, total| shown.push((done, total))).unwrap();
        assert_eq!(kernels(&cubins), kernels(&module::prebuilt((8, 0)).unwrap()));
        assert!(origin.starts_with("NVRTC 1"), "{origin}");
        assert!(shown.is_sorted() && shown.last().is_some_and(|(done, total)| done == total), "{shown:?}");

        let (again, origin) = options.load((10, 3), &mut |_, _| panic!("it is compiled again")).unwrap();
        assert!(again.iter().zip(&cubins).all(|(a, b)| a.name == b.name && a.bytes == b.bytes));
        assert!(origin.starts_with(cache.path().to_str().unwrap()), "{origin}");
        // Without NVRTC too.
        let without = KernelOptions { libraries: Places::default(), ..options };
        assert_eq!(without.load((10, 3), &mut |_, _| ()).unwrap().0.len(), cubins.len());
    }

    #[test]
    fn nvrtc_says_what_is_wrong() {
        let Some(libraries) = nvrtc() else { return };
        let compiler = Compiler::nvrtc(&libraries).unwrap();
        let error = compiler.build("sm_999", &mut |_, _| ()).err().unwrap();
        assert!(error.contains("for sm_999: NVRTC") && error.contains("--gpu-architecture"), "{error}");
        let Compiler::Nvrtc(nvrtc) = compiler else { panic!("asked for NVRTC") };
        let source = Source { name: "wrong.cu", text: "#include \"dev.h\"\n__global__ void k() { nothing(); }\n" };
        let header = Source { name: "dev.h", text: "\n" };
        let error = nvrtc.compile(&source, &[header], &["--gpu-architecture=sm_80".into()]).unwrap_err();
        assert!(error.contains("wrong.cu(2)") && error.contains("nothing"), "{error}");
    }

    #[test]
    fn a_chip_without_kernels_or_compiler_is_told_what_to_install() {
        let cache = tempfile::tempdir().unwrap();
        let options = KernelOptions { libraries: Places::default(), folder: Some(cache.path().to_owned()) };
        match options.load((10, 3), &mut |_, _| ()) {
            Err(error) => {
                let message = error.to_string();
                for part in ["compute capability 10.3", "nvidia-cuda-nvrtc==13.0.88", "engine.device=cpu"] {
                    assert!(message.contains(part), "{message}");
                }
            }
            // Where the machine has a toolkit.
            Ok((_, origin)) => assert!(origin.starts_with("NVRTC"), "{origin}"),
        }
    }

    #[test]
    fn the_folder_comes_before_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let options = KernelOptions { libraries: Places::default(), folder: Some(folder.path().to_owned()) };
        assert_eq!(options.load((9, 0), &mut |_, _| ()).unwrap().1, "the program");
        let own = module::prebuilt((8, 0)).unwrap();
        options.builds().unwrap().put("sm_90", "nvcc 99", &own).unwrap();
        let (cubins, origin) = options.load((9, 0), &mut |_, _| ()).unwrap();
        assert!(origin.ends_with("(nvcc 99)"), "{origin}");
        assert!(cubins.iter().zip(&own).all(|(a, b)| a.bytes == b.bytes));
    }
}
