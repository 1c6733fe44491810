//! The file system in user space that passes every call on to a folder, but for those that a rule
//! names. Owns its process: the mount, the lines of its control, its end. It ends when it is
//! unmounted and when its stdin closes, which the kernel does when the parent dies.
//!
//! What it can hold: files, folders, links of both kinds, sockets, device nodes, extended attributes,
//! locks (the kernel's own, local), mapped files. What it cannot: the upper folder of an overlay,
//! which the kernel allows on no FUSE. So of a node's folder, `registry` and `images` can lie here,
//! and `instances` cannot.

mod calls;
mod tree;
mod work;

use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::rule::{Rule, Rules};
use tree::Tree;
use work::Calls;

/// A call that a rule delays keeps one busy.
const THREADS: usize = 8;

/// What a line on stdin says; each is answered with the counts of the rules in force before it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ask {
    /// These rules from now on, and no others.
    Rules(Vec<Rule>),
    Counts,
}

type Shared = Arc<Mutex<Rules>>;

/// Serves `behind` at `at` until unmounted or left by its parent.
pub fn serve(behind: &Path, at: &Path) -> Result<()> {
    // Modes come masked by the caller's mask; ours would mask them again.
    rustix::process::umask(rustix::fs::Mode::empty());
    // Every file the kernel knows is one descriptor here.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)?;
    let rules = Shared::default();
    let tree = Tree::over(behind).with_context(|| behind.display().to_string())?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("faultfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::Dev,
        MountOption::Suid,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    let calls = Calls::new(tree, Arc::clone(&rules));
    let session = Session::new(calls, at, &config).context("mounting")?;
    let at = at.to_owned();
    std::thread::spawn(move || {
        if let Err(error) = obey(&rules) {
            eprintln!("faultfs: {error:#}");
        }
        rustix::mount::unmount(&at, UnmountFlags::DETACH).ok();
        std::process::exit(0);
    });
    session.run().context("serving")
}

/// Reads the control's lines to their end.
fn obey(rules: &Mutex<Rules>) -> Result<()> {
    answer(&Rules::default())?;
    for line in stdin().lock().lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        let mut now = rules.lock().ok().context("a call panicked")?;
        match ask {
            Ask::Counts => answer(&now)?,
            Ask::Rules(new) => {
                let old = std::mem::replace(&mut *now, Rules::of(new));
                answer(&old)?;
            }
        }
    }
    Ok(())
}

fn answer(rules: &Rules) -> Result<()> {
    let mut out = stdout().lock();
    serde_json::to_writer(&mut out, &rules.counts())?;
    writeln!(out)?;
    Ok(out.flush()?)
}
