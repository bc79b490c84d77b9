//! The KV cache's memory.
//!
//! One region, `[block][layer][kv_head]` of a tile of K and one of V. (Not a region for each layer: a short sequence would
//! touch, and have the system zero, a large page of every one.) Tiles are of words of four bytes, so that a product reads a
//! vector of them and needs no horizontal sums:
//! - K as `[head_dim / n][BLOCK_TOKENS]`, a word holding `n` neighbouring dimensions of a token;
//! - V as `[BLOCK_TOKENS / n][dims]`, a word holding one dimension of `n` neighbouring tokens; `dims` is `head_dim` rounded
//!   up to a vector, the rest zero.
//!
//! `n` is 1 for float32, and 2 for bfloat16 and bytes (whose words have two bytes until they are widened). Bytes are
//! multiples of a scale of their token and head; the scales of a tile stand behind it.
//!
//! Never knows which sequence a block belongs to. Invariants: all indices are checked here, once per tile; the token that
//! shares V's words with the last one of a sequence is zero or the sequence's own, so that times zero it is zero.

use super::isa::{Isa, Kernel, MAX_WIDTH, Simd};
use super::memory::Pages;
use crate::kv::BLOCK_TOKENS;
use crate::model::ops::KvDtype;
use crate::model::spec::{MAX_HEAD_DIM, Spec};

/// Bytes of the scales of a tile.
const SCALE_BYTES: usize = 4 * BLOCK_TOKENS;
/// The largest byte; the smallest is its negative.
const MAX_BYTE: f32 = 127.0;

/// What is said to who asks for it all the same.
pub const NO_FP8: &str = "the CPU keeps no K and V in fp8; use f32, bf16 or int8";

/// K and V bytes of one block in all layers; `None` where no address space could hold it, and for fp8.
pub fn kv_bytes_per_block(spec: &Spec, dtype: KvDtype) -> Option<usize> {
    tile_bytes(spec.head_dim, dtype)?.checked_mul(2)?.checked_mul(pairs_per_block(spec)?)
}

/// Pairs of tiles from a block to the next: those of all layers and heads, and if need be one more, to make them odd. A
/// multiple of a large power of two would lay all blocks of a head on the same few sets of the caches.
fn pairs_per_block(spec: &Spec) -> Option<usize> {
    Some(spec.num_kv_heads.checked_mul(spec.layers.len())? | 1)
}

/// Values of a row of V.
pub fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(MAX_WIDTH)
}

fn tile_bytes(head_dim: usize, dtype: KvDtype) -> Option<usize> {
    let values = head_dim.checked_next_multiple_of(MAX_WIDTH)?.checked_mul(BLOCK_TOKENS)?;
    match dtype {
        KvDtype::Fp8 => None,
        KvDtype::F32 => values.checked_mul(4),
        KvDtype::Bf16 => values.checked_mul(2),
        KvDtype::Int8 => values.checked_add(SCALE_BYTES),
    }
}

pub struct KvCache {
    region: Pages,
    dtype: KvDtype,
    num_blocks: usize,
    num_layers: usize,
    num_kv_heads: usize,
    pairs_per_block: usize,
    head_dim: usize,
    tile_bytes: usize,
}

impl KvCache {
    /// Panics where the size is beyond the address space; callers size `num_blocks` by [`kv_bytes_per_block`].
    pub fn new(spec: &Spec, dtype: KvDtype, num_blocks: usize) -> KvCache {
        let head_dim = spec.head_dim;
        assert!(head_dim.is_multiple_of(2) && head_dim <= MAX_HEAD_DIM, "heads of {head_dim} dimensions");
        let tile_bytes = tile_bytes(head_dim, dtype);
        let region = kv_bytes_per_block(spec, dtype).and_then(|b| b.checked_mul(num_blocks));
        let (Some(tile_bytes), Some(region), Some(pairs_per_block)) = (tile_bytes, region, pairs_per_block(spec))
        else {
            panic!("{num_blocks} KV blocks are more than the address space holds: lower kv.memory");
        };
        KvCache {
            region: Pages::new(region),
            dtype,
            num_blocks,
            num_layers: spec.layers.len(),
            num_kv_heads: spec.num_kv_heads,
            pairs_per_block,
            head_dim,
            tile_bytes,
        }
    }

    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Bytes of all layers.
    pub fn bytes(&self) -> usize {
        self.region.len()
    }

    /// Bytes of a tile.
    pub fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    pub fn has_shape(&self, num_kv_heads: usize, head_dim: usize) -> bool {
        (self.num_kv_heads, self.head_dim) == (num_kv_heads, head_dim)
    }

    /// Where a tile of K begins; that of V follows it.
    fn offset(&self, layer: usize, block: u32, kv_head: usize) -> usize {
        let block = block as usize;
        assert!(block < self.num_blocks, "KV block {block} of {}", self.num_blocks);
        assert!(layer < self.num_layers, "layer {layer} of {}", self.num_layers);
        assert!(kv_head < self.num_kv_heads, "KV head {kv_head} of {}", self.num_kv_heads);
        (block * self.pairs_per_block + layer * self.num_kv_heads + kv_head) * 2 * self.tile_bytes
    }

    /// The K and the V tile of one block and head.
    #[inline]
    pub fn tiles(&self, layer: usize, block: u32, kv_head: usize) -> (*const u8, *const u8) {
        let offset = self.offset(layer, block, kv_head);
        // SAFETY: `offset` plus two tiles is inside the region.
        unsafe { (self.region.as_ptr().add(offset), self.region.as_ptr().add(offset + self.tile_bytes)) }
    }

    /// The way in for several threads, each storing tokens of its own.
    pub fn writer(&mut self, layer: usize) -> KvWriter<'_> {
        let region = self.region.as_mut_ptr();
        KvWriter { kv: self, layer, region }
    }

    /// Copies whole blocks `(from, to)` in every layer, pair after pair.
    pub fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        let block_bytes = self.tile_bytes * 2 * self.pairs_per_block;
        for &(from, to) in pairs {
            let (from, to) = (self.offset(0, from, 0), self.offset(0, to, 0));
            self.region.as_bytes_mut().copy_within(from..from + block_bytes, to);
        }
    }
}

/// One layer's memory for the time in which a step's K and V are stored.
pub struct KvWriter<'a> {
    kv: &'a KvCache,
    layer: usize,
    region: *mut u8,
}

// SAFETY: `store` puts the duty of disjointness on its callers; all else is read only.
unsafe impl Sync for KvWriter<'_> {}

impl KvWriter<'_> {
    /// Rounds one token's K and V of one head to the cache's dtype and stores them. `is_last`: the sequence's next slot is
    /// not filled in this step.
    ///
    /// # Safety
    /// `isa` is available. No other thread stores to this slot and head meanwhile, nor, where it is the last one, to the
    /// next slot of the block.
    pub unsafe fn store(&self, isa: Isa, slot: u32, kv_head: usize, is_last: bool, k: &[f32], v: &[f32]) {
        let head_dim = self.kv.head_dim;
        assert!(k.len() == head_dim && v.len() == head_dim, "K and V of {head_dim} dimensions");
        let offset = self.kv.offset(self.layer, slot / BLOCK_TOKENS as u32, kv_head);
        let token = slot as usize % BLOCK_TOKENS;
        // SAFETY: the tiles are inside the region, aligned for their elements (they are multiples of 64 bytes in a region
        // aligned to a page); the rest is the caller's promise.
        unsafe {
            let k_tile = self.region.add(offset);
            let v_tile = k_tile.add(self.kv.tile_bytes);
            let ends_word = is_last && token.is_multiple_of(2);
            isa.run(Store { dtype: self.kv.dtype, token, ends_word, k, v, k_tile, v_tile });
        }
    }
}

/// Stores a token in a tile of K and one of V; `ends_word`: with zero beside it, in V.
struct Store<'a> {
    dtype: KvDtype,
    token: usize,
    ends_word: bool,
    k: &'a [f32],
    v: &'a [f32],
    k_tile: *mut u8,
    v_tile: *mut u8,
}

impl Kernel for Store<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Store { dtype, token, ends_word, k, v, k_tile, v_tile } = self;
        let dims = padded(k.len());
        // SAFETY: `d < head_dim <= dims` and `token < BLOCK_TOKENS` stay inside the tiles.
        unsafe {
            match dtype {
                KvDtype::F32 => {
                    let (k_tile, v_tile) = (k_tile.cast::<f32>(), v_tile.cast::<f32>());
                    for (d, (&k, &v)) in k.iter().zip(v).enumerate() {
                        *k_tile.add(d * BLOCK_TOKENS + token) = k;
                        *v_tile.add(token * dims + d) = v;
                    }
                }
                KvDtype::Bf16 => {
                    let (k, v) = (to_bf16::<S>(k), to_bf16::<S>(v));
                    self.store_pairs(&k, &v, k_tile.cast(), v_tile.cast());
                }
                KvDtype::Int8 => {
                    let scales = BLOCK_TOKENS * dims;
                    let ((k, k_scale), (v, v_scale)) = (to_bytes::<S>(k), to_bytes::<S>(v));
                    self.store_pairs(&k, &v, k_tile.cast(), v_tile.cast());
                    *k_tile.add(scales).cast::<f32>().add(token) = k_scale;
                    *v_tile.add(scales).cast::<f32>().add(token) = v_scale;
                    if ends_word {
                        *v_tile.add(scales).cast::<f32>().add(token + 1) = 0.0;
                    }
                }
                KvDtype::Fp8 => unreachable!("{NO_FP8}"),
            }
        }
    }
}

impl Store<'_> {
    /// # Safety
    /// The tiles hold [`padded`] times [`BLOCK_TOKENS`] elements.
    #[inline(always)]
    unsafe fn store_pairs<T: Copy + Default>(&self, k: &[T], v: &[T], k_tile: *mut T, v_tile: *mut T) {
        let (head_dim, dims, token) = (self.k.len(), padded(self.k.len()), self.token);
        // SAFETY: `d < head_dim <= dims` and `token < BLOCK_TOKENS` stay inside the tiles.
        unsafe {
            for d in 0..head_dim {
                *k_tile.add((d / 2 * BLOCK_TOKENS + token) * 2 + d % 2) = k[d];
                *v_tile.add((token / 2 * dims + d) * 2 + token % 2) = v[d];
            }
            if self.ends_word {
                for d in 0..head_dim {
                    *v_tile.add((token / 2 * dims + d) * 2 + 1) = T::default();
                }
            }
        }
    }
}

/// To the nearest bfloat16, ties to even: their bits.
#[inline(always)]
unsafe fn to_bf16<S: Simd>(x: &[f32]) -> [u16; MAX_HEAD_DIM] {
    let mut to = [0; MAX_HEAD_DIM];
    for (i, x) in x.chunks(S::WIDTH).enumerate() {
        // SAFETY: `x` is at most MAX_HEAD_DIM long, which is a multiple of a vector.
        unsafe { S::store_bf16(to.as_mut_ptr().add(i * S::WIDTH).cast(), load::<S>(x)) };
    }
    to
}

/// To multiples of a 127th of the largest magnitude: these, and what one stands for. What is not a number, or infinite,
/// makes it all NaN when it is read.
#[inline(always)]
unsafe fn to_bytes<S: Simd>(x: &[f32]) -> ([i8; MAX_HEAD_DIM], f32) {
    let mut to = [0; MAX_HEAD_DIM];
    // SAFETY: as in `to_bf16`.
    unsafe {
        let (mut largest, mut nothing) = (S::splat(0.0), S::splat(0.0));
        for x in x.chunks(S::WIDTH) {
            let x = load::<S>(x);
            largest = S::max(largest, S::max(x, S::sub(S::splat(0.0), x)));
            nothing = S::fma(x, S::splat(0.0), nothing);
        }
        let largest = S::max_lane(largest);
        let inverse = S::splat(if largest > 0.0 { MAX_BYTE / largest } else { 0.0 });
        let mut rounded = [0f32; MAX_WIDTH];
        for (to, x) in to.chunks_mut(S::WIDTH).zip(x.chunks(S::WIDTH)) {
            S::store(rounded.as_mut_ptr(), S::round(S::mul(load::<S>(x), inverse)));
            for (to, rounded) in to.iter_mut().zip(rounded) {
                *to = rounded as i8;
            }
        }
        (to, largest / MAX_BYTE + S::sum(nothing))
    }
}

/// A vector of `x`, which may be shorter: zeros follow.
#[inline(always)]
unsafe fn load<S: Simd>(x: &[f32]) -> S::F {
    // SAFETY: no more is read than there is.
    unsafe { if x.len() < S::WIDTH { S::load_first(x.as_ptr(), x.len()) } else { S::load(x.as_ptr()) } }
}
