//! The kernels' sources, which the program carries for chips that it has no machine code for. They need nothing else.

use sha2::{Digest, Sha256};

/// A file of `kernels/`.
pub struct Source {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! sources {
    ($($name:literal)*) => {
        &[$(Source { name: $name, text: include_str!(concat!("../../../kernels/", $name)) }),*]
    };
}

/// What is compiled, one by one.
pub static KERNELS: &[Source] = sources! {
    "attention_decode.cu" "attention_merge.cu" "attention_plain.cu" "attention_prefill.cu" "elementwise.cu" "gemm.cu"
    "gemm_fp8.cu" "gemm_int4.cu" "gemm_int8.cu" "gemm_int8_half.cu" "gemm_int8_min.cu" "moe.cu" "norm.cu" "parts.cu"
    "rotate_and_store.cu" "rows.cu" "sample_best.cu" "sample_draw.cu" "sample_score.cu" "sample_weigh.cu"
};

/// What these include.
pub static HEADERS: &[Source] = sources! {
    "attention.h" "attention_copy.h" "attention_records.h" "attention_softmax.h" "attention_tile.h" "dev.h" "experts.h"
    "fp8.h" "gemm.h" "gemm_quant.h" "kv.h" "quant.h" "sample.h" "values.h" "weight.h"
};

/// Changes with any of them.
pub fn hash() -> String {
    let mut hash = Sha256::new();
    for Source { name, text } in KERNELS.iter().chain(HEADERS) {
        hash.update(format!("{name} {}\n{text}", text.len()));
    }
    hex(&hash.finalize())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_carried() {
        let entries = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.ends_with(".cu") || name.ends_with(".h"));
        names.sort();
        let mut carried: Vec<&str> = KERNELS.iter().chain(HEADERS).map(|source| source.name).collect();
        carried.sort_unstable();
        assert_eq!(carried, names);
        assert!(KERNELS.iter().all(|source| source.name.ends_with(".cu")));
    }
}
