//! Philox4x32-10, a random number generator without state: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel
//! random numbers: as easy as 1, 2, 3", SC 2011. A draw is a function of key and counter, so a token can be
//! drawn again (after a preemption, on another device) and comes out the same.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// 128 random bits for a 128-bit counter under a 64-bit key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// Uniform below [`crate::model::draws::WHOLE`], with all of its 53 bits: the random number of output token `index` of choice `choice`.
pub fn uniform(seed: u64, choice: u32, index: u32) -> u64 {
    let bits = philox4x32([index, choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    (u64::from(bits[0]) << 32 | u64::from(bits[1])) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::draws::WHOLE;

    /// The known answers published with Random123 (`kat_vectors`).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox4x32([ones; 4], [ones; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        assert_eq!(pi, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn uniform_is_uniform() {
        let n = 100_000u32;
        let mut bins = [0u32; 100];
        for index in 0..n {
            let u = uniform(7, index % 3, index);
            assert!(u < WHOLE);
            bins[(u * 100 / WHOLE) as usize] += 1;
        }
        let expected = f64::from(n) / 100.0;
        let chi2: f64 = bins.iter().map(|&b| (f64::from(b) - expected).powi(2) / expected).sum();
        // 99 degrees of freedom: 99.9 % of honest generators stay under 149.
        assert!(chi2 < 149.0, "chi square {chi2}");
    }

    #[test]
    fn streams_differ_by_seed_choice_and_index() {
        let base = uniform(1, 0, 0);
        assert_ne!(base, uniform(2, 0, 0));
        assert_ne!(base, uniform(1 << 32 | 1, 0, 0));
        assert_ne!(base, uniform(1, 1, 0));
        assert_ne!(base, uniform(1, 0, 1));
    }
}
