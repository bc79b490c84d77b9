//! The tensors of a file as [`Tensor`]s: mapped as they are, but for those whose rows must be put in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::architecture::{Architecture, Place, RowOrder};
use super::config::ROPE_FACTORS;
use super::error::GgufError;
use super::reader::{Container, TensorEntry};
use crate::model::decoder::Progress;
use crate::model::spec::Spec;
use crate::model::weights::Tensor;

/// All tensors by their Hugging Face names.
pub(super) fn load(
    file: &Container,
    architecture: Architecture,
    spec: &Spec,
    progress: Progress,
) -> Result<BTreeMap<String, Tensor>, GgufError> {
    let placed = file
        .tensors
        .iter()
        .filter(|(name, _)| *name != ROPE_FACTORS || !architecture.has_rope_factors())
        .map(|(name, entry)| check(name, entry, architecture.place(name, spec)?).map(|place| (place, entry)))
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
    let entry = file.tensors.get(ROPE_FACTORS)?;
    Some(mapped(file, ROPE_FACTORS, entry).to_f32())
}

/// Rows can only be put in order where they are whole and split evenly over the heads.
fn check(name: &str, entry: &TensorEntry, place: Place) -> Result<Place, GgufError> {
    let RowOrder::Interleaved { num_heads } = place.rows else { return Ok(place) };
    let num_rows = entry.shape[0];
    if !num_rows.is_multiple_of(2 * num_heads) {
        let message = format!("has {num_rows} rows, which are no whole pairs for {num_heads} heads");
        return Err(GgufError::tensor(name, message));
    }
    if entry.shape.len() == 1 && entry.dtype.is_quantised() {
        return Err(GgufError::tensor(name, "is a quantised bias, which is not supported; expected F32, F16 or BF16"));
    }
    Ok(place)
}

fn tensor(file: &Container, place: &Place, entry: &TensorEntry) -> Tensor {
    let stored = mapped(file, &place.name, entry);
    if place.rows == RowOrder::AsStored {
        return stored;
    }
    let num_rows = entry.shape[0];
    let row_bytes = entry.range.len() / num_rows;
    let mut ordered = vec![0; entry.range.len()];
    ordered.par_chunks_mut(row_bytes).enumerate().for_each(|(row, out)| {
        let at = place.rows.source(row, num_rows) * row_bytes;
        out.copy_from_slice(&stored.data()[at..at + row_bytes]);
    });
    Tensor::new(stored.name, entry.dtype, entry.shape.clone(), Arc::new(ordered), 0..entry.range.len())
}

/// A tensor where it lies.
pub(super) fn mapped(file: &Container, name: &str, entry: &TensorEntry) -> Tensor {
    Tensor::new(name.into(), entry.dtype, entry.shape.clone(), file.bytes.clone(), entry.range.clone())
}
