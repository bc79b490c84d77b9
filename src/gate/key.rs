//! API keys: `gk_` and 43 characters of base64url (RFC 4648, unpadded), which are 256 random bits.
//!
//! Owns the format and the hash. Never knows whom a key belongs to.
//!
//! Invariant: neither type prints the secret by accident: `Debug` shows the first characters only.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub const START: &str = "gk_";
/// Random bytes in a secret.
pub const SECRET_BYTES: usize = 32;
/// Characters of a key: the start and 32 bytes at 6 bits each.
pub const KEY_LEN: usize = START.len() + (SECRET_BYTES * 8).div_ceil(6);
/// Characters shown to people: 24 of the 256 bits, enough to tell keys apart and of no use to a guesser.
const SHOWN: usize = START.len() + 4;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The text that a client sends. Well-formed, which says nothing about whether anyone issued it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The key that stands for these random bytes.
    pub fn from_bytes(bytes: &[u8; SECRET_BYTES]) -> Self {
        let mut text = String::with_capacity(KEY_LEN);
        text.push_str(START);
        for group in bytes.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - group.len()));
            for i in 0..=group.len() {
                text.push(char::from(ALPHABET[(bits >> (18 - 6 * i)) as usize & 63]));
            }
        }
        Self(text)
    }

    /// None when `text` cannot be a key: wrong start, length or alphabet. Costs no hash, so that garbage is cheap.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(START)?;
        let fits = text.len() == KEY_LEN && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        fits.then(|| Self(text.to_owned()))
    }

    /// SHA-256 of the whole text. A slow hash would add nothing: 256 random bits cannot be guessed from it.
    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// For lists and logs.
    pub fn shown(&self) -> &str {
        &self.0[..SHOWN]
    }

    /// The key itself, for the one time that it is printed.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}…)", self.shown())
    }
}

/// What is kept of a secret. `==` takes the same time wherever two hashes differ.
#[derive(Clone, Copy, Eq)]
pub struct KeyHash(pub [u8; 32]);

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl std::hash::Hash for KeyHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_is_base64url_of_the_bytes() {
        // `printf '\x00…\x1f' | base64 | tr '+/' '-_'`, and 32 bytes of ones.
        let counting: [u8; 32] = std::array::from_fn(|i| i as u8);
        assert_eq!(Secret::from_bytes(&counting).reveal(), "gk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
        assert_eq!(Secret::from_bytes(&[255; 32]).reveal(), format!("gk_{}8", "_".repeat(42)));
    }

    #[test]
    fn the_hash_is_sha256_of_the_text() {
        // `printf gk_AAAA… | sha256sum`
        let secret = Secret::from_bytes(&[0; 32]);
        assert_eq!(secret.reveal(), format!("gk_{}", "A".repeat(43)));
        let hex: String = secret.hash().0.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0f59662b8487d7fa879e2c898a97468daf62dcbc35800136b61c80f1e463d375");
    }

    #[test]
    fn what_cannot_be_a_key_is_refused() {
        let good = Secret::from_bytes(&[7; 32]).reveal().to_owned();
        assert!(Secret::parse(&good).is_some());
        let swapped = good.replacen("gk_", "sk-", 1);
        for bad in
            ["", "gk_", &good[..45], &format!("{good}A"), &swapped, &good.replace('H', "+"), &good.replace('H', "é")]
        {
            assert!(Secret::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn printing_shows_the_start_only() {
        let secret = Secret::from_bytes(&[7; 32]);
        assert_eq!(format!("{secret:?}"), "Secret(gk_BwcH…)");
        assert!(!format!("{:?}", secret.hash()).contains(&secret.reveal()[8..]));
    }

    proptest! {
        #[test]
        fn every_secret_parses_and_different_ones_differ(a: [u8; 32], b: [u8; 32]) {
            let (a, b) = (Secret::from_bytes(&a), Secret::from_bytes(&b));
            prop_assert_eq!(a.reveal().len(), KEY_LEN);
            let parsed = Secret::parse(a.reveal());
            prop_assert_eq!(parsed.as_ref().map(Secret::reveal), Some(a.reveal()));
            prop_assert_eq!(a.reveal() == b.reveal(), a.hash() == b.hash());
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = Secret::parse(&text).map(|s| s.shown().len());
        }
    }
}
