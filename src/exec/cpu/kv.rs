//! The KV cache's memory.
//!
//! Per layer two regions, `[block][kv_head]` of one tile each: K as `[head_dim][BLOCK_TOKENS]`, so that one vector
//! holds one dimension of a whole block and scores need no horizontal sums; V as `[BLOCK_TOKENS][head_dim]`.
//! Never knows which sequence a block belongs to. Invariant: all indices are checked here, once per tile.

use half::bf16;

use super::memory::ZeroedBytes;
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::KvDtype;
use crate::model::spec::Spec;

/// K and V bytes of one block in all layers; `None` where no address space could hold it.
pub fn kv_bytes_per_block(spec: &Spec, dtype: KvDtype) -> Option<usize> {
    tile_values(spec.head_dim)?
        .checked_mul(2 * dtype.bytes())?
        .checked_mul(spec.num_kv_heads)?
        .checked_mul(spec.layers.len())
}

fn tile_values(head_dim: usize) -> Option<usize> {
    head_dim.checked_mul(BLOCK_TOKENS)
}

pub struct KvCache {
    layers: Vec<LayerKv>,
    dtype: KvDtype,
    num_blocks: usize,
    num_kv_heads: usize,
    head_dim: usize,
    tile_bytes: usize,
}

struct LayerKv {
    k: ZeroedBytes,
    v: ZeroedBytes,
}

impl KvCache {
    /// Panics where the size is beyond the address space; callers size `num_blocks` by [`kv_bytes_per_block`].
    pub fn new(spec: &Spec, dtype: KvDtype, num_blocks: usize) -> KvCache {
        let tile_bytes = tile_values(spec.head_dim).and_then(|values| values.checked_mul(dtype.bytes()));
        let region = tile_bytes.and_then(|b| b.checked_mul(spec.num_kv_heads)?.checked_mul(num_blocks));
        let (Some(tile_bytes), Some(region)) = (tile_bytes, region) else {
            panic!("{num_blocks} KV blocks are more than the address space holds: lower kv.memory");
        };
        let layer = || LayerKv { k: ZeroedBytes::new(region), v: ZeroedBytes::new(region) };
        KvCache {
            layers: spec.layers.iter().map(|_| layer()).collect(),
            dtype,
            num_blocks,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            tile_bytes,
        }
    }

    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Bytes of all layers.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.k.len() + layer.v.len()).sum()
    }

    pub fn has_shape(&self, num_kv_heads: usize, head_dim: usize) -> bool {
        (self.num_kv_heads, self.head_dim) == (num_kv_heads, head_dim)
    }

    fn offset(&self, block: u32, kv_head: usize) -> usize {
        let block = block as usize;
        assert!(block < self.num_blocks, "KV block {block} of {}", self.num_blocks);
        assert!(kv_head < self.num_kv_heads, "KV head {kv_head} of {}", self.num_kv_heads);
        (block * self.num_kv_heads + kv_head) * self.tile_bytes
    }

    /// The K and the V tile of one block and head: `head_dim * BLOCK_TOKENS` elements each.
    #[inline]
    pub fn tiles(&self, layer: usize, block: u32, kv_head: usize) -> (*const u8, *const u8) {
        let offset = self.offset(block, kv_head);
        let layer = &self.layers[layer];
        // SAFETY: `offset` plus one tile is inside both regions.
        unsafe { (layer.k.as_ptr().add(offset), layer.v.as_ptr().add(offset)) }
    }

    /// The way in for several threads, each storing tokens of its own.
    pub fn writer(&mut self, layer: usize) -> KvWriter<'_> {
        let LayerKv { k, v } = &mut self.layers[layer];
        let (k, v) = (k.as_mut_ptr(), v.as_mut_ptr());
        KvWriter { kv: self, k, v }
    }

    /// Copies whole blocks `(from, to)` in every layer, pair after pair.
    pub fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        let block_bytes = self.tile_bytes * self.num_kv_heads;
        for &(from, to) in pairs {
            let (from, to) = (self.offset(from, 0), self.offset(to, 0));
            for layer in &mut self.layers {
                for region in [&mut layer.k, &mut layer.v] {
                    let base = region.as_mut_ptr();
                    // SAFETY: both blocks are inside the region (`offset` checks); `copy` allows from == to.
                    unsafe { std::ptr::copy(base.add(from), base.add(to), block_bytes) };
                }
            }
        }
    }
}

/// One layer's memory for the time in which a step's K and V are stored.
pub struct KvWriter<'a> {
    kv: &'a KvCache,
    k: *mut u8,
    v: *mut u8,
}

// SAFETY: `store` puts the duty of disjointness on its callers; all else is read only.
unsafe impl Sync for KvWriter<'_> {}

impl KvWriter<'_> {
    /// Rounds one token's K and V of one head to the cache's dtype and stores them.
    ///
    /// # Safety
    /// No other thread stores to this slot and head meanwhile.
    pub unsafe fn store(&self, slot: u32, kv_head: usize, k: &[f32], v: &[f32]) {
        assert!(
            k.len() == self.kv.head_dim && v.len() == self.kv.head_dim,
            "K and V of {} dimensions",
            self.kv.head_dim
        );
        let offset = self.kv.offset(slot / BLOCK_TOKENS as u32, kv_head);
        let token = slot as usize % BLOCK_TOKENS;
        // SAFETY: the tile is inside the regions, aligned for its elements (tiles are multiples of 32 bytes in
        // regions aligned to 64), and `d < head_dim`, `token < BLOCK_TOKENS` stay inside the tile; nobody else touches
        // the slot's elements.
        unsafe {
            let (k_tile, v_tile) = (self.k.add(offset), self.v.add(offset));
            match self.kv.dtype {
                KvDtype::F32 => {
                    let (k_tile, v_tile) = (k_tile.cast::<f32>(), v_tile.cast::<f32>());
                    for (d, (&k, &v)) in k.iter().zip(v).enumerate() {
                        *k_tile.add(d * BLOCK_TOKENS + token) = k;
                        *v_tile.add(token * self.kv.head_dim + d) = v;
                    }
                }
                KvDtype::Bf16 => {
                    let (k_tile, v_tile) = (k_tile.cast::<bf16>(), v_tile.cast::<bf16>());
                    for (d, (&k, &v)) in k.iter().zip(v).enumerate() {
                        *k_tile.add(d * BLOCK_TOKENS + token) = bf16::from_f32(k);
                        *v_tile.add(token * self.kv.head_dim + d) = bf16::from_f32(v);
                    }
                }
            }
        }
    }
}
