//! The tensors of a file as [`Tensor`]s: mapped where they can be, dequantised or reordered where they must be.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::error::GgufError;
use super::llama::{self, Place, RowOrder};
use super::reader::{Container, TensorEntry};
use crate::model::decoder::Progress;
use crate::model::spec::Spec;
use crate::model::weights::{Bytes, Tensor};

/// A buffer of our own, aligned for float32.
struct Buffer(Vec<u32>);

impl Bytes for Buffer {
    fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// All tensors by their Hugging Face names.
pub(super) fn load(file: &Container, spec: &Spec, progress: Progress) -> Result<BTreeMap<String, Tensor>, GgufError> {
    let placed = file
        .tensors
        .iter()
        .filter(|(name, _)| *name != llama::ROPE_FACTORS)
        .map(|(name, entry)| check(name, entry, llama::place(name, spec)?).map(|place| (place, entry)))
        .collect::<Result<Vec<_>, _>>()?;
    let total = placed.iter().map(|(_, entry)| entry.range.len() as u64).sum();
    let mut done = 0;
    // Tensors one after the other, rows in parallel: the pages of the file are read in about their order.
    let tensors = placed.into_iter().map(|(place, entry)| {
        let tensor = tensor(file, &place, entry);
        done += entry.range.len() as u64;
        progress(done, total);
        (place.name, tensor)
    });
    Ok(tensors.collect())
}

/// The divisors of the rotary frequencies, if the file has them.
pub(super) fn rope_factors(file: &Container) -> Option<Vec<f32>> {
    let entry = file.tensors.get(llama::ROPE_FACTORS)?;
    let mut factors = vec![0.0; entry.shape.iter().product()];
    entry.format.dequantise(&file.bytes.as_bytes()[entry.range.clone()], &mut factors);
    Some(factors)
}

/// Rows can only be put in order where they are whole and split evenly over the heads.
fn check(name: &str, entry: &TensorEntry, place: Place) -> Result<Place, GgufError> {
    let RowOrder::Interleaved { num_heads } = place.rows else { return Ok(place) };
    let num_rows = entry.shape[0];
    if !num_rows.is_multiple_of(2 * num_heads) {
        let message = format!("has {num_rows} rows, which are no whole pairs for {num_heads} heads");
        return Err(GgufError::tensor(name, message));
    }
    if entry.shape.len() == 1 && entry.format.is_quantised() {
        return Err(GgufError::tensor(name, "is a quantised bias, which is not supported; expected F32, F16 or BF16"));
    }
    Ok(place)
}

fn tensor(file: &Container, place: &Place, entry: &TensorEntry) -> Tensor {
    let name: Arc<str> = place.name.as_str().into();
    let (shape, dtype) = (entry.shape.clone(), entry.format.dtype());
    if place.rows == RowOrder::AsStored && !entry.format.is_quantised() {
        return Tensor::new(name, dtype, shape, file.bytes.clone(), entry.range.clone());
    }
    let size = shape.iter().product::<usize>() * dtype.bytes();
    let mut words = vec![0u32; size.div_ceil(4)];
    fill(&file.bytes.as_bytes()[entry.range.clone()], entry, place.rows, &mut words, size);
    Tensor::new(name, dtype, shape, Arc::new(Buffer(words)), 0..size)
}

/// Writes the rows in the order that is wanted, as elements of the loaded type.
fn fill(stored: &[u8], entry: &TensorEntry, order: RowOrder, words: &mut [u32], size: usize) {
    let num_rows = entry.shape[0];
    let source = |row: usize| -> Range<usize> {
        let bytes = stored.len() / num_rows;
        let at = order.source(row, num_rows) * bytes;
        at..at + bytes
    };
    if entry.format.is_quantised() {
        let out: &mut [f32] = bytemuck::cast_slice_mut(words);
        let width = out.len() / num_rows;
        out.par_chunks_mut(width).enumerate().for_each(|(row, out)| entry.format.dequantise(&stored[source(row)], out));
    } else {
        let out: &mut [u8] = &mut bytemuck::cast_slice_mut(words)[..size];
        let width = out.len() / num_rows;
        out.par_chunks_mut(width).enumerate().for_each(|(row, out)| out.copy_from_slice(&stored[source(row)]));
    }
}
