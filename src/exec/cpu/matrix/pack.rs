//! From a checkpoint's rows to panels.

use half::{bf16, f16};
use rayon::prelude::*;

use super::super::isa::Isa;
use super::super::memory::{Pages, Shared};
use super::group::{self, GROUP, Group, Int4, Int8};
use super::{Format, Layout, Packed, Panel};
use crate::model::weights::Tensor;

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
                parts[part].read_row(row - first_rows[part], values);
                write_lane(&layout, panel, lane, values, to);
            }
        },
    );
    parts.iter().for_each(Tensor::release);
    Packed { layout, bytes }
}

fn write_lane(layout: &Layout, panel: Panel, lane: usize, values: &[f32], to: &mut [u8]) {
    match layout.format {
        Format::F32 => scatter(layout, panel, lane, values, to, f32::to_ne_bytes),
        Format::F16 => scatter(layout, panel, lane, values, to, |x| f16::from_f32(x).to_ne_bytes()),
        Format::Bf16 => scatter(layout, panel, lane, values, to, |x| bf16::from_f32(x).to_ne_bytes()),
        Format::Int8 => {
            for (index, values) in values.chunks(GROUP).enumerate() {
                group::put::<Int8>(layout, panel, lane, index, &Group::int8(values), to);
            }
        }
        Format::Int4 | Format::Int4Min => {
            for (index, values) in values.chunks(GROUP).enumerate() {
                group::put::<Int4>(layout, panel, lane, index, &Group::int4(values), to);
            }
        }
    }
}

fn scatter<const N: usize>(
    layout: &Layout,
    panel: Panel,
    lane: usize,
    values: &[f32],
    to: &mut [u8],
    element: impl Fn(f32) -> [u8; N],
) {
    let (to, _) = to.as_chunks_mut();
    values.iter().enumerate().for_each(|(k, &x)| to[layout.element(panel, lane, k)] = element(x));
}
