//! Copies through pinned memory, and what the emulator finds out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::emulated::{Copies, EmulatedPiece};
use super::staging::{PIECE_BYTES, Piece, Staging};
use super::*;

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| ((i + seed) * 7 % 251) as u8).collect()
}

#[test]
fn what_is_longer_than_all_pieces_goes_there_and_back() {
    let copies = Arc::new(Copies::default());
    let made = AtomicUsize::new(0);
    let new = || {
        made.fetch_add(1, Ordering::Relaxed);
        Ok(EmulatedPiece::new(&copies))
    };
    let mut staging = Staging::default();
    for count in [0, 1, PIECE_BYTES, 9 * PIECE_BYTES + 5] {
        let (mut from, mut there, mut back) = (bytes(count, count), vec![0; count], vec![0; count]);
        // SAFETY: as many bytes on both sides, which stay where they are.
        unsafe {
            staging.upload(new, there.as_mut_ptr() as Address, &from).unwrap();
            // The caller may do with it what he likes.
            let expected = std::mem::take(&mut from);
            staging.download(new, &mut back, there.as_ptr() as Address).unwrap();
            assert!(back == expected && there == expected, "{count} bytes");
        }
    }
    assert_eq!(made.into_inner(), 4, "pieces are used again");
}

#[test]
fn pinned_memory_that_is_used_again_too_early_is_found_out() {
    let copies = Arc::new(Copies::default());
    let mut piece = EmulatedPiece::new(&copies);
    let mut there = [0u8; 2];
    // SAFETY: a piece has more than two bytes; that the first copy is not waited for is what the test is about.
    unsafe {
        piece.memory().write(1);
        piece.start_upload(there.as_mut_ptr() as Address, 1).unwrap();
        piece.memory().write(2);
    }
    assert!(piece.wait().unwrap_err().to_string().contains("before its copy was done"));
    assert_eq!(there, [0, 0], "nothing wrong was copied");
    // SAFETY: as above; this time it is waited for.
    unsafe {
        for (i, value) in [3, 4].into_iter().enumerate() {
            piece.wait().unwrap();
            piece.memory().write(value);
            piece.start_upload(there.as_mut_ptr().add(i) as Address, 1).unwrap();
        }
    }
    piece.wait().unwrap();
    assert_eq!(there, [3, 4]);
}
