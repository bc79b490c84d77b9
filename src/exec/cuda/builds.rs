//! A folder of kernels that were compiled on this machine, an entry for each chip, sources and compiler.
//!
//! An entry is `<hash>-<chip>/` with the cubins and a `MANIFEST` of what they were made of and their hashes. Invariants: an
//! entry appears whole or not at all; a damaged one is removed and not used; there are [`MAX_ENTRIES`] at most, the oldest
//! go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::module::Cubin;
use super::sources;

const MAX_ENTRIES: usize = 16;
/// Files of a folder that are looked at, at most.
const MAX_FILES: usize = 1024;
const MANIFEST: &str = "MANIFEST";
/// Larger than any cubin, or manifest.
const MAX_BYTES: u64 = 64 << 20;
/// What a process that died has left is removed after this.
const ABANDONED: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builds(PathBuf);

/// An entry's kernels.
pub struct Build {
    pub cubins: Vec<Cubin>,
    pub chip: String,
    pub compiler: String,
    pub path: PathBuf,
}

impl Builds {
    pub fn at(folder: impl Into<PathBuf>) -> Builds {
        Builds(folder.into())
    }

    /// `$XDG_CACHE_HOME/garrick/kernels`, or `~/.cache/garrick/kernels`; `None` where neither variable is set.
    pub fn of_user() -> Option<Builds> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
        Some(Builds(cache.join("garrick/kernels")))
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The newest entry for one of the chips, made of this program's sources, by a certain compiler or any.
    pub fn find(&self, chips: &[String], compiler: Option<&str>) -> Option<Build> {
        let of_chip = |entry: &&Entry| chips.iter().any(|chip| entry.chip == *chip);
        for entry in self.entries().iter().filter(of_chip) {
            let Some(manifest) = Manifest::read(&entry.path) else { continue };
            if manifest.sources != sources::hash() || compiler.is_some_and(|compiler| compiler != manifest.compiler) {
                continue;
            }
            match manifest.cubins(&entry.path) {
                Ok(cubins) => {
                    let (chip, path) = (entry.chip.clone(), entry.path.clone());
                    return Some(Build { cubins, chip, compiler: manifest.compiler, path });
                }
                Err(reason) => {
                    tracing::warn!(
                        "compiled kernels in {} are damaged and are removed: {reason}",
                        entry.path.display()
                    );
                    let _ = fs::remove_dir_all(&entry.path);
                }
            }
        }
        None
    }

    /// Adds an entry, in place of one with the same sources, compiler and chip. Says where.
    pub fn put(&self, chip: &str, compiler: &str, cubins: &[Cubin]) -> io::Result<PathBuf> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let manifest = Manifest::of(compiler, cubins);
        let key = sources::hex(&Sha256::digest(format!("{}\n{compiler}", manifest.sources)));
        let path = self.0.join(format!("{}-{chip}", &key[..16]));
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let new = self.0.join(format!(".new-{}-{number}", std::process::id()));
        fs::create_dir_all(&new)?;
        let written = || -> io::Result<()> {
            for cubin in cubins {
                fs::write(new.join(&cubin.name), &cubin.bytes)?;
            }
            fs::write(new.join(MANIFEST), manifest.text())?;
            if path.exists() {
                fs::remove_dir_all(&path)?;
            }
            fs::rename(&new, &path)
        };
        let outcome = written();
        if outcome.is_err() {
            let _ = fs::remove_dir_all(&new);
        }
        self.remove_old();
        outcome.map(|()| path)
    }

    /// The newest first.
    fn entries(&self) -> Vec<Entry> {
        let files = fs::read_dir(&self.0).into_iter().flatten().flatten().take(MAX_FILES);
        let mut entries: Vec<Entry> = files.filter_map(|file| Entry::of(&file.path())).collect();
        entries.sort_by(|a, b| b.made.cmp(&a.made).then_with(|| a.path.cmp(&b.path)));
        entries
    }

    fn remove_old(&self) {
        for entry in self.entries().iter().skip(MAX_ENTRIES) {
            let _ = fs::remove_dir_all(&entry.path);
        }
        for file in fs::read_dir(&self.0).into_iter().flatten().flatten().take(MAX_FILES) {
            let is_new = file.file_name().to_string_lossy().starts_with(".new-");
            let age = file.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
            if is_new && age.is_some_and(|age| age > ABANDONED) {
                let _ = fs::remove_dir_all(file.path());
            }
        }
    }
}

struct Entry {
    path: PathBuf,
    chip: String,
    made: SystemTime,
}

impl Entry {
    /// Of a folder that [`Builds::put`] has named.
    fn of(path: &Path) -> Option<Entry> {
        let (hash, chip) = path.file_name()?.to_str()?.split_once('-')?;
        let is_hash = hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        let made = path.metadata().ok().filter(|data| data.is_dir())?.modified().ok()?;
        (is_hash && chip.starts_with("sm_")).then(|| Entry { path: path.to_owned(), chip: chip.to_owned(), made })
    }
}

/// Lines `sources HASH`, `compiler TEXT` and, for each file, `cubin HASH NAME`.
struct Manifest {
    sources: String,
    compiler: String,
    cubins: Vec<(String, String)>,
}

impl Manifest {
    fn of(compiler: &str, cubins: &[Cubin]) -> Manifest {
        let hashed = |cubin: &Cubin| (sources::hex(&Sha256::digest(&cubin.bytes)), cubin.name.clone());
        let cubins = cubins.iter().map(hashed).collect();
        Manifest { sources: sources::hash(), compiler: compiler.to_owned(), cubins }
    }

    fn text(&self) -> String {
        let cubins = self.cubins.iter().map(|(hash, name)| format!("cubin {hash} {name}\n"));
        format!("sources {}\ncompiler {}\n{}", self.sources, self.compiler, cubins.collect::<String>())
    }

    fn read(entry: &Path) -> Option<Manifest> {
        let text = String::from_utf8(read(&entry.join(MANIFEST)).ok()?).ok()?;
        let mut manifest = Manifest { sources: String::new(), compiler: String::new(), cubins: Vec::new() };
        for line in text.lines() {
            match line.split_once(' ')? {
                ("sources", hash) => manifest.sources = hash.to_owned(),
                ("compiler", about) => manifest.compiler = about.to_owned(),
                ("cubin", file) => {
                    let (hash, name) = file.split_once(' ')?;
                    manifest.cubins.push((hash.to_owned(), name.to_owned()));
                }
                _ => return None,
            }
        }
        Some(manifest)
    }

    fn cubins(&self, entry: &Path) -> Result<Vec<Cubin>, String> {
        if self.cubins.len() != sources::KERNELS.len() {
            return Err(format!("{} of {} files are listed", self.cubins.len(), sources::KERNELS.len()));
        }
        let checked = |(hash, name): &(String, String)| {
            // A name is a file of the entry, and nothing elsewhere.
            if name.contains(['/', '\\']) {
                return Err(format!("{name} is no file name"));
            }
            let bytes = read(&entry.join(name)).map_err(|e| format!("{name}: {e}"))?;
            let is_right = sources::hex(&Sha256::digest(&bytes)) == *hash;
            if is_right { Ok(Cubin { name: name.clone(), bytes }) } else { Err(format!("{name} is another")) }
        };
        self.cubins.iter().map(checked).collect()
    }
}

/// A file of bounded size.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::Error::other("too large"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cubins(of: u8) -> Vec<Cubin> {
        let cubin =
            |source: &sources::Source| Cubin { name: source.name.replace(".cu", ".cubin"), bytes: vec![of; 100] };
        sources::KERNELS.iter().map(cubin).collect()
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn first_byte(build: Option<Build>) -> Option<u8> {
        build.map(|build| build.cubins[0].bytes[0])
    }

    #[test]
    fn what_was_put_is_found_by_chip_and_compiler_and_the_last_counts() {
        let folder = tempfile::tempdir().unwrap();
        let builds = Builds::at(folder.path().join("deep/inside"));
        let (a, b) = ("sm_103a".to_owned(), "sm_110a".to_owned());
        assert!(builds.find(&[a.clone()], None).is_none());
        builds.put(&a, "one", &cubins(1)).unwrap();
        builds.put(&a, "two", &cubins(2)).unwrap();
        builds.put(&a, "one", &cubins(3)).unwrap();
        assert_eq!(first_byte(builds.find(&[b.clone(), a.clone()], Some("one"))), Some(3));
        assert_eq!(first_byte(builds.find(&[a.clone()], Some("two"))), Some(2));
        assert!(builds.find(&[a], Some("three")).is_none() && builds.find(&[b], None).is_none());
        assert_eq!(names(builds.folder()).len(), 2, "nothing but entries is left");
    }

    #[test]
    fn a_damaged_entry_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let builds = Builds::at(folder.path());
        let chips = ["sm_90a".to_owned()];
        let damages: [fn(&Path); 4] = [
            |entry| fs::write(entry.join("gemm.cubin"), [1; 99]).unwrap(),
            |entry| fs::remove_file(entry.join("gemm.cubin")).unwrap(),
            |entry| {
                let manifest = fs::read_to_string(entry.join(MANIFEST)).unwrap();
                fs::write(entry.join(MANIFEST), manifest.lines().take(4).collect::<Vec<_>>().join("\n")).unwrap();
            },
            |entry| {
                let manifest = fs::read_to_string(entry.join(MANIFEST)).unwrap();
                fs::write(entry.join(MANIFEST), manifest.replace("gemm.cubin", "../gemm.cubin")).unwrap();
            },
        ];
        for damage in damages {
            let entry = builds.put(&chips[0], "any", &cubins(1)).unwrap();
            assert!(builds.find(&chips, None).is_some());
            damage(&entry);
            assert!(builds.find(&chips, None).is_none() && !entry.exists());
        }
    }

    #[test]
    fn kernels_of_other_sources_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let builds = Builds::at(folder.path());
        let entry = builds.put("sm_90a", "any", &cubins(1)).unwrap();
        let manifest = fs::read_to_string(entry.join(MANIFEST)).unwrap();
        fs::write(entry.join(MANIFEST), manifest.replace(&sources::hash(), "0000")).unwrap();
        assert!(builds.find(&["sm_90a".to_owned()], None).is_none());
    }

    #[test]
    fn the_oldest_entries_go_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let builds = Builds::at(folder.path());
        fs::create_dir(folder.path().join("mine")).unwrap();
        fs::write(folder.path().join("0123456789abcdef-sm_80"), "a file").unwrap();
        for i in 0..MAX_ENTRIES + 3 {
            let entry = builds.put("sm_90a", &format!("compiler {i}"), &cubins(1)).unwrap();
            let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 * i as u64);
            fs::File::open(entry).unwrap().set_modified(made).unwrap();
        }
        builds.put("sm_90a", "the last", &cubins(1)).unwrap();
        let found = |compiler: &str| builds.find(&["sm_90a".to_owned()], Some(compiler)).is_some();
        assert!(found("the last") && found("compiler 4") && !found("compiler 3"));
        assert_eq!(names(folder.path()).len(), MAX_ENTRIES + 2);
    }
}
