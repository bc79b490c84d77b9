//! File descriptors: as many as the connections that are allowed need.

/// A connection's socket, and the copy of it by which a stalled reader is cut.
const PER_CONNECTION: u64 = 2;
/// Log, store, listener, event loops, and what the C library opens now and then.
const OWN: u64 = 64;

/// Raises this process's limit as far as it may, since shells and service managers often start programs with 1024, and
/// says so in the log where that is not enough.
pub fn make_room(max_connections: usize) {
    let wanted = max_connections as u64 * PER_CONNECTION + OWN;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(limit) if limit < wanted => tracing::warn!(
            limit,
            wanted,
            "too few file descriptors for server.max_connections: raise the hard limit (ulimit -Hn, LimitNOFILE=) or lower it"
        ),
        Ok(_) => {}
        Err(e) => tracing::warn!(error = %e, "the limit of file descriptors cannot be read"),
    }
}
