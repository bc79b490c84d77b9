//! Decode steps as graphs: all launches of a step at once.
//!
//! Owns the graphs of one lane. A step qualifies where every row is the next token of a sequence of its own; prompts and
//! drafts are launched kernel by kernel. Blocks that forks copy are copied before, by launches of their own.
//!
//! A step is filled up to the rows of its [`Bucket`], on which alone its launches depend: rows without a slot store nothing,
//! spans of no rows are passed over (kernels/README.md), and all kernels are batch invariant, so nobody's bits change.
//!
//! The first step of a bucket runs kernel by kernel, so that all memory is there; the second is captured. Invariant: no
//! graph is launched after memory was asked for since its capture, since what it names may have moved. Where capturing
//! fails there are no graphs from then on, and the step is launched anew.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use super::attention::SPLIT_TOKENS;
use super::device::{Device, GraphId};
use crate::model::ops::{Batch, DeviceError};

/// Rows of a step that has a graph, where nothing else is said.
const MAX_ROWS: usize = 512;
/// Graphs of a lane; beyond, the one that was not used for longest is given back.
const MAX_GRAPHS: usize = 64;

/// What the launches of a decode step depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// With those that fill it up.
    pub rows: usize,
    /// Of the longest context at most, each of [`SPLIT_TOKENS`] positions.
    pub splits: usize,
}

impl Bucket {
    /// The smallest that holds a batch of single rows; `max_rows` is the largest there is.
    fn of(batch: &Batch, max_rows: usize) -> Bucket {
        let splits = batch.spans.iter().map(|span| span.first_position as usize / SPLIT_TOKENS + 1);
        let splits = splits.max().unwrap_or(1).next_power_of_two();
        Bucket { rows: rows(batch.tokens.len()).min(max_rows), splits }
    }
}

/// Powers of two up to 8; then steps of 8, and of an eighth or less of the rows.
fn rows(count: usize) -> usize {
    let power = count.next_power_of_two();
    if power <= 8 { power } else { count.next_multiple_of((power / 8).max(8)) }
}

/// Launches that the device keeps.
struct Graph {
    device: Arc<dyn Device>,
    id: GraphId,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { self.device.free_graph(self.id) };
    }
}

/// What there is of a bucket: a graph from its second step on.
struct Kept {
    graph: Option<Graph>,
    last_used: u64,
}

/// How a step is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Kernel by kernel.
    Direct,
    /// The same, and kept for the next one.
    Captured,
    /// It has been, as a graph.
    Replayed,
}

pub struct Graphs {
    /// 0: there are none.
    max_rows: usize,
    kept: HashMap<Bucket, Kept>,
    /// Of the device when the graphs were captured.
    allocations: u64,
    steps: u64,
    capturing: Option<Bucket>,
}

impl Default for Graphs {
    fn default() -> Self {
        Graphs { max_rows: MAX_ROWS, kept: HashMap::new(), allocations: 0, steps: 0, capturing: None }
    }
}

impl Graphs {
    /// For steps of at most `max_rows` rows; 0: none.
    pub fn new(max_rows: usize) -> Graphs {
        Graphs { max_rows, ..Graphs::default() }
    }

    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// The bucket of a batch of single rows; `None` where it is to be launched as it is.
    pub fn bucket(&self, batch: &Batch) -> Option<Bucket> {
        (batch.tokens.len() <= self.max_rows).then(|| Bucket::of(batch, self.max_rows))
    }

    /// Starts the step of a bucket whose arrays are on the device, or says how it is to be launched.
    pub fn begin(&mut self, device: &Arc<dyn Device>, bucket: Bucket) -> Result<Way, DeviceError> {
        if self.allocations != device.allocations() {
            // There is room for all that has run once: buffers only grow.
            self.kept.values_mut().for_each(|kept| kept.graph = None);
            self.allocations = device.allocations();
        }
        self.steps += 1;
        let Some(kept) = self.kept.get_mut(&bucket) else {
            self.make_room();
            self.kept.insert(bucket, Kept { graph: None, last_used: self.steps });
            return Ok(Way::Direct);
        };
        kept.last_used = self.steps;
        if let Some(graph) = &kept.graph {
            // SAFETY: the memory of its capture is all there, as none was asked for since.
            unsafe { device.launch_graph(graph.id)? };
            return Ok(Way::Replayed);
        }
        match device.begin_capture() {
            Ok(()) => {
                self.capturing = Some(bucket);
                Ok(Way::Captured)
            }
            Err(error) => {
                self.give_up(&error);
                Ok(Way::Direct)
            }
        }
    }

    pub fn is_capturing(&self) -> bool {
        self.capturing.is_some()
    }

    /// Ends the capture, and launches what was captured unless `failure` came in between. False: nothing was launched, and the
    /// step is to be launched anew, kernel by kernel.
    pub fn end(&mut self, device: &Arc<dyn Device>, failure: Option<DeviceError>) -> Result<bool, DeviceError> {
        let Some(bucket) = self.capturing.take() else { return Ok(true) };
        let captured = device.end_capture().map(|id| Graph { device: device.clone(), id });
        let graph = match failure.map_or(captured, Err) {
            Ok(graph) => graph,
            Err(error) => {
                self.give_up(&error);
                return Ok(false);
            }
        };
        // SAFETY: the memory is that of its capture.
        unsafe { device.launch_graph(graph.id)? };
        self.allocations = device.allocations();
        self.kept.insert(bucket, Kept { graph: Some(graph), last_used: self.steps });
        let num_graphs = self.kept.values().filter(|kept| kept.graph.is_some()).count();
        let free_mib = device.free_bytes().map_or(0, |bytes| bytes >> 20);
        let Bucket { rows, splits } = bucket;
        tracing::debug!(rows, splits, num_graphs, free_mib, "a decode step was captured as a CUDA graph");
        Ok(true)
    }

    fn make_room(&mut self) {
        if self.kept.len() >= MAX_GRAPHS
            && let Some((&oldest, _)) = self.kept.iter().min_by_key(|(_, kept)| kept.last_used)
        {
            self.kept.remove(&oldest);
        }
    }

    fn give_up(&mut self, error: &DeviceError) {
        tracing::warn!("decode steps are launched kernel by kernel from now on, as capturing one failed: {error}");
        *self = Graphs::new(0);
    }

    #[cfg(test)]
    pub fn num_graphs(&self) -> usize {
        self.kept.values().filter(|kept| kept.graph.is_some()).count()
    }
}
