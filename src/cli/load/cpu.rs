//! Processor time of processes, from `/proc` (Linux; proc_pid_stat(5)).

use std::collections::HashMap;
use std::fs;
use std::io::{Error, ErrorKind};

/// `USER_HZ`, which is 100 on every architecture that this runs on.
const TICKS_PER_S: f64 = 100.0;

/// Seconds that the process has spent, in its own code and in the kernel's.
pub fn own_s() -> std::io::Result<f64> {
    read("self").map(|stat| stat.seconds)
}

/// Seconds of a process and of all that descend from it and still run.
pub fn tree_s(pid: u32) -> std::io::Result<f64> {
    let root = read(&pid.to_string())?;
    let mut children: HashMap<u32, Vec<(u32, f64)>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may be gone by now.
        if let Ok(stat) = read(&u32::to_string(&child)) {
            children.entry(stat.parent).or_default().push((child, stat.seconds));
        }
    }
    let mut total = root.seconds;
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        for (child, seconds) in children.remove(&pid).unwrap_or_default() {
            total += seconds;
            next.push(child);
        }
    }
    Ok(total)
}

struct Stat {
    parent: u32,
    seconds: f64,
}

fn read(pid: &str) -> std::io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse(&text).ok_or_else(|| Error::new(ErrorKind::InvalidData, format!("/proc/{pid}/stat is not as expected")))
}

/// The name in parentheses may hold anything; the numbers follow the last parenthesis.
fn parse(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let seconds = (ticks(11)? + ticks(12)?) as f64 / TICKS_PER_S;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses() {
        let stat = parse("7 (a) b (c) S 3 7 7 0 -1 4194560 1 0 0 0 250 50 9 9 20 0 1 0 5").unwrap();
        assert_eq!((stat.parent, stat.seconds), (3, 3.0));
        assert!(parse("7 (a) S 3").is_none());
    }

    #[test]
    fn a_tree_has_at_least_its_root() {
        assert!(tree_s(std::process::id()).unwrap() >= 0.0);
        assert!(tree_s(u32::MAX).is_err());
    }
}
