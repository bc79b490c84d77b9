//! Machine code made of the sources that the program carries, by NVRTC or by a toolkit's nvcc.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::device::Nvrtc;
use super::device::libraries::{Places, Wanted};
use super::module::Cubin;
use super::sources::{HEADERS, KERNELS, Source};

/// Files that are compiled at once, at most.
const MAX_THREADS: usize = 8;
const STANDARD: &str = "-std=c++17";

/// Told how much is done, and of how much, in characters of source.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

pub enum Compiler {
    Nvrtc(Nvrtc),
    Nvcc { program: PathBuf, version: String },
}

impl Compiler {
    /// The first NVRTC of these places.
    pub fn nvrtc(places: &Places) -> Result<Compiler, String> {
        let opened = places.open(Wanted::Nvrtc).map_err(|e| e.to_string())?;
        let nvrtc = Nvrtc::open(&opened).map_err(|e| format!("{} cannot be used: {e}", opened.path.display()))?;
        Ok(Compiler::Nvrtc(nvrtc))
    }

    /// nvcc, which needs a C++ compiler beside it.
    pub fn nvcc(program: &Path) -> Result<Compiler, String> {
        let said = run(Command::new(program).arg("--version"))?;
        let version = said.lines().rev().find_map(|line| line.split("release ").nth(1)).unwrap_or("of unknown version");
        Ok(Compiler::Nvcc { program: program.to_owned(), version: version.trim().to_owned() })
    }

    /// As `NVRTC 13.0 -std=c++17`: whatever changes the outcome.
    pub fn about(&self) -> String {
        match self {
            Compiler::Nvrtc(nvrtc) => format!("{} {STANDARD}", nvrtc.about()),
            Compiler::Nvcc { version, .. } => format!("nvcc {version} {STANDARD} -O3"),
        }
    }

    /// All kernels for a chip, as `sm_103a`; the first error ends it.
    pub fn build(&self, chip: &str, progress: Progress) -> Result<Vec<Cubin>, String> {
        let folder = Unpacked::new(self)?;
        let total: u64 = KERNELS.iter().map(|source| source.text.len() as u64).sum();
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let (next, (sender, outcomes)) = (AtomicUsize::new(0), mpsc::channel());
        progress(0, total);
        thread::scope(|scope| {
            for _ in 0..threads.min(KERNELS.len()) {
                let (sender, next, folder) = (sender.clone(), &next, &folder);
                scope.spawn(move || {
                    while let Some(source) = KERNELS.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = self.compile(source, chip, folder);
                        if outcome.is_err() {
                            next.store(KERNELS.len(), Ordering::Relaxed);
                        }
                        // Nobody listens any more after another's error.
                        let _ = sender.send((source, outcome));
                    }
                });
            }
            drop(sender);
            let (mut cubins, mut done) = (Vec::new(), 0);
            for (source, outcome) in outcomes {
                let bytes = outcome.map_err(|e| format!("{} for {chip}: {e}", source.name))?;
                cubins.push(Cubin { name: source.name.replace(".cu", ".cubin"), bytes });
                done += source.text.len() as u64;
                progress(done, total);
            }
            cubins.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(cubins)
        })
    }

    fn compile(&self, source: &Source, chip: &str, folder: &Unpacked) -> Result<Vec<u8>, String> {
        match self {
            Compiler::Nvrtc(nvrtc) => nvrtc.compile(
                source,
                HEADERS,
                &[format!("--gpu-architecture={chip}"), STANDARD.replace("-std", "--std")],
            ),
            Compiler::Nvcc { program, .. } => {
                let out = folder.0.join(source.name).with_extension("cubin");
                let number = chip.trim_start_matches("sm_");
                let target = format!("-gencode=arch=compute_{number},code=sm_{number}");
                let mut command = Command::new(program);
                command.args([STANDARD, "-O3", "-cubin", &target, "-o"]).arg(&out).arg(folder.0.join(source.name));
                run(&mut command)?;
                std::fs::read(&out).map_err(|e| format!("{}: {e}", out.display()))
            }
        }
    }
}

/// The sources in a folder of their own, for nvcc; empty for NVRTC. Removed in the end.
struct Unpacked(PathBuf);

impl Unpacked {
    fn new(compiler: &Compiler) -> Result<Unpacked, String> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let Compiler::Nvcc { .. } = compiler else { return Ok(Unpacked(PathBuf::new())) };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("garrick-kernels-{}-{number}", std::process::id()));
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        // Nobody else's folder: an existing one is refused.
        std::fs::create_dir(&path).map_err(failed)?;
        let folder = Unpacked(path.clone());
        for source in KERNELS.iter().chain(HEADERS) {
            std::fs::write(path.join(source.name), source.text).map_err(failed)?;
        }
        Ok(folder)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if self.0.components().next().is_some() {
            // What is left lies in the system's folder for such things.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// What a program writes; or how it failed, with the last it wrote.
fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name} does not start: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    Err(format!("{name}: {}: {}", output.status, last.into_iter().rev().collect::<Vec<_>>().join("; ")))
}
