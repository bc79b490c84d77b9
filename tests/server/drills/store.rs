//! The SQLite file in trouble, under a server and before one: full disk, locked, read-only, damaged, gone.
//!
//! What always holds: keys that are known go on, keys that cannot be looked up are a 503 and never an open door, and
//! whoever runs a command is told what to do.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{CHAT, Launch, Request, Response, Server, chat, eventually};

const INTERNAL: Option<i32> = Some(70);

fn ask(server: &Server, key: &str) -> Response {
    server.ask(&Request::post(CHAT, &chat(json!({}))).key(key))
}

/// A keyed server that believes what it looked up for an hour, and a key that it has looked up.
fn server_with_known_key(launch: Launch) -> (Server, String) {
    let launch = launch.set("auth.cache_ttl_s=3600").keyed();
    let key = launch.new_key("");
    let server = launch.start();
    server.get("/metrics");
    ask(&server, &key).ok();
    (server, key)
}

fn database(launch: &Launch) -> PathBuf {
    launch.dir().join("garrick.db")
}

/// A small file system of its own, where this user may mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let at = TempDir::new().expect("a folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        eprintln!("skipped: no file system can be mounted here; the limit on file sizes stands in for a full disk");
        None
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn fill(&self) -> File {
        let mut ballast = File::create(self.file("ballast")).expect("a file");
        // First in large pieces, then to the last byte.
        for size in [65536, 4096, 1] {
            while ballast.write_all(&vec![b'x'; size]).is_ok() {}
        }
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.path().display());
        }
    }
}

#[test]
fn a_full_disk_stops_new_keys_and_nothing_else() {
    let Some(disk) = SmallDisk::mount() else { return };
    let launch = Launch::fake("fake");
    let path = format!("store.path={}", disk.file("garrick.db").display());
    let create = format!("keys --set {path} create --tenant a");
    let key = launch.cli(&create).stdout.trim().to_owned();
    let other = launch.cli(&create).stdout.trim().to_owned();
    let launch = launch.set(&path).set("auth.cache_ttl_s=3600").set("auth.metrics_open=true");
    let server = launch.start();
    ask(&server, &key).ok();

    let ballast = disk.fill();
    let failed = server.launch.cli(&create);
    assert_eq!((failed.code, failed.stdout.as_str()), (INTERNAL, ""), "{failed:?}");
    assert!(failed.stderr.contains("the disk is full; make room"), "{failed:?}");
    ask(&server, &key).ok();
    // Reading needs no room.
    ask(&server, &other).ok();
    let fresh = format!("keys --set store.path={} create --tenant a", disk.file("fresh.db").display());
    let failed = server.launch.cli(&fresh);
    assert_eq!(failed.code, INTERNAL, "{failed:?}");
    assert!(failed.stderr.contains("the disk is full; make room"), "{failed:?}");
    let start = Launch::fake("fake").set(&format!("store.path={}", disk.file("another.db").display()));
    let failed = start.fails();
    assert_eq!(failed.code, INTERNAL, "{failed:?}");
    assert!(failed.stderr.contains("another.db") && failed.stderr.contains("the disk is full"), "{failed:?}");

    drop(ballast);
    fs::remove_file(disk.file("ballast")).expect("the ballast");
    assert_eq!(server.launch.cli(&create).code, Some(0), "there is room again");
    ask(&server, &key).ok();
}

/// Without any right to mount: a file may not grow, and the signal that says so is ignored. (A write then fails with
/// EFBIG, which SQLite counts as an error of the disk.)
#[test]
fn a_file_that_may_not_grow_is_an_error_with_a_name() {
    const TINY: &str = "trap '' XFSZ; ulimit -f 8";
    let launch = Launch::fake("fake");
    let failed = launch.cli_after(TINY, "keys create --tenant a");
    assert_eq!((failed.code, failed.stdout.as_str()), (INTERNAL, ""), "{failed:?}");
    assert!(failed.stderr.contains("garrick.db") && failed.stderr.contains("disk"), "{failed:?}");
    let failed = Launch::fake("fake").after(TINY).fails();
    assert_eq!(failed.code, INTERNAL, "{failed:?}");
    assert!(failed.stderr.contains("garrick.db") && failed.stderr.contains("disk"), "{failed:?}");
    // What is left behind is no obstacle.
    assert_eq!(launch.cli("keys create --tenant a").code, Some(0));

    // A server that was started before, and cannot write any more: it need not.
    let launch = launch.set("auth.metrics_open=true");
    let key = launch.new_key("");
    // Room for the index of the log (32 KiB), and little more.
    let server = launch.after("trap '' XFSZ; ulimit -f 128").start();
    ask(&server, &key).ok();
}

/// Holds the write lock of a database until it is dropped; in mode `EXCLUSIVE` nobody reads either.
struct Locked(std::process::Child);

impl Locked {
    /// None without Python.
    fn hold(database: &Path, mode: &str) -> Option<Self> {
        let script = "import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('PRAGMA locking_mode = ' + sys.argv[2]); db.execute('BEGIN EXCLUSIVE'); print('held', flush=True)
sys.stdin.read()";
        let mut command = Command::new("python3");
        command.args(["-c", script, database.to_str().expect("a UTF-8 path"), mode]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI has Python");
            eprintln!("skipped: python3 is not here to lock the database");
            return None;
        };
        let mut said = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().expect("piped"));
        std::io::BufRead::read_line(&mut stdout, &mut said).expect("it speaks");
        assert_eq!(said.trim(), "held");
        Some(Self(child))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("it ends");
    }
}

#[test]
fn a_locked_database_stops_writers_and_no_reader() {
    let (server, key) = server_with_known_key(Launch::fake("fake"));
    let other = server.launch.new_key("");
    let Some(lock) = Locked::hold(&database(&server.launch), "NORMAL") else { return };
    ask(&server, &key).ok();
    // Not known to the server yet: it reads beside the writer.
    ask(&server, &other).ok();
    let failed = server.launch.cli("keys create --tenant a");
    assert_eq!(failed.code, INTERNAL, "{failed:?}");
    assert!(failed.stderr.contains("another process holds it"), "{failed:?}");
    drop(lock);
    assert_eq!(server.launch.cli("keys create --tenant a").code, Some(0));
}

#[test]
fn a_database_that_another_keeps_to_itself_is_named_at_the_start() {
    let launch = Launch::fake("fake").keyed();
    let Some(lock) = Locked::hold(&database(&launch), "EXCLUSIVE") else { return };
    let failed = Launch::fake("fake").beside(&launch).fails();
    assert_eq!(failed.code, INTERNAL, "{failed:?}");
    assert!(failed.stderr.contains("garrick.db") && failed.stderr.contains("another process holds it"), "{failed:?}");
    drop(lock);
    Launch::fake("fake").beside(&launch).start();
}

#[test]
fn a_database_that_may_only_be_read_is_named_at_the_start() {
    let launch = Launch::fake("fake");
    launch.new_key("");
    let path = database(&launch);
    fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("a mode");
    fs::set_permissions(launch.dir(), Permissions::from_mode(0o555)).expect("a mode");
    let is_root = OpenOptions::new().append(true).open(&path).is_ok();
    if !is_root {
        let failed = launch.cli("keys create --tenant a");
        assert_eq!(failed.code, INTERNAL, "{failed:?}");
        assert!(failed.stderr.contains("garrick.db") && failed.stderr.contains("permissions"), "{failed:?}");
    }
    fs::set_permissions(launch.dir(), Permissions::from_mode(0o755)).expect("a mode");
    if is_root {
        eprintln!("root may write everything: a folder in the database's place stands in for it");
    }
    let folder = launch.dir().join("folder.db");
    fs::create_dir(&folder).expect("a folder");
    let failed = launch.set(&format!("store.path={}", folder.display())).fails();
    assert_eq!(failed.code, INTERNAL, "{failed:?}");
    assert!(failed.stderr.contains("folder.db"), "{failed:?}");
}

#[test]
fn a_damaged_database_lets_known_keys_go_on_and_nobody_else_in() {
    let (server, key) = server_with_known_key(Launch::fake("fake"));
    let other = server.launch.new_key("");
    // Everything behind the header page, in the file and in its log.
    let mut file = OpenOptions::new().write(true).open(database(&server.launch)).expect("the file");
    let len = file.metadata().expect("a length").len();
    file.seek(SeekFrom::Start(100)).expect("a place");
    file.write_all(&vec![0xa5; len as usize - 100]).expect("it is written");
    for name in ["garrick.db-wal", "garrick.db-shm"] {
        let path = server.launch.dir().join(name);
        if let Ok(mut file) = OpenOptions::new().write(true).open(&path) {
            let len = file.metadata().expect("a length").len();
            file.write_all(&vec![0xa5; len as usize]).expect("it is written");
        }
    }
    ask(&server, &key).ok();
    for stranger in [other.as_str(), &key.replace(&key[5..9], "AAAA")] {
        let answer = ask(&server, stranger);
        assert!([401, 503].contains(&answer.status), "{}", answer.text());
        answer.error(answer.status);
    }
    assert_eq!(server.ask(&Request::post(CHAT, &chat(json!({})))).status, 401, "and nobody without a key");
    let failed = Launch::fake("fake").beside(&server.launch).fails();
    assert_eq!(failed.code, INTERNAL, "{failed:?}");
    assert!(failed.stderr.contains("garrick.db"), "{failed:?}");
}

#[test]
fn a_database_that_is_removed_opens_no_door() {
    let (server, key) = server_with_known_key(Launch::fake("fake"));
    let other = server.launch.new_key("");
    for name in ["garrick.db", "garrick.db-wal", "garrick.db-shm"] {
        let _ = fs::remove_file(server.launch.dir().join(name));
    }
    ask(&server, &key).ok();
    // Another file in its place says nothing to the server, which must not go on asking the old one.
    let replaced = server.launch.new_key("");
    for unknown in [&other, &replaced] {
        assert_eq!(ask(&server, unknown).error(503)["code"], "unavailable");
    }
    assert!(eventually(|| server.log().contains("removed or replaced")), "the log says why: {}", server.log());
    assert_eq!(server.ask(&Request::post(CHAT, &chat(json!({})))).status, 401);
}

#[test]
fn a_kill_in_the_middle_of_everything_leaves_the_keys_whole() {
    let launch = Launch::fake("fake:decode_us_per_step=2000").keyed();
    let mut keys = vec![launch.new_key("")];
    let mut server = launch.start();
    for _ in 0..3 {
        let mut stream = server
            .connect()
            .stream(&Request::post(CHAT, &chat(json!({"stream": true, "max_tokens": 5000}))).key(&keys[0]));
        stream.next().expect("it runs");
        keys.push(server.launch.new_key(""));
        server.signal("KILL");
        assert_eq!(server.finish().code, None, "no status: a signal");
        server = Launch::fake("fake:decode_us_per_step=2000").beside(&server.launch).start();
        for key in &keys {
            ask(&server, key).ok();
        }
    }
    assert!(eventually(|| server.get("/health/ready").status == 200));
}
