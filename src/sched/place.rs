//! Which lane a new job goes to.

/// What placement knows of a lane, as of its last word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneLoad {
    /// Tokens that wait to be computed there.
    pub waiting_tokens: usize,
    /// Sequences that decode there: a row in every step each.
    pub running: usize,
    /// Tokens of this job's prompt that are cached there.
    pub cached_prefix_tokens: usize,
}

impl LaneLoad {
    /// Rows that stand before a new job: what waits, and one step of what runs.
    fn backlog(&self) -> usize {
        self.waiting_tokens + self.running
    }
}

/// The lane with the longest cached prefix, unless its backlog exceeds the least loaded lane's by more than
/// `max_margin_tokens`; then the least loaded. Equal prefixes go to the smaller backlog, then to the lower index.
/// None only when there are no lanes.
pub fn place(lanes: &[LaneLoad], max_margin_tokens: usize) -> Option<usize> {
    let least = lanes.iter().map(LaneLoad::backlog).min()?;
    let close = |lane: &LaneLoad| lane.backlog() - least <= max_margin_tokens;
    (0..lanes.len())
        .filter(|&i| close(&lanes[i]))
        .min_by_key(|&i| (std::cmp::Reverse(lanes[i].cached_prefix_tokens), lanes[i].backlog(), i))
}
