//! How many cores there are to compute on.

use std::collections::BTreeSet;

/// Physical cores, but no more than this process may use (affinity, container limits). Two hardware threads of one core
/// share its vector units, so a second compute thread there only gets in the way.
pub fn physical() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let siblings = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).ok()
    };
    let cores: BTreeSet<String> = (0..).map_while(siblings).collect();
    if cores.is_empty() { allowed } else { cores.len().min(allowed) }
}
