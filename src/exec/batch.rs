//! What devices rely on in a batch.

use super::BLOCK_TOKENS;
use crate::model::ops::Batch;

/// Panics where a batch is not well-formed: spans overlap, are out of order or longer than their tables, or two rows have
/// one slot. `sorted` is scratch space.
pub fn check(batch: &Batch, sorted: &mut Vec<u32>) {
    let num_rows = batch.tokens.len();
    let mut rows_seen = 0;
    for span in &batch.spans {
        assert!(span.row_start >= rows_seen, "spans overlap at row {}", span.row_start);
        assert!(span.num_rows > 0, "a span of no rows");
        rows_seen = span.row_start + span.num_rows;
        assert!(rows_seen as usize <= num_rows, "span of rows to {rows_seen} in a step of {num_rows}");
        let table_end = (span.table_start + span.num_blocks) as usize;
        assert!(table_end <= batch.tables.len(), "block table to {table_end} of {}", batch.tables.len());
        let context = (span.first_position + span.num_rows) as usize;
        assert!(span.num_blocks as usize * BLOCK_TOKENS >= context, "block table shorter than its sequence");
    }
    sorted.clone_from(&batch.slots);
    sorted.sort_unstable();
    assert!(sorted.windows(2).all(|pair| pair[0] != pair[1]), "two rows of a step have one slot");
}
