//! From a checkpoint's rows to panels.

use half::{bf16, f16};
use rayon::prelude::*;

use super::super::memory::{Pages, Shared};
use super::group::{self, Group};
use super::kind::{GROUP, Kind};
use super::round::{self, Range};
use super::{Format, Layout, Panel};
use crate::model::weights::{Dtype, Tensor};

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

/// The format in which weights stand in memory so that no number changes: the file's own.
pub(super) fn format_of(dtype: Dtype) -> Format {
    match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::Bf16 => Format::Bf16,
        Dtype::Q8_0 => Format::Int8,
        Dtype::Q4_0 => Format::Int4,
        Dtype::Q4_1 => Format::Int4Min(1),
        Dtype::Q5_0 => Format::Int5,
        Dtype::Q5_1 => Format::Int5Min,
        Dtype::Q4K => Format::Int4Super,
        Dtype::Q5K => Format::Int5Super,
        Dtype::Q6K => Format::Int6Super,
    }
}

/// Whether a file's numbers are some of the format's, with the same scales.
fn holds(format: Format, dtype: Dtype) -> bool {
    dtype.is_quantised() && format_of(dtype) == format
        || format == Format::Int8 && matches!(dtype, Dtype::Q5_0 | Dtype::Q4_0)
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
        if let Some(kind) = format.kind().filter(|_| holds(format, from.dtype)) {
            return self.copy(kind, from, row, to);
        }
        from.read_row(row, values);
        match format {
            Format::F32 => self.scatter(values, to, f32::to_ne_bytes),
            Format::F16 => self.scatter(values, to, |x| f16::from_f32(x).to_ne_bytes()),
            Format::Bf16 => self.scatter(values, to, |x| bf16::from_f32(x).to_ne_bytes()),
            Format::Int8 => self.round(values, round::symmetric, to),
            Format::Int4Min(_) => self.round(values, round::sixteen_levels, to),
            other => unreachable!("{other:?} is what files have, not what is rounded to"),
        }
    }

    fn scatter<const N: usize>(&self, values: &[f32], to: &mut [u8], element: impl Fn(f32) -> [u8; N]) {
        let (to, _) = to.as_chunks_mut();
        values.iter().enumerate().for_each(|(k, &x)| to[self.layout.element(self.panel, self.lane, k)] = element(x));
    }

    fn round(&self, values: &[f32], range: impl Fn(&[f32]) -> Range, to: &mut [u8]) {
        let Some(kind) = self.layout.format.kind() else { return };
        for (record, values) in values.chunks(kind.len()).enumerate() {
            let range = range(values);
            for (index, values) in (record * kind.groups..).zip(values.chunks(GROUP)) {
                group::put(self.layout, kind, self.panel, self.lane, index, &range.group(kind, values), to);
            }
        }
    }

    /// The file's blocks as groups: the same numbers, scales and minima in other places.
    fn copy(&self, kind: Kind, from: &Tensor, row: usize, to: &mut [u8]) {
        let row_bytes = from.dtype.row_bytes(self.layout.cols);
        let blocks = from.data()[row * row_bytes..][..row_bytes].chunks_exact(from.dtype.block_bytes());
        let per_block = from.dtype.block_len() / GROUP;
        for (index, block) in (0..).step_by(per_block).zip(blocks) {
            for i in 0..per_block {
                let group = Group::of_block(kind, from.dtype, block, i);
                group::put(self.layout, kind, self.panel, self.lane, index + i, &group, to);
            }
        }
    }
}
