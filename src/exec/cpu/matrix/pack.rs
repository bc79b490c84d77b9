//! From a checkpoint's rows to panels.

use half::{bf16, f16};
use rayon::prelude::*;

use super::super::isa::Isa;
use super::super::memory::{Pages, Shared};
use super::group::{self, GROUP, Group, Int4, Int4Min, Int8, Quantised};
use super::{Format, Layout, Packed, Panel};
use crate::model::weights::{Dtype, Tensor};

/// Packs the rows of `parts`, stacked.
pub(super) fn pack(isa: Isa, parts: &[Tensor], format: Format) -> Packed {
    let cols = parts[0].shape.last().copied().unwrap_or(0);
    let mut first_rows = Vec::with_capacity(parts.len());
    let mut rows = 0;
    for tensor in parts {
        assert_eq!(tensor.shape.len(), 2, "{} is no matrix: shape {:?}", tensor.name, tensor.shape);
        assert_eq!(tensor.shape[1], cols, "{} and {} differ in width", tensor.name, parts[0].name);
        first_rows.push(rows);
        rows += tensor.shape[0];
    }
    let layout = Layout::new(isa, format, rows, cols);
    let mut bytes = Pages::new(layout.bytes());
    let to = Shared::new(bytes.as_bytes_mut());
    (0..layout.num_panels()).into_par_iter().for_each_init(
        || vec![0.0; cols],
        |values, index| {
            let panel = layout.panel(index);
            let range = layout.panel_bytes(panel);
            // SAFETY: panels do not overlap, and each is packed once.
            let to = unsafe { to.slice(range.start, range.len()) };
            for lane in 0..panel.num_rows {
                let row = panel.first_row + lane;
                let part = first_rows.partition_point(|first| *first <= row) - 1;
                let lane = Lane { layout: &layout, panel, lane };
                lane.write(&parts[part], row - first_rows[part], values, to);
            }
            release(parts, &first_rows, panel);
        },
    );
    parts.iter().for_each(Tensor::release);
    Packed { layout, bytes }
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

/// The format in which weights stand in memory so that no number changes: a file's own, where the kernels know it.
pub(super) fn format_of(parts: &[Tensor]) -> Format {
    let all = |dtypes: &[Dtype]| parts.iter().all(|part| dtypes.contains(&part.dtype));
    match () {
        _ if all(&[Dtype::F16]) => Format::F16,
        _ if all(&[Dtype::Bf16]) => Format::Bf16,
        _ if all(&[Dtype::Q4_0]) => Format::Int4,
        _ if all(&[Dtype::Q4_1]) => Format::Int4Min,
        _ if all(&[Dtype::Q8_0, Dtype::Q5_0, Dtype::Q4_0]) => Format::Int8,
        _ => Format::F32,
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
        match (from.dtype, format) {
            (Dtype::Q8_0 | Dtype::Q5_0 | Dtype::Q4_0, Format::Int8) => {
                return self.copy::<Int8>(from, row, to);
            }
            (Dtype::Q4_0, Format::Int4) => return self.copy::<Int4>(from, row, to),
            (Dtype::Q4_1, Format::Int4Min) => return self.copy::<Int4Min>(from, row, to),
            _ => from.read_row(row, values),
        }
        match format {
            Format::F32 => self.scatter(values, to, f32::to_ne_bytes),
            Format::F16 => self.scatter(values, to, |x| f16::from_f32(x).to_ne_bytes()),
            Format::Bf16 => self.scatter(values, to, |x| bf16::from_f32(x).to_ne_bytes()),
            Format::Int8 => self.round::<Int8>(values, Group::int8, to),
            Format::Int4 => self.round::<Int4>(values, Group::int4, to),
            Format::Int4Min => unreachable!("only a file's own blocks have minima"),
        }
    }

    fn scatter<const N: usize>(&self, values: &[f32], to: &mut [u8], element: impl Fn(f32) -> [u8; N]) {
        let (to, _) = to.as_chunks_mut();
        values.iter().enumerate().for_each(|(k, &x)| to[self.layout.element(self.panel, self.lane, k)] = element(x));
    }

    fn round<Q: Quantised>(&self, values: &[f32], group: impl Fn(&[f32]) -> Group, to: &mut [u8]) {
        for (index, values) in values.chunks(GROUP).enumerate() {
            group::put::<Q>(self.layout, self.panel, self.lane, index, &group(values), to);
        }
    }

    /// The file's blocks as groups: the same numbers, scales and minima in other places.
    fn copy<Q: Quantised>(&self, from: &Tensor, row: usize, to: &mut [u8]) {
        let row_bytes = from.dtype.row_bytes(self.layout.cols);
        let blocks = from.data()[row * row_bytes..][..row_bytes].chunks_exact(from.dtype.block_bytes());
        for (index, block) in blocks.enumerate() {
            group::put::<Q>(self.layout, self.panel, self.lane, index, &Group::of_block::<Q>(from.dtype, block), to);
        }
    }
}
