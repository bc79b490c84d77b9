//! The library's part is played: the calls and what is made of the answers.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::*;

/// Polls until a communicator has done what it was asked for, and those that were aborted.
static POLLS: AtomicU32 = AtomicU32::new(0);
static ABORTED: AtomicU32 = AtomicU32::new(0);
/// Asks for this many bytes are never done, and for this many fail.
const STUCK: usize = 13;
const BROKEN: usize = 14;

/// What a played communicator remembers.
struct Played {
    polls_left: u32,
    gathered: usize,
}

unsafe extern "C" fn get_unique_id(id: *mut UniqueId) -> c_int {
    // SAFETY: room for an id.
    unsafe { (*id).0[0] = 77 };
    SUCCESS
}

unsafe extern "C" fn init_rank(
    comm: *mut Comm,
    num_ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> c_int {
    // SAFETY: a config, and room for a communicator.
    unsafe {
        assert_eq!(((*config).size, (*config).version, (*config).blocking), (24, 21_400, 0));
        assert!(id.0[0] == 77 && (0..num_ranks).contains(&rank));
        *comm = Box::into_raw(Box::new(Played { polls_left: 3, gathered: 0 })).cast();
    }
    IN_PROGRESS
}

unsafe extern "C" fn async_error(comm: Comm, code: *mut c_int) -> c_int {
    POLLS.fetch_add(1, SeqCst);
    // SAFETY: made by `init_rank`, not aborted.
    let played = unsafe { &mut *comm.cast::<Played>() };
    played.polls_left = played.polls_left.saturating_sub(1);
    let answer = match played {
        Played { gathered: STUCK, .. } => IN_PROGRESS,
        Played { gathered: BROKEN, .. } => 6,
        Played { polls_left: 0, .. } => SUCCESS,
        _ => IN_PROGRESS,
    };
    // SAFETY: room for a code.
    unsafe { *code = answer };
    SUCCESS
}

unsafe extern "C" fn all_gather(
    from: *const c_void,
    to: *mut c_void,
    bytes: usize,
    dtype: c_int,
    comm: Comm,
    stream: Stream,
) -> c_int {
    assert_eq!((from as usize, to as usize, dtype, stream as usize), (256, 512, BYTE, 99));
    // SAFETY: made by `init_rank`, not aborted.
    unsafe { *comm.cast::<Played>() = Played { polls_left: 5, gathered: bytes } };
    IN_PROGRESS
}

unsafe extern "C" fn abort(comm: Comm) -> c_int {
    // SAFETY: made by `init_rank`, aborted once.
    drop(unsafe { Box::from_raw(comm.cast::<Played>()) });
    ABORTED.fetch_add(1, SeqCst);
    SUCCESS
}

unsafe extern "C" fn error_text(code: c_int) -> *const c_char {
    if code == 6 { c"remote process exited".as_ptr() } else { c"another".as_ptr() }
}

unsafe extern "C" fn get_version(version: *mut c_int) -> c_int {
    // SAFETY: room for a number.
    unsafe { *version = MIN_VERSION };
    SUCCESS
}

fn played() -> Arc<Functions> {
    Arc::new(Functions { get_version, get_unique_id, init_rank, async_error, all_gather, abort, error_text })
}

fn gather(rank: &dyn Communicator, bytes: usize) -> Result<(), DeviceError> {
    // SAFETY: the played library reads and writes nothing.
    unsafe { rank.all_gather(256, 512, bytes) }
}

/// One test, as what it counts is the process's.
#[test]
fn calls_are_polled_until_they_are_done_or_aborted() {
    let current = || -> Current { Box::new(|| Ok(99 as Stream)) };
    let ranks = connect_by(&played(), vec![current(), current(), current()]).unwrap();
    assert_eq!(POLLS.swap(0, SeqCst), 9);
    assert_eq!(ranks[0].num_ranks(), 3);
    gather(&*ranks[0], 64).unwrap();
    assert_eq!(POLLS.swap(0, SeqCst), 5);

    let error = gather(&*ranks[1], BROKEN).unwrap_err();
    assert!(matches!(&error, DeviceError::Lost(text) if text.contains("remote process exited")), "{error:?}");

    // A rank that waits for one that does not come is released from another thread, and stays so.
    POLLS.store(0, SeqCst);
    thread::scope(|scope| {
        let waits = scope.spawn(|| gather(&*ranks[2], STUCK));
        while POLLS.load(SeqCst) < 100 {
            thread::yield_now();
        }
        ranks[2].abort();
        assert_eq!(waits.join().unwrap(), Err(aborted()));
    });
    ranks[2].abort();
    assert_eq!(gather(&*ranks[2], 64), Err(aborted()));
    assert_eq!(ABORTED.load(SeqCst), 1);
    drop(ranks);
    assert_eq!(ABORTED.load(SeqCst), 3, "every communicator is given back once");
}
