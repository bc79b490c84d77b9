//! A step as the CPU's operations want it.

use super::super::batch;
use crate::model::ops::Batch;

/// A batch, [checked](batch::check), and what would be looked up in it again in every layer.
#[derive(Default)]
pub struct CpuStep {
    pub batch: Batch,
    /// `[rows]` whether the row is the last of its span.
    pub ends: Vec<bool>,
    sorted: Vec<u32>,
}

impl CpuStep {
    pub fn set(&mut self, of: &Batch) {
        let CpuStep { batch: own, ends, sorted } = self;
        batch::check(of, sorted);
        let Batch { tokens, positions, slots, spans, tables, logit_rows } = own;
        tokens.clone_from(&of.tokens);
        positions.clone_from(&of.positions);
        slots.clone_from(&of.slots);
        spans.clone_from(&of.spans);
        tables.clone_from(&of.tables);
        logit_rows.clone_from(&of.logit_rows);
        ends.clear();
        ends.resize(tokens.len(), false);
        for span in spans {
            ends[(span.row_start + span.num_rows) as usize - 1] = true;
        }
    }
}
