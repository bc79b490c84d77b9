//! The KV cache on the device, as kernels/README.md lays it out: per layer K and V, `[block][kv_head][token][head_dim]`.
//!
//! Never knows which sequence a block belongs to.

use std::sync::Arc;

use super::device::{Address, Device};
use super::launch::Launch;
use super::memory::{Buffer, Scratch};
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::{DeviceError, KvDtype};
use crate::model::spec::Spec;

/// Blocks of a grid that share the copying of a region.
const COPY_CHUNKS: usize = 8;

pub struct CudaKv {
    pub dtype: KvDtype,
    layers: Vec<Layer>,
    /// Addresses of all regions of values, and of all of scales.
    values: Regions,
    scales: Option<Regions>,
    num_blocks: usize,
    pairs: Scratch,
}

/// K, then V.
struct Layer {
    values: [Buffer; 2],
    scales: Option<[Buffer; 2]>,
}

struct Regions {
    addresses: Buffer,
    count: usize,
    block_bytes: usize,
}

impl Regions {
    fn new<'a>(
        device: &Arc<dyn Device>,
        regions: impl Iterator<Item = &'a Buffer>,
        block_bytes: usize,
    ) -> Result<Regions, DeviceError> {
        let addresses: Vec<Address> = regions.map(Buffer::address).collect();
        Ok(Regions { count: addresses.len(), addresses: Buffer::of(device, &addresses)?, block_bytes })
    }
}

/// K and V bytes of one block in all layers; `None` where no address space could hold it.
pub fn kv_bytes_per_block(spec: &Spec, dtype: KvDtype) -> Option<usize> {
    let tokens = spec.num_kv_heads.checked_mul(BLOCK_TOKENS)?;
    tokens.checked_mul(spec.head_dim)?.checked_mul(4)?.checked_mul(2 * spec.layers.len())?;
    let (values, scales) = block_bytes(spec, dtype);
    Some((values + scales) * 2 * spec.layers.len())
}

/// Bytes of a block of values, and of scales (0 without them), in one region.
fn block_bytes(spec: &Spec, dtype: KvDtype) -> (usize, usize) {
    let tokens = spec.num_kv_heads * BLOCK_TOKENS;
    match dtype {
        KvDtype::F32 => (tokens * spec.head_dim * 4, 0),
        KvDtype::Bf16 => (tokens * spec.head_dim * 2, 0),
        KvDtype::Int8 | KvDtype::Fp8 => (tokens * spec.head_dim, tokens * 4),
    }
}

impl CudaKv {
    pub fn new(
        device: &Arc<dyn Device>,
        spec: &Spec,
        dtype: KvDtype,
        num_blocks: usize,
    ) -> Result<CudaKv, DeviceError> {
        let (value_bytes, scale_bytes) = block_bytes(spec, dtype);
        let pair = |bytes: usize| -> Result<[Buffer; 2], DeviceError> {
            let new = || Buffer::new(device, num_blocks * bytes);
            Ok([new()?, new()?])
        };
        let layer = |_| -> Result<Layer, DeviceError> {
            let scales = if scale_bytes > 0 { Some(pair(scale_bytes)?) } else { None };
            Ok(Layer { values: pair(value_bytes)?, scales })
        };
        let layers = spec.layers.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
        let values = Regions::new(device, layers.iter().flat_map(|layer| &layer.values), value_bytes)?;
        let scales = match scale_bytes {
            0 => None,
            bytes => Some(Regions::new(device, layers.iter().filter_map(|l| l.scales.as_ref()).flatten(), bytes)?),
        };
        Ok(CudaKv { dtype, layers, values, scales, num_blocks, pairs: Scratch::default() })
    }

    pub fn bytes(&self) -> usize {
        let of = |regions: &Regions| regions.count * regions.block_bytes * self.num_blocks;
        of(&self.values) + self.scales.as_ref().map_or(0, of)
    }

    /// Of K or V of a layer, and of the scales of one.
    #[cfg(test)]
    pub fn region_bytes(&self) -> (usize, usize) {
        let of = |regions: &Regions| regions.block_bytes * self.num_blocks;
        (of(&self.values), self.scales.as_ref().map_or(0, of))
    }

    /// Of K, V, and the scales of each, as kernels take them; 0 without scales.
    pub fn addresses(&self, layer: usize) -> [Address; 4] {
        let Layer { values: [k, v], scales } = &self.layers[layer];
        let [k_scales, v_scales] = scales.as_ref().map_or([0; 2], |scales| scales.each_ref().map(Buffer::address));
        [k.address(), v.address(), k_scales, v_scales]
    }

    /// Copies whole blocks `(from, to)` in every layer, pair after pair.
    pub fn copy_blocks(&mut self, device: &Arc<dyn Device>, pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        let words: Vec<u32> = pairs.iter().flat_map(|&(from, to)| [from, to]).collect();
        assert!(words.iter().all(|block| (*block as usize) < self.num_blocks), "blocks of {}", self.num_blocks);
        let list = self.pairs.reserve(device, size_of_val(&words[..]))?;
        list.write(0, &words)?;
        for regions in std::iter::once(&self.values).chain(&self.scales) {
            let launch = Launch::new("copy_blocks", [COPY_CHUNKS, regions.count, usize::from(!pairs.is_empty())])
                .buffer(&regions.addresses)
                .buffer(list)
                .int(pairs.len())
                .int(regions.block_bytes);
            // SAFETY: the blocks are inside every region, as checked above.
            unsafe { launch.start(&**device)? };
        }
        Ok(())
    }
}
