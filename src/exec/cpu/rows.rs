//! Activations: `[rows, width]` float32, and the operations that look at one row at a time.

use super::isa::math;
use super::isa::{Isa, Kernel, Simd};
use super::memory::Shared;
use super::pool::Pool;
use crate::model::spec::Activation;

/// Values under which an operation stays on the calling thread.
const MIN_PARALLEL_VALUES: usize = 32 << 10;

/// `[rows, width]` float32.
#[derive(Debug, Default, Clone)]
pub struct CpuRows {
    data: Vec<f32>,
    rows: usize,
    width: usize,
}

impl CpuRows {
    pub fn from_values(values: Vec<f32>, width: usize) -> CpuRows {
        assert!(width > 0 && values.len().is_multiple_of(width), "{} values in rows of {width}", values.len());
        CpuRows { rows: values.len() / width, data: values, width }
    }

    /// Gives it a shape; what it holds afterwards is unspecified.
    pub fn reshape(&mut self, rows: usize, width: usize) {
        let len = rows.checked_mul(width).expect("a step's activations fit the address space");
        self.data.resize(len, 0.0);
        (self.rows, self.width) = (rows, width);
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.width..][..self.width]
    }

    pub fn values(&self) -> &[f32] {
        &self.data
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

/// Calls `task(row, values)` for each row of `width` values, on several threads where there is enough of it.
/// `cost` is the work per value, in additions or so.
pub fn for_each_row(pool: &mut Pool, rows: &mut CpuRows, cost: usize, task: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let (count, width) = (rows.rows, rows.width);
    let work = rows.data.len().saturating_mul(cost);
    let chunks = if work < MIN_PARALLEL_VALUES { 1 } else { (pool.threads() * 4).min(count) };
    let per_chunk = count.div_ceil(chunks.max(1)).max(1);
    let shared = Shared::new(&mut rows.data);
    pool.run(count.div_ceil(per_chunk), &|chunk| {
        for row in chunk * per_chunk..count.min((chunk + 1) * per_chunk) {
            // SAFETY: every row belongs to one chunk, every chunk to one thread.
            task(row, unsafe { shared.slice(row * width, width) });
        }
    });
}

/// `out = x / sqrt(mean(x²) + eps) * weight`; `out` may be `x` itself.
///
/// All three have the length of `weight`.
pub struct RmsNorm<'a> {
    x: *const f32,
    weight: &'a [f32],
    eps: f32,
    out: *mut f32,
}

impl<'a> RmsNorm<'a> {
    pub fn apply(isa: Isa, x: &[f32], weight: &'a [f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && out.len() == weight.len(), "norm of {} by {}", x.len(), weight.len());
        // SAFETY: an executor's level is available; lengths are equal.
        unsafe { isa.run(RmsNorm { x: x.as_ptr(), weight, eps, out: out.as_mut_ptr() }) };
    }

    pub fn apply_in_place(isa: Isa, x: &mut [f32], weight: &'a [f32], eps: f32) {
        assert_eq!(x.len(), weight.len(), "norm of {} by {}", x.len(), weight.len());
        let out = x.as_mut_ptr();
        // SAFETY: as above; each value is read before it is written.
        unsafe { isa.run(RmsNorm { x: out, weight, eps, out }) };
    }
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let RmsNorm { x, weight, eps, out } = self;
        let n = weight.len();
        let tail = n % S::WIDTH;
        let full = n - tail;
        // SAFETY: all indices stay below `n`.
        unsafe {
            let mut squares = S::splat(0.0);
            let mut i = 0;
            while i < full {
                let v = S::load(x.add(i));
                squares = S::fma(v, v, squares);
                i += S::WIDTH;
            }
            if tail > 0 {
                let v = S::load_first(x.add(full), tail);
                squares = S::fma(v, v, squares);
            }
            let scale = S::splat(1.0 / (S::sum(squares) / n as f32 + eps).sqrt());
            let mut i = 0;
            while i < full {
                let v = S::mul(S::load(x.add(i)), scale);
                S::store(out.add(i), S::mul(v, S::load(weight.as_ptr().add(i))));
                i += S::WIDTH;
            }
            if tail > 0 {
                let v = S::mul(S::load_first(x.add(full), tail), scale);
                let v = S::mul(v, S::load_first(weight.as_ptr().add(full), tail));
                S::store_first(out.add(full), v, tail);
            }
        }
    }
}

/// `out = activation(gate) * up`, all of one length.
pub struct Gated<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    activation: Activation,
    out: &'a mut [f32],
}

impl<'a> Gated<'a> {
    /// `gate_up` is gate, then up: twice as long as `out`.
    pub fn apply(isa: Isa, gate_up: &'a [f32], activation: Activation, out: &'a mut [f32]) {
        assert_eq!(gate_up.len(), 2 * out.len(), "gate and up");
        let (gate, up) = gate_up.split_at(out.len());
        // SAFETY: an executor's level is available; lengths are equal.
        unsafe { isa.run(Gated { gate, up, activation, out }) };
    }
}

impl Kernel for Gated<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Gated { gate, up, activation, out } = self;
        let n = out.len();
        let tail = n % S::WIDTH;
        let (gate, up, out) = (gate.as_ptr(), up.as_ptr(), out.as_mut_ptr());
        // SAFETY: all indices stay below `n`.
        unsafe {
            let mut i = 0;
            while i + S::WIDTH <= n {
                let v = math::activate::<S>(activation, S::load(gate.add(i)));
                S::store(out.add(i), S::mul(v, S::load(up.add(i))));
                i += S::WIDTH;
            }
            if tail > 0 {
                let v = math::activate::<S>(activation, S::load_first(gate.add(i), tail));
                S::store_first(out.add(i), S::mul(v, S::load_first(up.add(i), tail)), tail);
            }
        }
    }
}

/// `x = cap * tanh(x / cap)` in place.
pub struct SoftCap<'a> {
    pub x: &'a mut [f32],
    pub cap: f32,
}

impl Kernel for SoftCap<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.x.len();
        let tail = n % S::WIDTH;
        let x = self.x.as_mut_ptr();
        // SAFETY: all indices stay below `n`.
        unsafe {
            let mut i = 0;
            while i + S::WIDTH <= n {
                S::store(x.add(i), math::soft_cap::<S>(S::load(x.add(i)), self.cap));
                i += S::WIDTH;
            }
            if tail > 0 {
                S::store_first(x.add(i), math::soft_cap::<S>(S::load_first(x.add(i), tail), self.cap), tail);
            }
        }
    }
}
