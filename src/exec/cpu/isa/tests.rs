use super::math;
use super::*;

/// Applies `f` to all values at a level.
struct Map<'a> {
    function: Function,
    values: &'a mut [f32],
}

#[derive(Clone, Copy)]
enum Function {
    Exp,
    Tanh,
    Silu,
    GeluTanh,
}

impl Kernel for Map<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        use crate::model::spec::Activation;
        for chunk in self.values.chunks_exact_mut(S::WIDTH) {
            // SAFETY: a chunk has WIDTH values.
            unsafe {
                let x = S::load(chunk.as_ptr());
                let y = match self.function {
                    Function::Exp => math::exp::<S>(x),
                    Function::Tanh => math::tanh::<S>(x),
                    Function::Silu => math::activate::<S>(Activation::Silu, x),
                    Function::GeluTanh => math::activate::<S>(Activation::GeluTanh, x),
                };
                S::store(chunk.as_mut_ptr(), y);
            }
        }
    }
}

fn map(isa: Isa, function: Function, xs: &[f32]) -> Vec<f32> {
    let mut values = xs.to_vec();
    values.resize(xs.len().next_multiple_of(MAX_WIDTH), 0.0);
    // SAFETY: the callers go over the available levels.
    unsafe { isa.run(Map { function, values: &mut values }) };
    values.truncate(xs.len());
    values
}

/// Values over many magnitudes, both signs, within `limit`.
fn sweep(limit: f32) -> Vec<f32> {
    let linear = (-20_000..=20_000).map(|i| i as f32 / 20_000.0 * limit);
    let small = (0..200).flat_map(|i| {
        let x = 2f32.powf(-(i as f32) / 6.0);
        [x, -x]
    });
    linear.chain(small.filter(|x| x.abs() <= limit)).collect()
}

/// Distance from the exact value in units of the last place of the nearest float.
fn ulps(got: f32, exact: f64) -> f64 {
    let near = exact as f32;
    let ulp = f64::from(near.abs().next_up()) - f64::from(near.abs());
    (f64::from(got) - exact).abs() / ulp
}

#[test]
fn exp_is_within_two_ulp_of_exact_and_tanh_within_three() {
    for isa in Isa::available() {
        let xs = sweep(87.0);
        for (x, y) in xs.iter().zip(map(isa, Function::Exp, &xs)) {
            let error = ulps(y, f64::from(*x).exp());
            assert!(error <= 2.0, "{isa}: exp({x}) = {y}, {error} ulp off");
        }
        let xs = sweep(12.0);
        for (x, y) in xs.iter().zip(map(isa, Function::Tanh, &xs)) {
            let error = ulps(y, f64::from(*x).tanh());
            assert!(error <= 3.0, "{isa}: tanh({x}) = {y}, {error} ulp off");
        }
    }
}

#[test]
fn exp_and_tanh_keep_their_limits() {
    for isa in Isa::available() {
        let xs = [f32::NEG_INFINITY, -1e30, -104.0, 0.0, 88.7, 90.0, 1e30, f32::INFINITY];
        let ys = map(isa, Function::Exp, &xs);
        assert_eq!(&ys[..4], &[0.0, 0.0, 0.0, 1.0], "{isa}");
        assert!(ys[4].is_finite() && ys[5..] == [f32::INFINITY; 3], "{isa}: {ys:?}");
        assert!(map(isa, Function::Exp, &[f32::NAN])[0].is_nan(), "{isa}");
        let tiny = map(isa, Function::Exp, &[-95.0])[0];
        assert!((f64::from(tiny) / (-95f64).exp() - 1.0).abs() < 1e-3, "{isa}: subnormal results are kept, {tiny}");
        let ts = map(isa, Function::Tanh, &[f32::NEG_INFINITY, -50.0, 0.0, 50.0, f32::INFINITY]);
        assert_eq!(ts, [-1.0, -1.0, 0.0, 1.0, 1.0], "{isa}");
        assert!(map(isa, Function::Tanh, &[f32::NAN])[0].is_nan(), "{isa}");
    }
}

#[test]
fn activations_follow_their_definitions() {
    for isa in Isa::available() {
        let xs = sweep(30.0);
        let silu = map(isa, Function::Silu, &xs);
        let gelu = map(isa, Function::GeluTanh, &xs);
        for ((&x, silu), gelu) in xs.iter().zip(silu).zip(gelu) {
            let x = f64::from(x);
            let exact = x / (1.0 + (-x).exp());
            assert!((f64::from(silu) - exact).abs() <= 4e-7 * exact.abs() + 1e-30, "{isa}: silu({x}) = {silu}");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            let exact = 0.5 * x * (1.0 + inner.tanh());
            // Near -3 the definition itself subtracts nearly equal numbers.
            assert!((f64::from(gelu) - exact).abs() <= 4e-7 * x.abs(), "{isa}: gelu({x}) = {gelu}, not {exact}");
        }
    }
}

#[test]
fn names_and_order() {
    assert_eq!(Isa::ALL.map(|isa| isa.to_string()), ["scalar", "AVX2", "AVX-512", "AVX-512 BF16/VNNI"]);
    assert!(Isa::detect().is_available());
    assert!(Isa::available().all(|isa| isa <= Isa::detect()));
}
