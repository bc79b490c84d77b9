//! Instruction sets: which one this machine has, and the vector operations that kernels are written in.
//!
//! Owns the choice of level and the way into a kernel with that level switched on. Never knows what a kernel
//! computes. Invariant: code of a level runs only where [`Isa::is_available`] said yes.
//!
//! A kernel is written once, generic over [`Simd`]; [`Isa::run`] instantiates it for each level inside a
//! function that has the level's target features, into which everything is inlined.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod element;
pub mod math;
mod scalar;
#[cfg(test)]
mod tests;

use std::fmt;

/// Levels, slowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust for any architecture: eight lanes that the compiler may vectorise, no fused multiply-add.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL (every AVX-512 processor but the Xeon Phi).
    Avx512,
    /// The same with the dot products of bfloat16 and of bytes (BF16, VNNI).
    Avx512Dot,
}

impl Isa {
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Dot];

    /// The best level of this machine.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    /// The levels of this machine, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Dot => {
                Isa::Avx512.is_available()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Float32 lanes of a vector.
    pub fn width(self) -> usize {
        match self {
            Isa::Scalar | Isa::Avx2 => 8,
            Isa::Avx512 | Isa::Avx512Dot => 16,
        }
    }

    /// Vectors of neighbouring outputs that a matrix kernel has in registers, for several rows at once.
    pub fn panel_vectors(self) -> usize {
        match self {
            Isa::Scalar | Isa::Avx2 => panel_vectors(16),
            Isa::Avx512 | Isa::Avx512Dot => panel_vectors(32),
        }
    }

    /// Whether [`Simd::dot_bf16`] is there.
    pub fn has_dot(self) -> bool {
        self == Isa::Avx512Dot
    }

    /// The level that kernels without dot products need here: one less to compile.
    pub fn without_dot(self) -> Isa {
        self.min(Isa::Avx512)
    }

    /// Runs `kernel` with this level's instructions.
    ///
    /// # Safety
    /// [`Isa::is_available`] holds, and the kernel's own contract (on its type) is met.
    pub(super) unsafe fn run<K: Kernel>(self, kernel: K) {
        match self {
            // SAFETY: the caller vouches for both halves of the contract.
            Isa::Scalar => unsafe { kernel.run::<scalar::Scalar>() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; the features are there because the level is available.
            Isa::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { run_avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Dot => unsafe { run_avx512_dot(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("{self} exists on x86-64 only"),
        }
    }
}

/// By the vector registers of the level.
const fn panel_vectors(num_registers: usize) -> usize {
    num_registers / 8
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512",
            Isa::Avx512Dot => "AVX-512 BF16/VNNI",
        })
    }
}

/// # Safety
/// The machine has AVX2, FMA and F16C; the kernel's contract is met.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: the caller's promise, passed on.
    unsafe { kernel.run::<avx2::Avx2>() }
}

/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL; the kernel's contract is met.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: the caller's promise, passed on.
    unsafe { kernel.run::<avx512::Avx512<false>>() }
}

/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL, BF16 and VNNI; the kernel's contract is met.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")]
unsafe fn run_avx512_dot<K: Kernel>(kernel: K) {
    // SAFETY: the caller's promise, passed on.
    unsafe { kernel.run::<avx512::Avx512<true>>() }
}

/// A computation over raw pointers, written once for all levels.
pub(super) trait Kernel {
    /// Implementations are `#[inline(always)]`, and so is all that they call, so that the instructions of the
    /// level are used throughout.
    ///
    /// # Safety
    /// `S`'s instructions exist on this machine, and the contract stated on the implementing type holds.
    unsafe fn run<S: Simd>(self);
}

/// A vector of `WIDTH` float32 lanes.
///
/// # Safety of its functions
/// All require the level's instructions. Those that take a pointer require it to be valid for the elements
/// that their line names; no alignment is asked for.
pub trait Simd: Copy {
    const WIDTH: usize;
    /// Vector registers of the level; decides the register block of the matrix kernels.
    const NUM_REGISTERS: usize;
    /// [`Isa::panel_vectors`].
    const PANEL_VECTORS: usize = panel_vectors(Self::NUM_REGISTERS);
    /// Whether matrix kernels have several rows in registers: where there are none, this makes code and nothing else.
    const TILES: bool = true;
    type F: Copy;
    /// `WIDTH` lanes of 32 bits: an integer, a pair of bfloat16, or four bytes.
    type I: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    /// Reads `WIDTH` values.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Writes `WIDTH` values.
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the level can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of two; `b` when either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of two; `b` when either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Lane by lane: `if a < b { x } else { y }`.
    unsafe fn select_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Whether `a < b` in any lane.
    unsafe fn any_less(a: Self::F, b: Self::F) -> bool;
    /// To the nearest integer, ties to even; for |x| < 2³¹.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `2^n` for integral `n` in -126..=127; 0 for -127.
    unsafe fn power_of_two(n: Self::F) -> Self::F;
    /// Sum of all lanes, in one order for ever: halves are folded on each other.
    unsafe fn sum(v: Self::F) -> f32;
    /// Largest lane.
    unsafe fn max_lane(v: Self::F) -> f32;

    /// Asks for the cache line at `p`, which may be any address.
    unsafe fn prefetch(p: *const u8);
    /// The same, but no nearer than the second-level cache.
    unsafe fn prefetch_second(p: *const u8);

    /// Widens `WIDTH` signed bytes.
    unsafe fn load_i8(p: *const u8) -> Self::F;
    /// Widens `WIDTH` bfloat16 values.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// Widens `WIDTH` float16 values.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// Reads `WIDTH` bytes as numbers.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// Widens `2 * WIDTH` bfloat16 values into those at even and those at odd places.
    unsafe fn load_bf16_pair(p: *const u8) -> (Self::F, Self::F);
    /// Rounds to the nearest bfloat16, ties to even, and writes `WIDTH` of them. Subnormals may become zero.
    unsafe fn store_bf16(p: *mut u8, v: Self::F);

    /// Reads `4 * WIDTH` bytes.
    unsafe fn load_words(p: *const u8) -> Self::I;
    /// Reads four bytes into every lane.
    unsafe fn splat_word(p: *const u8) -> Self::I;
    /// In each lane `acc` plus the products of two pairs of bfloat16; the products are exact, subnormals count as zero.
    /// Only at levels with [`Isa::has_dot`].
    unsafe fn dot_bf16(acc: Self::F, w: Self::I, x: Self::I) -> Self::F;

    unsafe fn splat_i32(x: i32) -> Self::I;
    /// Rounds where a number needs more than 24 bits.
    unsafe fn from_i32(v: Self::I) -> Self::F;
    /// In each lane `acc` plus the products of four unsigned bytes with four signed ones (-127..=127), exactly.
    unsafe fn dot_u8(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// The same where the unsigned ones are below 128.
    unsafe fn dot_u7(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// Lanes shifted by `left` bits (to the right where negative), of whose bytes `mask` is kept.
    unsafe fn bits(v: Self::I, left: i32, mask: u8) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Byte `BITS / 8` of every lane, as a number.
    unsafe fn byte_to_f32<const BITS: u32>(v: Self::I) -> Self::F;

    /// Reads `n < WIDTH` values; the other lanes are zero.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::F {
        let mut lanes = [0f32; MAX_WIDTH];
        // SAFETY: the caller gives `n` readable values, and n < WIDTH <= MAX_WIDTH.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// Writes the first `n < WIDTH` lanes.
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::F, n: usize) {
        let mut lanes = [0f32; MAX_WIDTH];
        // SAFETY: the caller gives room for `n` values, and n < WIDTH <= MAX_WIDTH.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }
}

/// The widest level's lanes. It equals the tokens of a KV block, so a block's scores are one vector, or two.
pub const MAX_WIDTH: usize = 16;

/// Where a kernel asks a level for what it has not.
const NO_DOT: &str = "kernels with dot products run where Isa::has_dot says so";
