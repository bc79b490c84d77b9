//! What the system says of this process, under the names that every Prometheus client library uses.
//!
//! Read from `/proc` when somebody asks. A file that cannot be read leaves its lines out.

use super::registry::{Value, head, sample};
use super::table::Kind;

/// Linux tells CPU time to programs in hundredths of a second, on every architecture (`USER_HZ`).
const TICKS_PER_S: f64 = 100.0;

/// Names, for documents and tests.
pub const NAMES: [(&str, Kind); 5] = [
    ("process_cpu_seconds_total", Kind::Counter),
    ("process_resident_memory_bytes", Kind::Gauge),
    ("process_open_fds", Kind::Gauge),
    ("process_threads", Kind::Gauge),
    ("process_start_time_seconds", Kind::Gauge),
];

const HELP: [&str; 5] =
    ["User and system CPU time.", "Resident memory.", "Open file descriptors.", "Threads.", "Start time since 1970."];

pub fn render(out: &mut String) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name, in parentheses, may hold spaces; fields are counted behind it, from the third (proc(5)).
    let fields: Vec<f64> = match stat.rsplit_once(") ") {
        Some((_, rest)) => rest.split(' ').skip(1).map(|field| field.trim().parse().unwrap_or(0.0)).collect(),
        None => Vec::new(),
    };
    // Field `n` of the manual page; the fourth is the first number.
    let field = |n: usize| fields.get(n - 4).copied();
    let values = [
        field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_PER_S),
        resident_bytes(),
        std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64),
        field(20),
        field(22).zip(boot_time_s()).map(|(ticks, boot)| boot + ticks / TICKS_PER_S),
    ];
    for (((name, kind), help), value) in NAMES.into_iter().zip(HELP).zip(values) {
        if let Some(value) = value {
            head(out, name, kind, help);
            sample(out, name, &[], &Value::Number(value));
        }
    }
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

fn boot_time_s() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
