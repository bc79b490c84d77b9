//! The tensor types of the format that are read, by ggml's numbers, and the bytes that their tensors have.

use crate::model::weights::Dtype;

const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";

/// By the number that ggml gives it; the error says what the number is and what is supported.
pub(super) fn dtype(number: u32) -> Result<Dtype, String> {
    match number {
        0 => Ok(Dtype::F32),
        1 => Ok(Dtype::F16),
        2 => Ok(Dtype::Q4_0),
        3 => Ok(Dtype::Q4_1),
        6 => Ok(Dtype::Q5_0),
        7 => Ok(Dtype::Q5_1),
        8 => Ok(Dtype::Q8_0),
        12 => Ok(Dtype::Q4K),
        13 => Ok(Dtype::Q5K),
        14 => Ok(Dtype::Q6K),
        30 => Ok(Dtype::Bf16),
        _ => Err(match other_name(number) {
            Some(name) => format!("has type {name}, which is not supported; supported: {SUPPORTED}"),
            None => format!("has the unknown type {number}; supported: {SUPPORTED}"),
        }),
    }
}

/// Bytes of a tensor of this shape (slowest dimension first).
pub(super) fn size(dtype: Dtype, shape: &[u64]) -> Result<u64, String> {
    let (elements, bytes) = (dtype.block_len() as u64, dtype.block_bytes() as u64);
    let row = shape.last().copied().unwrap_or(1);
    if shape.contains(&0) || !row.is_multiple_of(elements) {
        return Err(format!("has shape {shape:?}; rows of {dtype} need a multiple of {elements} elements"));
    }
    let count = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    // Widened to float32 it has at most eight times as many bytes, which must be addressable too.
    let size = count.and_then(|n| (n / elements).checked_mul(bytes)).filter(|&n| n <= isize::MAX as u64 / 8);
    size.ok_or_else(|| format!("has shape {shape:?}, which is too large"))
}

/// Names of ggml's other types, so that a refusal says what the file's publisher called it.
fn other_name(number: u32) -> Option<&'static str> {
    Some(match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}
