//! How many KV blocks a lane gets.

use crate::base::config::Kv;
use crate::kv::BLOCK_TOKENS;

/// Beyond this many times what can run at once, more blocks only lengthen the memory of the prefix cache.
const MAX_OVERSIZE: usize = 4;

/// What one lane's blocks must serve.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    pub block_bytes: usize,
    pub num_lanes: usize,
    pub max_running: usize,
    pub max_model_len: usize,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "kv.memory: {available} bytes over {num_lanes} lane(s) hold {num_blocks} blocks of {block_bytes} bytes each, but at \
     least {MIN_BLOCKS} are needed; raise kv.memory to {needed} bytes or more"
)]
pub struct TooLittle {
    available: u64,
    num_lanes: usize,
    num_blocks: usize,
    block_bytes: usize,
    needed: usize,
}

/// Room for one short sequence and the one that follows it.
const MIN_BLOCKS: usize = 4;

/// Blocks for each lane: all that `kv.memory` allows; without it a share of what is free (`kv.memory_share`, else
/// `default_share`), but no more than
/// [`MAX_OVERSIZE`] times what can be in use.
pub fn blocks_per_lane(kv: &Kv, default_share: f64, free_bytes: u64, demand: Demand) -> Result<usize, TooLittle> {
    let Demand { block_bytes, num_lanes, max_running, max_model_len } = demand;
    let share = kv.memory_share.unwrap_or(default_share);
    let available = kv.memory.unwrap_or((free_bytes as f64 * share) as u64);
    let mut num_blocks = (available / (block_bytes * num_lanes) as u64) as usize;
    if kv.memory.is_none() {
        num_blocks = num_blocks.min(max_running * max_model_len.div_ceil(BLOCK_TOKENS) * MAX_OVERSIZE);
    }
    if num_blocks < MIN_BLOCKS {
        let needed = MIN_BLOCKS * block_bytes * num_lanes;
        return Err(TooLittle { available, num_lanes, num_blocks, block_bytes, needed });
    }
    Ok(num_blocks.min(u32::MAX as usize / BLOCK_TOKENS))
}

/// Bytes that this process may still take: what the machine has free, or what is left under the container's limit
/// (cgroup v2, else v1), whichever is less. None where neither can be read.
pub fn free_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let machine = read("/proc/meminfo").as_deref().and_then(meminfo_available);
    let cgroup = [
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ]
    .into_iter()
    .find_map(|(folder, limit, used, cache)| {
        let (limit, used) = (number(&format!("{folder}/{limit}"))?, number(&format!("{folder}/{used}"))?);
        // A checkpoint that was just read stands among what is used, but goes as soon as room is needed.
        let stat = read(&format!("{folder}/memory.stat"));
        let cached = stat.and_then(|text| value_of(&text, cache)).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    });
    machine.into_iter().chain(cgroup).min()
}

fn meminfo_available(text: &str) -> Option<u64> {
    Some(value_of(text, "MemAvailable:")?.saturating_mul(1024))
}

/// The number behind `name` in lines of names and numbers.
fn value_of(text: &str, name: &str) -> Option<u64> {
    let mut words =
        text.lines().map(str::split_whitespace).find_map(|mut words| (words.next()? == name).then_some(words))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand { block_bytes: 1000, num_lanes: 2, max_running: 4, max_model_len: 100 };

    #[test]
    fn a_share_is_capped_by_what_can_be_used_and_a_number_is_not() {
        let share = Kv { memory_share: Some(0.5), ..Kv::default() };
        assert_eq!(blocks_per_lane(&share, 0.25, 80_000, DEMAND), Ok(20));
        assert_eq!(blocks_per_lane(&Kv::default(), 0.25, 160_000, DEMAND), Ok(20));
        assert_eq!(blocks_per_lane(&share, 0.25, 1 << 40, DEMAND), Ok(4 * 7 * 4));
        let number = Kv { memory: Some(2_000_000), ..Kv::default() };
        assert_eq!(blocks_per_lane(&number, 0.25, 0, DEMAND), Ok(1000));
    }

    #[test]
    fn too_little_names_the_numbers() {
        let kv = Kv { memory: Some(5_000), ..Kv::default() };
        let message = blocks_per_lane(&kv, 0.25, 0, DEMAND).unwrap_err().to_string();
        assert!(message.contains("5000 bytes") && message.contains("raise kv.memory to 8000"), "{message}");
    }

    #[test]
    fn meminfo_is_read_in_kib() {
        assert_eq!(meminfo_available("MemTotal: 9 kB\nMemAvailable:     24 kB\n"), Some(24 * 1024));
        assert_eq!(meminfo_available("MemTotal: 9 kB\n"), None);
    }
}
