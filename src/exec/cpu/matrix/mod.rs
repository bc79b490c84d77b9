//! Weight matrices in the order in which the kernels read them.
//!
//! Owns their layout and their bytes. Never knows what a matrix is for.
//!
//! Outputs (rows) are cut into panels of a few vectors; inside a panel the input dimension `k` runs slowest, so that one
//! vector holds one `k` of neighbouring outputs, a product needs no sum across lanes, and the whole matrix is one stream
//! of memory. bfloat16 keeps two neighbouring `k` of an output together, as its dot instruction takes them. Outputs that
//! fill no panel stand in panels of one vector, the last of them padded with zeros.

mod group;
mod pack;

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::isa::Isa;
use super::memory::Pages;
pub use crate::exec::format::{
    Factors, Format, GROUP, Group, HALF_ZERO, Int4, Int4Min, Int4Super, Int5, Int5Min, Int5Super, Int6Super, Int8,
    Kind, Quantised,
};
use crate::model::weights::Tensor;

/// `[out, in]`, shared: a clone refers to the same bytes, also in another executor of the same level.
#[derive(Clone)]
pub struct CpuMatrix(Arc<Sections>);

struct Sections {
    rows: usize,
    cols: usize,
    sections: Vec<Section>,
}

/// Neighbouring outputs of one format: a file may hold q in one and v in another.
pub struct Section {
    pub first_row: usize,
    pub layout: Layout,
    bytes: Pages,
}

/// How lanes of a format are laid out.
impl Format {
    /// Neighbouring `k` of an output that stand together.
    fn depth_step(self) -> usize {
        match self {
            Format::Bf16 => 2,
            other => other.kind().map_or(1, Kind::record_weights),
        }
    }

    /// Bytes of a lane up to this `k`.
    fn lane_bytes(self, k: usize) -> usize {
        match self {
            Format::F32 => 4 * k,
            Format::F16 | Format::Bf16 => 2 * k,
            other => other.kind().map_or(0, |kind| kind.lane_bytes(k)),
        }
    }
}

/// Where everything is.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Lanes of a vector.
    width: usize,
    /// Vectors of a whole panel.
    vectors: usize,
}

/// Neighbouring outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panel {
    /// Of its first byte.
    pub offset: usize,
    pub first_row: usize,
    /// Outputs, of at most `vectors * width`.
    pub num_rows: usize,
    pub vectors: usize,
}

impl Layout {
    pub fn new(isa: Isa, format: Format, rows: usize, cols: usize) -> Layout {
        Layout { format, rows, cols, width: isa.width(), vectors: isa.panel_vectors() }
    }

    /// `cols`, rounded up to what stands together.
    pub fn depth(&self) -> usize {
        self.cols.next_multiple_of(self.format.depth_step())
    }

    /// Bytes of a lane from its first `k` up to this one: an even one, and a whole number of groups.
    pub fn lane_bytes(&self, k: usize) -> usize {
        self.format.lane_bytes(k)
    }

    /// Outputs of a whole panel.
    pub fn panel_rows(&self) -> usize {
        self.width * self.vectors
    }

    pub fn num_panels(&self) -> usize {
        self.rows / self.panel_rows() + (self.rows % self.panel_rows()).div_ceil(self.width)
    }

    pub fn panel(&self, index: usize) -> Panel {
        let whole = self.rows / self.panel_rows();
        let (first_row, vectors) = match index.checked_sub(whole) {
            None => (index * self.panel_rows(), self.vectors),
            Some(narrow) => (whole * self.panel_rows() + narrow * self.width, 1),
        };
        let num_rows = (vectors * self.width).min(self.rows - first_row);
        Panel { offset: first_row * self.lane_bytes(self.depth()), first_row, num_rows, vectors }
    }

    pub fn panel_bytes(&self, panel: Panel) -> Range<usize> {
        panel.offset..panel.offset + panel.vectors * self.width * self.lane_bytes(self.depth())
    }

    pub fn bytes(&self) -> usize {
        match self.num_panels() {
            0 => 0,
            n => self.panel_bytes(self.panel(n - 1)).end,
        }
    }

    /// The panel of an output, and its lane there.
    fn place(&self, row: usize) -> (Panel, usize) {
        let whole = self.rows / self.panel_rows();
        let index = match row / self.panel_rows() {
            index if index < whole => index,
            _ => whole + (row - whole * self.panel_rows()) / self.width,
        };
        let panel = self.panel(index);
        (panel, row - panel.first_row)
    }

    /// Where `k` of a lane of floating-point numbers stands in its panel, in elements.
    fn element(&self, panel: Panel, lane: usize, k: usize) -> usize {
        let step = self.format.depth_step();
        (k / step * panel.vectors * self.width + lane) * step + k % step
    }
}

impl CpuMatrix {
    /// Stacks `parts` by rows and packs them for `isa`, on all cores. Panics where they are no matrices of one width (the
    /// decoder checks the shapes of the checkpoint first).
    ///
    /// `format`: `None` as each part has it.
    pub fn new(isa: Isa, parts: &[Tensor], format: Option<Format>) -> CpuMatrix {
        let cols = parts[0].shape.last().copied().unwrap_or(0);
        for tensor in parts {
            assert_eq!(tensor.shape.len(), 2, "{} is no matrix: shape {:?}", tensor.name, tensor.shape);
            assert_eq!(tensor.shape[1], cols, "{} and {} differ in width", tensor.name, parts[0].name);
        }
        let format_of = |part: &Tensor| format.unwrap_or_else(|| Format::of(part.dtype));
        let (mut rows, mut sections) = (0, Vec::new());
        for parts in parts.chunk_by(|a, b| format_of(a) == format_of(b)) {
            let num_rows = parts.iter().map(|part| part.shape[0]).sum();
            let layout = Layout::new(isa, format_of(&parts[0]), num_rows, cols);
            sections.push(Section { first_row: rows, layout, bytes: pack::pack(&layout, parts) });
            rows += num_rows;
        }
        CpuMatrix(Arc::new(Sections { rows, cols, sections }))
    }

    /// One for each run of outputs in one format, in order.
    pub fn sections(&self) -> &[Section] {
        &self.0.sections
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.0.cols
    }

    /// `to = row * scale`, gathered from the row's panel: for embeddings. `to` has `cols` values.
    pub fn read_row(&self, row: usize, scale: f32, to: &mut [f32]) {
        assert!(row < self.rows(), "row {row} of a matrix with {} rows", self.rows());
        assert_eq!(to.len(), self.cols(), "width of a row");
        let section = self.sections().partition_point(|section| section.first_row <= row) - 1;
        let section = &self.sections()[section];
        section.read_row(row - section.first_row, scale, to);
    }
}

impl Section {
    /// The first of the [`Layout`]'s bytes, aligned to a cache line.
    pub fn as_ptr(&self) -> *const u8 {
        self.bytes.as_bytes().as_ptr()
    }

    fn read_row(&self, row: usize, scale: f32, to: &mut [f32]) {
        let layout = &self.layout;
        let (panel, lane) = layout.place(row);
        let bytes = &self.bytes.as_bytes()[layout.panel_bytes(panel)];
        let place = |k: usize| layout.element(panel, lane, k);
        match (layout.format, layout.format.kind()) {
            (_, Some(kind)) => {
                for (index, to) in to.chunks_mut(GROUP).enumerate() {
                    let group = group::get(layout, kind, panel, lane, index, bytes);
                    to.iter_mut().enumerate().for_each(|(k, x)| *x = group.value(kind, k) * scale);
                }
            }
            (Format::F16, _) => gather(bytes, to, place, |b| f16::from_ne_bytes(b).to_f32() * scale),
            (Format::Bf16, _) => gather(bytes, to, place, |b| bf16::from_ne_bytes(b).to_f32() * scale),
            _ => gather(bytes, to, place, |b| f32::from_ne_bytes(b) * scale),
        }
    }
}

fn gather<const N: usize>(bytes: &[u8], to: &mut [f32], place: impl Fn(usize) -> usize, read: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks();
    to.iter_mut().enumerate().for_each(|(k, x)| *x = read(elements[place(k)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_follow_each_other_and_every_output_has_its_place() {
        for isa in Isa::available() {
            for format in [Format::F32, Format::F16, Format::Bf16].into_iter().chain(Format::QUANTISED) {
                for rows in [1, 7, 8, 16, 17, 63, 64, 65, 130, 200] {
                    let layout = Layout::new(isa, format, rows, 9);
                    let (mut row, mut byte) = (0, 0);
                    for index in 0..layout.num_panels() {
                        let panel = layout.panel(index);
                        assert_eq!((panel.first_row, layout.panel_bytes(panel).start), (row, byte), "{isa} {rows}");
                        for lane in 0..panel.num_rows {
                            assert_eq!(layout.place(row + lane), (panel, lane), "{isa} {rows}");
                        }
                        row += panel.num_rows;
                        byte = layout.panel_bytes(panel).end;
                    }
                    assert_eq!((row, byte), (rows, layout.bytes()), "{isa}");
                    let lane = layout.lane_bytes(layout.depth());
                    assert_eq!(rows.next_multiple_of(layout.width) * lane, byte, "{isa}: padding to a vector, no more");
                }
            }
        }
    }

    #[test]
    fn blocks_of_a_file_take_a_twentieth_more_memory_at_most() {
        use crate::model::weights::Dtype::*;
        for isa in Isa::available() {
            for dtype in [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K] {
                let (rows, cols) = (160, 512);
                let (file, packed) =
                    (rows * dtype.row_bytes(cols), Layout::new(isa, Format::of(dtype), rows, cols).bytes());
                assert!(packed >= file && packed * 20 <= file * 21, "{isa} {dtype}: {file} bytes become {packed}");
            }
        }
    }
}
