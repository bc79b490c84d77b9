//! CUDA's libraries, which are looked for at run time: cuBLASLt, NVRTC, NCCL.
//!
//! Owns the order in which places are searched, and every library once opened. Invariants: what is absent is a value that
//! says what was looked for and what to do; a library is never closed, since CUDA's leave threads and exit handlers behind,
//! so its functions stand until the process ends. Functions are taken from the very file that was found: the driver's
//! crate looks for bare names only, and panics where one is missing.

use std::collections::HashMap;
use std::ffi::{OsString, c_int};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use libloading::Library;

use super::{Nvrtc, cublaslt};

/// Folders with a library's wheel that are gone through at most, in one `site-packages`.
const MAX_WHEELS: usize = 64;

static OPEN: LazyLock<Mutex<HashMap<PathBuf, &'static Library>>> = LazyLock::new(Mutex::default);

/// A struct of a C library's functions, by name, and its `load`, which says which one is missing.
macro_rules! c_functions {
    ($(#[$note:meta])* struct $functions:ident { $($name:ident = $symbol:literal: fn($($arg:ty),*) $(-> $out:ty)?;)* }) => {
        $(#[$note])*
        struct $functions {
            $($name: unsafe extern "C" fn($($arg),*) $(-> $out)?,)*
        }

        impl $functions {
            /// # Safety
            /// The library's functions of these names have these types.
            unsafe fn load(opened: &$crate::exec::cuda::device::libraries::Opened) -> Result<$functions, String> {
                // SAFETY: the caller's promise; the library stays open for good.
                unsafe {
                    Ok($functions {
                        $($name: *opened
                            .library
                            .get::<unsafe extern "C" fn($($arg),*) $(-> $out)?>(concat!($symbol, "\0").as_bytes())
                            .map_err(|_| concat!("it has no function ", $symbol).to_owned())?,)*
                    })
                }
            }
        }
    };
}
pub(in crate::exec::cuda::device) use c_functions;

c_functions! {
    struct NcclVersion {
        get = "ncclGetVersion": fn(*mut c_int) -> c_int;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    CublasLt,
    Nvrtc,
    Nccl,
}

impl Wanted {
    pub const ALL: [Wanted; 3] = [Wanted::CublasLt, Wanted::Nvrtc, Wanted::Nccl];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Wanted::CublasLt => "cuBLASLt",
            Wanted::Nvrtc => "NVRTC",
            Wanted::Nccl => "NCCL",
        }
    }

    /// What it is for, and what runs without it.
    pub fn purpose(self) -> &'static str {
        match self {
            Wanted::CublasLt => "matrix products; without it, own kernels",
            Wanted::Nvrtc => "kernels for GPUs that this program has none for",
            Wanted::Nccl => "sums between GPUs",
        }
    }

    /// File names, best first.
    fn files(self) -> &'static [&'static str] {
        match self {
            Wanted::CublasLt => &["libcublasLt.so.13", "libcublasLt.so.12"],
            Wanted::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12"],
            Wanted::Nccl => &["libnccl.so.2"],
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Wanted::CublasLt => "pip install nvidia-cublas==13.0.2.14",
            Wanted::Nvrtc => "pip install nvidia-cuda-nvrtc==13.0.88",
            Wanted::Nccl => "pip install nvidia-nccl-cu13",
        }
    }
}

/// An open library.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The file, or a bare name where the system's loader found it.
    pub path: PathBuf,
    pub(in crate::exec::cuda::device) library: &'static Library,
}

impl Opened {
    /// As `13.0.2`. Needs no GPU.
    pub fn version(&self, wanted: Wanted) -> Result<String, String> {
        match wanted {
            Wanted::CublasLt => cublaslt::version(self),
            Wanted::Nvrtc => Nvrtc::open(self).map(|nvrtc| nvrtc.about().trim_start_matches("NVRTC ").to_owned()),
            Wanted::Nccl => {
                // SAFETY: the type is that of nccl.h.
                let functions = unsafe { NcclVersion::load(self)? };
                let mut version = 0;
                // SAFETY: a place for an int.
                match unsafe { (functions.get)(&mut version) } {
                    0 => Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)),
                    status => Err(format!("ncclGetVersion: status {status}")),
                }
            }
        }
    }
}

/// Why a library cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error(
        "{file} was found neither in {folders} folder(s) nor by the system's loader: {remedy} (and set VIRTUAL_ENV to \
         where pip put it), or name its folder in engine.cuda_libraries"
    )]
    NotFound { file: &'static str, folders: usize, remedy: &'static str },
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
}

/// Folders that may hold the libraries, best first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places(Vec<PathBuf>);

impl Places {
    /// Those of `engine.cuda_libraries` (folders, separated as in PATH), of CUDA_HOME and CUDA_PATH, of the Python packages in
    /// VIRTUAL_ENV and CONDA_PREFIX, and where a toolkit is installed.
    pub fn new(configured: Option<&str>) -> Places {
        Places::of(configured, |name| std::env::var_os(name))
    }

    fn of(configured: Option<&str>, variable: impl Fn(&str) -> Option<OsString>) -> Places {
        let mut folders: Vec<PathBuf> =
            configured.map(|text| std::env::split_paths(text).collect()).unwrap_or_default();
        let root = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        for toolkit in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(root) {
            folders.extend([toolkit.join("lib64"), toolkit.join("lib")]);
        }
        for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(root) {
            folders.extend(wheels(&environment));
            folders.push(environment.join("lib"));
        }
        folders.push("/usr/local/cuda/lib64".into());
        Places(folders)
    }

    /// Opens a library of the first place that has it; where none has, the system's loader is asked for its name.
    pub fn open(&self, wanted: Wanted) -> Result<Opened, Missing> {
        let files = wanted.files();
        let mut obstacle = None;
        for (folder, file) in self.0.iter().flat_map(|folder| files.iter().map(move |file| (folder, file))) {
            let path = folder.join(file);
            if !path.is_file() {
                continue;
            }
            if wanted == Wanted::Nvrtc {
                open_builtins(folder);
            }
            match keep(&path) {
                Ok(library) => return Ok(Opened { path, library }),
                // The first says more than those further away.
                Err(reason) => obstacle = obstacle.or(Some(Missing::Unusable { path, reason })),
            }
        }
        for file in files {
            if let Ok(library) = keep(Path::new(file)) {
                return Ok(Opened { path: file.into(), library });
            }
        }
        Err(obstacle.unwrap_or(Missing::NotFound { file: files[0], folders: self.0.len(), remedy: wanted.remedy() }))
    }
}

/// The library folders of NVIDIA's Python packages: `lib/python3.x/site-packages/nvidia/*/lib`, or Debian's `dist-packages`.
fn wheels(environment: &Path) -> Vec<PathBuf> {
    let inside = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.take(MAX_WHEELS).map(|entry| entry.path()).collect();
        // cu13 before nccl; and always the same order.
        paths.sort();
        paths
    };
    let is_python = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
    let pythons = inside(&environment.join("lib")).into_iter().filter(is_python);
    let roots =
        pythons.flat_map(|python| ["site-packages/nvidia", "dist-packages/nvidia"].map(|place| python.join(place)));
    let packages = roots.flat_map(|root| inside(&root));
    packages.map(|package| package.join("lib")).filter(|folder| folder.is_dir()).collect()
}

/// NVRTC asks for these by name and does not look beside itself; the loader then answers with what is open.
fn open_builtins(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so.") {
            // Without them NVRTC says itself what is missing.
            let _ = keep(&entry.path());
        }
    }
}

/// Opens a file, or what the loader finds by this name, for good.
fn keep(path: &Path) -> Result<&'static Library, String> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = open.get(path) {
        return Ok(library);
    }
    // SAFETY: it runs the library's own start: one of NVIDIA's, from where the environment or the user says.
    let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
    let library: &'static Library = Box::leak(Box::new(library));
    open.insert(path.to_owned(), library);
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &Path)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| variables.iter().find(|(n, _)| *n == name).map(|(_, path)| path.as_os_str().to_owned())
    }

    fn wheel(environment: &Path, python: &str, package: &str) -> PathBuf {
        let folder = environment.join(format!("lib/{python}/site-packages/nvidia/{package}/lib"));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_configured_comes_first_then_toolkits_then_packages_then_the_usual_folder() {
        let root = tempfile::tempdir().unwrap();
        let (home, venv, conda) = (root.path().join("cuda"), root.path().join("venv"), root.path().join("conda"));
        let nccl = wheel(&venv, "python3.12", "nccl");
        let cu13 = wheel(&venv, "python3.12", "cu13");
        let cublas = wheel(&conda, "python3.9", "cublas");
        let debian = conda.join("lib/python3.9/dist-packages/nvidia/cu13/lib");
        fs::create_dir_all(&debian).unwrap();
        // Headers only, and another language's packages.
        fs::create_dir_all(venv.join("lib/python3.12/site-packages/nvidia/headers")).unwrap();
        wheel(&venv, "perl5", "cu13");
        let variables = [("CUDA_HOME", home.as_path()), ("VIRTUAL_ENV", &venv), ("CONDA_PREFIX", &conda)];
        let found = Places::of(Some("/a:/b"), environment(&variables));
        let toolkit = [home.join("lib64"), home.join("lib")];
        let packages = [cu13, nccl, venv.join("lib"), cublas, debian, conda.join("lib")];
        let mut expected: Vec<PathBuf> = vec!["/a".into(), "/b".into()];
        expected.extend(toolkit.into_iter().chain(packages).chain(["/usr/local/cuda/lib64".into()]));
        assert_eq!(found, Places(expected));
    }

    #[test]
    fn an_empty_variable_is_none() {
        let empty = |_: &str| Some(OsString::new());
        assert_eq!(Places::of(None, empty), Places(vec!["/usr/local/cuda/lib64".into()]));
    }

    #[test]
    fn a_file_that_is_no_library_is_named_and_the_next_place_is_tried() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("libnccl.so.2");
        fs::write(&path, "no library").unwrap();
        let places = Places(vec![root.path().join("nothing"), root.path().to_owned()]);
        match places.open(Wanted::Nccl) {
            Err(Missing::Unusable { path: named, reason }) => {
                assert_eq!(named, path);
                assert!(!reason.is_empty());
            }
            // Where the machine has NCCL, the loader finds it.
            Ok(opened) => assert_eq!(opened.path, Path::new("libnccl.so.2")),
            Err(missing) => panic!("{missing}"),
        }
    }

    #[test]
    fn what_is_nowhere_is_said_with_what_to_install() {
        let message =
            Missing::NotFound { file: "libnvrtc.so.13", folders: 3, remedy: Wanted::Nvrtc.remedy() }.to_string();
        assert!(message.contains("libnvrtc.so.13") && message.contains("nvidia-cuda-nvrtc==13.0.88"), "{message}");
    }
}
