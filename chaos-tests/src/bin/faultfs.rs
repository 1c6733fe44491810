//! The process behind a faulty disk: `faultfs BEHIND AT` shows the folder BEHIND at the folder AT,
//! takes its rules as lines of JSON on stdin, answers each with the counts on stdout, and ends when
//! stdin does.

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [behind, at] = &words[..] else {
        bail!("usage: faultfs BEHIND AT");
    };
    chaos_tests::disk::serve(Path::new(behind), Path::new(at))
}
