//! Randomness of a simulation: what the threads of a seed ask of the system (hash keys, `rand`'s
//! generators, tokio's fairness) comes from the seed. Owns the test binary's `getrandom`; a thread
//! that was never seeded gets the system's own.

// One C symbol stands before libc's: there is no safe way to give every library its entropy.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_uint, c_void};

thread_local! {
    static STREAM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Seeds this thread. Before anything in it drew a number: a generator keeps what it began with.
pub(super) fn seed_thread(seed: u64) {
    STREAM.set(Some(seed));
}

/// SplitMix64: every step is a bijection of the state, so no two seeds run into each other.
fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, mixed ^ (mixed >> 31))
}

/// libc's function of this name, for everything linked into the test binary: std asks it by a weak
/// symbol, the getrandom crates (0.2, 0.3, 0.4) by `dlsym`.
///
/// # Safety
/// As libc's: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn getrandom(
    buffer: *mut c_void,
    length: usize,
    flags: c_uint,
) -> isize {
    let Some(mut state) = STREAM.try_with(Cell::get).ok().flatten() else {
        // SAFETY: the system call has the same contract as this function.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(got).unwrap_or(-1);
    };
    // The getrandom crates probe with an empty request and a dangling pointer.
    if length > 0 {
        // SAFETY: the caller says that the buffer has this length; bytes need no alignment.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        for part in bytes.chunks_mut(8) {
            let (after, number) = next(state);
            state = after;
            part.copy_from_slice(&number.to_le_bytes()[..part.len()]);
        }
    }
    STREAM.set(Some(state));
    isize::try_from(length).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    fn drawn(seed: u64) -> (u64, u64, u64) {
        let thread = std::thread::spawn(move || {
            super::seed_thread(seed);
            let keys = std::hash::RandomState::new().hash_one(1);
            (keys, rand::random(), rand::random())
        });
        thread.join().unwrap()
    }

    #[test]
    fn std_and_rand_draw_from_the_seed() {
        assert_eq!(drawn(1), drawn(1));
        let (one, other) = (drawn(1), drawn(2));
        assert!(one.0 != other.0 && one.1 != other.1 && one.2 != other.2);
    }
}
