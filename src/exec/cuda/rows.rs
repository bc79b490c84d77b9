//! Activations on the device.

use std::sync::Arc;

use super::device::{Address, Device};
use super::memory::Scratch;
use crate::model::ops::DeviceError;

/// What the values of rows are: the residual stream and logits float32, what matrix products take and give bfloat16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Element {
    #[default]
    F32,
    Bf16,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }
}

/// `[rows, width]`.
#[derive(Default)]
pub struct CudaRows {
    memory: Scratch,
    rows: usize,
    width: usize,
    element: Element,
}

impl CudaRows {
    /// Of unspecified values.
    pub fn reshape(
        &mut self,
        device: &Arc<dyn Device>,
        rows: usize,
        width: usize,
        element: Element,
    ) -> Result<(), DeviceError> {
        (self.rows, self.width, self.element) = (rows, width, element);
        self.memory.reserve(device, rows * width * element.bytes()).map(|_| ())
    }

    /// Of what was written by a graph: the first of its rows.
    pub fn show(&mut self, rows: usize, width: usize, element: Element) {
        (self.rows, self.width, self.element) = (rows, width, element);
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn count(&self) -> usize {
        self.rows * self.width
    }

    pub fn element(&self) -> Element {
        self.element
    }

    pub fn address(&self) -> Address {
        self.memory.address()
    }

    /// Brings them to the host, as float32.
    pub fn read(&self, device: &Arc<dyn Device>, to: &mut Vec<f32>) -> Result<(), DeviceError> {
        to.resize(self.count(), 0.0);
        match self.element {
            // SAFETY: `reshape` reserved as many.
            Element::F32 => unsafe { device.download(bytemuck::cast_slice_mut(to), self.address()) },
            Element::Bf16 => {
                let mut values = vec![half::bf16::ZERO; self.count()];
                // SAFETY: as above.
                unsafe { device.download(bytemuck::cast_slice_mut(&mut values), self.address())? };
                to.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_f32());
                Ok(())
            }
        }
    }
}
