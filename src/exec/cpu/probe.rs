//! What this machine can do at most, for the share of it that a measured figure reaches.
//!
//! Bandwidth: all threads read a buffer much larger than any cache, from end to end. Products: all threads multiply what
//! is in registers, with as many independent sums as hide the latency.

use std::hint::black_box;
use std::time::Instant;

use super::isa::{Isa, Kernel, Simd};
use super::memory::Pages;
use super::pool::Pool;
use super::{CpuError, CpuOps, CpuOptions};

/// Much larger than any last-level cache that two cores share.
const BUFFER_BYTES: usize = 512 << 20;
const CHUNK_BYTES: usize = 1 << 20;
const ROUNDS: usize = 400_000;
/// Independent sums.
const SUMS: usize = 12;
/// The best of some, because anything else on the machine only takes away.
const REPEATS: usize = 5;

/// Peaks of all threads together.
#[derive(Debug, Clone)]
pub struct Peaks {
    pub isa: Isa,
    pub threads: usize,
    pub read_gb_per_s: f64,
    /// Additions and multiplications counted apart, in 10⁹ a second.
    pub f32_gflops: f64,
    /// `None` where the level has no such instruction.
    pub bf16_gflops: Option<f64>,
    pub int8_gops: f64,
}

/// Takes some seconds.
pub fn probe(options: CpuOptions) -> Result<Peaks, CpuError> {
    let CpuOps { isa, mut pool, .. } = CpuOps::new(options)?;
    let threads = pool.threads();
    let mut peak = |kind: Kind| {
        let per_round = (SUMS * isa.width() * kind.operations()) as f64;
        let seconds = best(|| pool.run(threads, &|_| multiply(isa, kind)));
        per_round * (ROUNDS * threads) as f64 / seconds / 1e9
    };
    let f32_gflops = peak(Kind::F32);
    let bf16_gflops = isa.has_dot().then(|| peak(Kind::Bf16));
    let int8_gops = peak(Kind::Int8);
    let read_gb_per_s = bandwidth(isa, &mut pool);
    Ok(Peaks { isa, threads, read_gb_per_s, f32_gflops, bf16_gflops, int8_gops })
}

fn best(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(time).fold(f64::INFINITY, f64::min)
}

fn bandwidth(isa: Isa, pool: &mut Pool) -> f64 {
    let mut pages = Pages::new(BUFFER_BYTES);
    // Pages that were never written are one page of zeros.
    pages.as_bytes_mut().fill(1);
    let bytes = pages.as_bytes();
    let seconds = best(|| {
        pool.run(BUFFER_BYTES / CHUNK_BYTES, &|chunk| {
            let chunk = &bytes[chunk * CHUNK_BYTES..][..CHUNK_BYTES];
            // SAFETY: an executor's level is available; the chunk is a multiple of any vector.
            unsafe { isa.run(Read(chunk)) };
        });
    });
    BUFFER_BYTES as f64 / seconds / 1e9
}

/// Sums of a chunk that is a multiple of eight vectors.
struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: indices stay inside the chunk.
        unsafe {
            let from: *const f32 = self.0.as_ptr().cast();
            let mut sums = [S::splat(0.0); 8];
            let mut i = 0;
            while i < self.0.len() / 4 {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(from.add(i + n * S::WIDTH)));
                }
                i += 8 * S::WIDTH;
            }
            for sum in sums {
                black_box(S::sum(sum));
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    F32,
    Bf16,
    Int8,
}

impl Kind {
    /// Of one lane of one instruction (or what stands for it).
    fn operations(self) -> usize {
        match self {
            Kind::F32 => 2,
            Kind::Bf16 => 4,
            Kind::Int8 => 8,
        }
    }
}

fn multiply(isa: Isa, kind: Kind) {
    // SAFETY: an executor's level is available, and the bfloat16 dot is asked for where the level has it.
    unsafe { isa.run(Multiply(kind)) };
}

struct Multiply(Kind);

impl Kernel for Multiply {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let words = black_box([0x3f80_3f80u32; 2]);
        // SAFETY: four bytes each.
        unsafe {
            let (w, x) = (S::splat_word(words.as_ptr().cast()), S::splat_word(words[1..].as_ptr().cast()));
            let (a, b) = (S::splat(black_box(1.0)), S::splat(black_box(0.5)));
            let mut sums = [S::splat(0.0); SUMS];
            let mut counts = [S::splat_i32(0); SUMS];
            for _ in 0..ROUNDS {
                for (sum, count) in sums.iter_mut().zip(&mut counts) {
                    match self.0 {
                        Kind::F32 => *sum = S::fma(a, b, *sum),
                        Kind::Bf16 => *sum = S::dot_bf16(*sum, w, x),
                        // By what changes: a constant product would be computed once.
                        Kind::Int8 => *count = S::dot_u8(*count, w, *count),
                    }
                }
            }
            for (sum, count) in sums.into_iter().zip(counts) {
                black_box(S::sum(S::add(sum, S::from_i32(count))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_reads_and_multiplies() {
        let peaks = probe(CpuOptions { threads: 1, isa: None, ..CpuOptions::default() }).unwrap();
        assert!(peaks.read_gb_per_s > 0.1 && peaks.f32_gflops > 0.1 && peaks.int8_gops > 0.1, "{peaks:?}");
        assert_eq!(peaks.bf16_gflops.is_some(), peaks.isa.has_dot());
    }
}
