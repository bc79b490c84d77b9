//! From a checkpoint's rows to panels.

use half::{bf16, f16};
use rayon::prelude::*;

use super::super::memory::{Pages, Shared};
use super::{Format, Layout, Panel, group};
use crate::model::weights::Tensor;

/// Packs the rows of `parts`, stacked: as many of them and as wide as the layout says.
pub(super) fn pack(layout: &Layout, parts: &[Tensor]) -> Pages {
    let mut first_rows = Vec::with_capacity(parts.len());
    parts.iter().fold(0, |row, part| {
        first_rows.push(row);
        row + part.shape[0]
    });
    let mut bytes = Pages::new(layout.bytes());
    let to = Shared::new(bytes.as_bytes_mut());
    (0..layout.num_panels()).into_par_iter().for_each_init(
        || vec![0.0; layout.cols],
        |values, index| {
            let panel = layout.panel(index);
            let range = layout.panel_bytes(panel);
            // SAFETY: panels do not overlap, and each is packed once.
            let to = unsafe { to.slice(range.start, range.len()) };
            for lane in 0..panel.num_rows {
                let row = panel.first_row + lane;
                let part = first_rows.partition_point(|first| *first <= row) - 1;
                let lane = Lane { layout, panel, lane };
                lane.write(&parts[part], row - first_rows[part], values, to);
            }
            release(parts, &first_rows, panel);
        },
    );
    parts.iter().for_each(Tensor::release);
    bytes
}

/// Gives a panel's rows back as soon as they are packed, so that a large matrix is never in memory twice.
fn release(parts: &[Tensor], first_rows: &[usize], panel: Panel) {
    for (part, first) in parts.iter().zip(first_rows) {
        let start = panel.first_row.max(*first);
        let end = (panel.first_row + panel.num_rows).min(first + part.shape[0]);
        if start < end {
            part.rows(start - first..end - first).release();
        }
    }
}

/// Where a row goes.
struct Lane<'a> {
    layout: &'a Layout,
    panel: Panel,
    lane: usize,
}

impl Lane<'_> {
    /// `to` is the panel; `values` has room for a row.
    fn write(&self, from: &Tensor, row: usize, values: &mut [f32], to: &mut [u8]) {
        let format = self.layout.format;
        if format.kind().is_some() {
            return format.each_group(from, row, values, |kind, index, group| {
                group::put(self.layout, kind, self.panel, self.lane, index, group, to);
            });
        }
        from.read_row(row, values);
        match format {
            Format::F16 => self.scatter(values, to, |x| f16::from_f32(x).to_ne_bytes()),
            Format::Bf16 => self.scatter(values, to, |x| bf16::from_f32(x).to_ne_bytes()),
            _ => self.scatter(values, to, f32::to_ne_bytes),
        }
    }

    fn scatter<const N: usize>(&self, values: &[f32], to: &mut [u8], element: impl Fn(f32) -> [u8; N]) {
        let (to, _) = to.as_chunks_mut();
        values.iter().enumerate().for_each(|(k, &x)| to[self.layout.element(self.panel, self.lane, k)] = element(x));
    }
}
