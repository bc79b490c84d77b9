//! GPUs of one machine as a group, through NVIDIA's NCCL, which is looked for at run time (NCCL User Guide: "Creating a
//! communicator", "Error handling and communicator abort").
//!
//! Invariant: no call into the library waits for another rank. Communicators are made nonblocking, what they are asked for is
//! polled, and between two polls anybody may abort; so a lock is held for a moment only. Bytes are moved and never added
//! here: the order in which NCCL adds depends on a value's place in the message.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Address;
use super::group::Communicator;
use super::libraries::{Places, Wanted, c_functions};
use super::nvidia::Nvidia;
use crate::model::ops::DeviceError;

/// The first whose communicators may be nonblocking, 2.14.
const MIN_VERSION: c_int = 21_400;
/// Ranks that have not found each other by then will not.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_POLL: Duration = Duration::from_millis(1);

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclInt8`.
const BYTE: c_int = 0;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([c_char; 128]);

/// `ncclConfig_t` as of 2.14, which later versions take as it is: they read `size` bytes and go by `version`.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

const NONBLOCKING: Config =
    Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: MIN_VERSION as u32, blocking: 0 };

type Comm = *mut c_void;
type Stream = *mut c_void;

c_functions! {
    /// What is used of the library.
    struct Functions {
        get_version = "ncclGetVersion": fn(*mut c_int) -> c_int;
        get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> c_int;
        init_rank = "ncclCommInitRankConfig": fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int;
        async_error = "ncclCommGetAsyncError": fn(Comm, *mut c_int) -> c_int;
        all_gather = "ncclAllGather": fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int;
        abort = "ncclCommAbort": fn(Comm) -> c_int;
        error_text = "ncclGetErrorString": fn(c_int) -> *const c_char;
    }
}

/// The ends of a group of these GPUs, in their order.
pub fn connect(devices: &[Arc<Nvidia>], places: &Places) -> Result<Vec<Arc<dyn Communicator>>, DeviceError> {
    let functions = Arc::new(open(places)?);
    let current = |device: &Arc<Nvidia>| -> Current {
        let device = device.clone();
        Box::new(move || device.current_stream())
    };
    connect_by(&functions, devices.iter().map(current).collect())
}

fn open(places: &Places) -> Result<Functions, DeviceError> {
    let unusable = |why: String| DeviceError::Lost(format!("GPUs share a model through NCCL: {why}"));
    let opened = places.open(Wanted::Nccl).map_err(|missing| unusable(missing.to_string()))?;
    // SAFETY: the functions have these types in nccl.h of every version 2 from 2.14 on.
    let functions = unsafe { Functions::load(&opened) };
    let functions = functions.map_err(|why| unusable(format!("{}: {why}", opened.path.display())))?;
    let mut version = 0;
    // SAFETY: room for a number.
    functions.check(unsafe { (functions.get_version)(&mut version) }, "no version")?;
    if version < MIN_VERSION {
        let path = opened.path.display();
        return Err(unusable(format!(
            "{path}: its version code is {version}, and must be {MIN_VERSION} (2.14) or more"
        )));
    }
    tracing::info!(version, path = %opened.path.display(), "NCCL connects the GPUs of each lane");
    Ok(functions)
}

/// Makes a rank's device the calling thread's, and gives its stream.
type Current = Box<dyn Fn() -> Result<Stream, DeviceError> + Send + Sync>;

fn connect_by(functions: &Arc<Functions>, ranks: Vec<Current>) -> Result<Vec<Arc<dyn Communicator>>, DeviceError> {
    let num_ranks = ranks.len();
    let mut id = UniqueId([0; 128]);
    // SAFETY: room for an id.
    functions.check(unsafe { (functions.get_unique_id)(&mut id) }, "no id for a group")?;
    let join = |(rank, current): (usize, Current)| {
        let (functions, comm) = (functions.clone(), Mutex::new(Handle(null_mut())));
        Rank { functions, current, comm, num_ranks, rank }.join(id)
    };
    // All at once, as each waits for the others.
    let joined: Vec<Result<Rank, DeviceError>> = thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().enumerate().map(|rank| scope.spawn(move || join(rank))).collect();
        let lost = |_| Err(DeviceError::Lost("a panic in NCCL's start".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
    });
    joined.into_iter().map(|rank| rank.map(|rank| Arc::new(rank) as Arc<dyn Communicator>)).collect()
}

impl Functions {
    fn check(&self, code: c_int, what: &str) -> Result<(), DeviceError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: it takes any code and gives a constant.
        let text = unsafe { CStr::from_ptr((self.error_text)(code)) }.to_string_lossy();
        Err(DeviceError::Lost(format!("NCCL, {what}: {text} (NCCL_DEBUG=WARN says more)")))
    }
}

/// A communicator; null before it is made, and when it was aborted.
struct Handle(Comm);

// SAFETY: NCCL's communicators may be used from any thread, from one at a time.
unsafe impl Send for Handle {}

struct Rank {
    functions: Arc<Functions>,
    current: Current,
    comm: Mutex<Handle>,
    num_ranks: usize,
    rank: usize,
}

impl Rank {
    fn lock(&self) -> MutexGuard<'_, Handle> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes a rank of the group with this id, when all others do.
    fn join(self, id: UniqueId) -> Result<Rank, DeviceError> {
        (self.current)()?;
        let mut config = NONBLOCKING;
        let (num_ranks, rank) = (self.num_ranks as c_int, self.rank as c_int);
        // SAFETY: the config is one of NCCL's; what it points at outlives the call, which copies it.
        let code = unsafe { (self.functions.init_rank)(&mut self.lock().0, num_ranks, id, rank, &mut config) };
        let began = Instant::now();
        self.settle(code, "a rank joins the group", || {
            thread::sleep(CONNECT_POLL);
            began.elapsed() < CONNECT_LIMIT
        })?;
        Ok(self)
    }

    /// Waits until the library has taken what it was asked for with this answer, or the group is aborted.
    fn settle(&self, mut code: c_int, what: &str, go_on: impl Fn() -> bool) -> Result<(), DeviceError> {
        while code == IN_PROGRESS {
            if !go_on() {
                self.abort();
                return Err(DeviceError::Lost(format!("NCCL, {what}: not done within {CONNECT_LIMIT:?}")));
            }
            let comm = self.lock();
            if comm.0.is_null() {
                return Err(aborted());
            }
            // SAFETY: a communicator that nobody aborts meanwhile.
            let asked = unsafe { (self.functions.async_error)(comm.0, &mut code) };
            self.functions.check(asked, what)?;
        }
        self.functions.check(code, what)
    }
}

fn aborted() -> DeviceError {
    DeviceError::Lost("another rank of the group has failed".into())
}

impl Communicator for Rank {
    fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    unsafe fn all_gather(&self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        let stream = (self.current)()?;
        let comm = self.lock();
        if comm.0.is_null() {
            return Err(aborted());
        }
        // SAFETY: the caller's promise; the stream is the device's, so order is kept.
        let code = unsafe {
            (self.functions.all_gather)(from as *const c_void, to as *mut c_void, bytes, BYTE, comm.0, stream)
        };
        drop(comm);
        // It may wait for the others to connect; a rank that does not come is one that fails, and aborts.
        self.settle(code, "sum over ranks", || {
            thread::yield_now();
            true
        })
    }

    fn abort(&self) {
        let comm = std::mem::replace(&mut self.lock().0, null_mut());
        if !comm.is_null() {
            // Without its device it cannot be reached by the driver either.
            let _ = (self.current)();
            // SAFETY: taken out, so nobody uses it any more. What its answer could say is of a group that is gone.
            let _ = unsafe { (self.functions.abort)(comm) };
        }
    }
}

/// Not `ncclCommDestroy`, which waits for the other ranks.
impl Drop for Rank {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
#[path = "nccl_tests.rs"]
mod tests;
