//! Randomness of a simulation: what the threads of a seed ask of the system (hash keys, `rand`'s
//! generators, tokio's fairness) comes from the seed. Owns the test binary's `getrandom`
//! and `syscall`; a thread that was never seeded gets the system's own.

// Two C symbols stand before libc's: there is no safe way to give every library its entropy.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_long, c_uint, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

thread_local! {
    static STREAM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Seeds this thread. Before anything in it drew a number: a generator keeps what it began with.
pub(super) fn seed_thread(seed: u64) {
    STREAM.set(Some(seed));
}

/// `SplitMix64`: every step is a bijection of the state, so no two seeds run into each other.
fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, mixed ^ (mixed >> 31))
}

/// Fills `bytes` from this thread's stream; false when it has none.
fn fill(bytes: &mut [u8]) -> bool {
    let Some(mut state) = STREAM.try_with(Cell::get).ok().flatten() else {
        return false;
    };
    for part in bytes.chunks_mut(8) {
        let (after, number) = next(state);
        state = after;
        part.copy_from_slice(&number.to_le_bytes()[..part.len()]);
    }
    STREAM.set(Some(state));
    true
}

/// As [`fill`], for C: what the call answers.
///
/// # Safety
/// `buffer` has room for `length` bytes.
unsafe fn fill_raw(buffer: *mut u8, length: usize) -> Option<isize> {
    // The getrandom crates probe with an empty request and a dangling pointer.
    let bytes = if length == 0 {
        &mut []
    } else {
        // SAFETY: the caller says that the buffer has this length; bytes need no alignment.
        unsafe { std::slice::from_raw_parts_mut(buffer, length) }
    };
    fill(bytes).then_some(length.cast_signed())
}

/// libc's function of this name, for everything linked into the test binary: std asks it by a weak
/// symbol, the getrandom crates 0.3 and 0.4 by `dlsym`.
///
/// # Safety
/// As libc's: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    // SAFETY: both have this function's contract.
    unsafe {
        fill_raw(buffer.cast(), length).unwrap_or_else(|| {
            let got = libc::syscall(libc::SYS_getrandom, buffer, length, c_long::from(flags));
            isize::try_from(got).unwrap_or(-1)
        })
    }
}

/// libc's function of this name: the getrandom crate 0.2 (openraft's) asks it. Everything else is
/// handed on. Integers travel in the same places to a function with and without an ellipsis, on
/// `x86_64` and on `aarch64`; those that a caller did not give are read and ignored.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    first: c_long,
    second: c_long,
    third: c_long,
    fourth: c_long,
    fifth: c_long,
    sixth: c_long,
) -> c_long {
    if number == libc::SYS_getrandom {
        let length = usize::try_from(second).unwrap_or(0);
        // SAFETY: these are that call's arguments.
        let filled = unsafe { fill_raw(first as *mut u8, length) };
        if filled.is_some() {
            return second;
        }
    }
    // SAFETY: the call goes on as it came.
    unsafe { libcs_syscall()(number, first, second, third, fourth, fifth, sixth) }
}

type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;

fn libcs_syscall() -> Syscall {
    static FOUND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    let mut found = FOUND.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name is a C string; the answer is libc's function or null.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
        assert!(!found.is_null(), "libc has no syscall()");
        FOUND.store(found, Ordering::Relaxed);
    }
    // SAFETY: it is the function of that name, of that type.
    unsafe { std::mem::transmute::<*mut c_void, Syscall>(found) }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    fn drawn(seed: u64) -> (u64, u64, u64) {
        let thread = std::thread::spawn(move || {
            super::seed_thread(seed);
            let keys = std::hash::RandomState::new().hash_one(1);
            let openrafts = openraft::Config {
                election_timeout_max: u64::MAX,
                ..openraft::Config::default()
            };
            let openrafts = openrafts.new_rand_election_timeout::<openraft::TokioRuntime>();
            (keys, rand::random(), openrafts)
        });
        thread.join().unwrap()
    }

    #[test]
    fn std_and_rand_and_openraft_draw_from_the_seed() {
        assert_eq!(drawn(1), drawn(1));
        let (one, other) = (drawn(1), drawn(2));
        assert!(one.0 != other.0 && one.1 != other.1 && one.2 != other.2);
    }
}
