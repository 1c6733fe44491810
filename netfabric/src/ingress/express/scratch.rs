//! Memory that a worker needs only while it works on one connection, so that an idle one has none.

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime};

/// What one read takes in at most.
const READ: usize = 64 * 1024;
/// A buffer that grew beyond this is not kept.
const KEPT: usize = 256 * 1024;

thread_local! {
    static INPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
    static OUTPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static DATE: RefCell<Option<(Instant, String)>> = const { RefCell::new(None) };
}

/// Room to read into. Not to be asked for within itself.
pub(super) fn input<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    INPUT.with_borrow_mut(|input| work(input))
}

/// An empty buffer to write into. Not to be asked for within itself.
pub(super) fn output<R>(work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    OUTPUT.with_borrow_mut(|output| {
        output.clear();
        let result = work(output);
        if output.capacity() > KEPT {
            *output = Vec::new();
        }
        result
    })
}

/// The `Date` line of an answer, made once a second.
pub(super) fn put_date(out: &mut Vec<u8>) {
    DATE.with_borrow_mut(|date| {
        let now = Instant::now();
        let old = |d: &(Instant, String)| now.duration_since(d.0) > Duration::from_millis(500);
        if date.as_ref().is_none_or(old) {
            let text = httpdate::fmt_http_date(SystemTime::now());
            *date = Some((now, format!("date: {text}\r\n")));
        }
        if let Some((_, line)) = date {
            out.extend_from_slice(line.as_bytes());
        }
    });
}
