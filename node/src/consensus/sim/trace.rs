//! What happened in a simulation, in order and with its virtual time: a digest of everything for
//! comparing two runs, the last lines for people, and the broken invariants.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Display;
use std::io::Write;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Lines kept for the report of a failing seed.
const LINES: usize = 60;

struct Trace {
    began: Instant,
    digest: Sha256,
    lines: VecDeque<String>,
    broken: Vec<String>,
    file: Option<std::fs::File>,
}

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// Begins this thread's trace; every line also goes to the file that `SELVEDGE_SIM_TRACE` names.
pub(super) fn begin() {
    let file = std::env::var_os("SELVEDGE_SIM_TRACE").map(|path| {
        let options = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        options.expect("the trace file can be written")
    });
    TRACE.set(Some(Trace {
        began: Instant::now(),
        digest: Sha256::new(),
        lines: VecDeque::new(),
        broken: Vec::new(),
        file,
    }));
}

fn with<T>(use_it: impl FnOnce(&mut Trace) -> T) -> Option<T> {
    TRACE.with_borrow_mut(|trace| trace.as_mut().map(use_it))
}

/// Adds one line. Without a trace (in tests of single parts) it goes nowhere.
pub(super) fn note(what: impl Display) {
    with(|trace| {
        let line = format!("{:>9} {what}", trace.began.elapsed().as_micros());
        trace.digest.update(line.as_bytes());
        trace.digest.update(b"\n");
        if let Some(file) = &mut trace.file {
            let _ = writeln!(file, "{line}");
        }
        if trace.lines.len() == LINES {
            trace.lines.pop_front();
        }
        trace.lines.push_back(line);
    });
}

/// An invariant does not hold. The run ends soon; the first one is what matters.
pub(super) fn broken(what: impl Display) {
    note(format_args!("BROKEN {what}"));
    with(|trace| trace.broken.push(what.to_string()));
}

pub(super) fn first_broken() -> Option<String> {
    with(|trace| trace.broken.first().cloned()).flatten()
}

/// The digest of all lines, and the last ones.
pub(super) fn end() -> (String, Vec<String>) {
    TRACE.take().map_or_else(Default::default, |trace| {
        (
            hex::encode(trace.digest.finalize()),
            trace.lines.into_iter().collect(),
        )
    })
}

/// A short name for bytes.
pub(super) fn short(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..4])
}
