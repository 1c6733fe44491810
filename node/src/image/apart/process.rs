//! The process that unpacks one layer: reads its order, gives up every power it does not need, and
//! does the work. It stands in the layer's folder; packed bytes come on its stdin.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use rustix::process::{Resource, Signal};
use rustix::thread::CapabilitySet;

use super::NAME;
use super::wire::{Order, Word};
use crate::image::budget::{Budget, Limits, Spent};
use crate::image::confine::{self, Kept};
use crate::image::error::ImageError;
use crate::image::layer::{self, Marker};

/// To give files away, to write into directories that were given away, to describe them, and to leave
/// the setgid bit on what was: everything in an image is owned by whoever the image says. It can make
/// no device (a whiteout takes no right) and set no attribute that only root may.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID);

/// What making a tree of files takes.
#[rustfmt::skip]
const CALLS: [&str; 22] = [
    "pwrite64", "lseek", "fstat", "newfstatat", "statx", "openat", "openat2", "ftruncate", "fallocate",
    "getdents64", "mkdirat", "mknodat", "symlinkat", "linkat", "unlink", "unlinkat", "fchown",
    "fchownat", "fchmod", "fchmodat", "utimensat", "fsetxattr",
];

/// A recipe and a list of chunks are files too.
const BESIDE: u64 = 1024 * 1024 * 1024;
/// The kernel kills this before it kills anything an operator would miss.
const OOM_SCORE: &str = "500";

/// What is spent is told when so much more of it is.
const TOLD_RAW: u64 = 4 * 1024 * 1024;
const TOLD_ENTRIES: u64 = 1024;

/// `selvedged unpack ORDER`: `args` is what follows `unpack`. Must be called before the process has a
/// second thread, and with nothing open but the first three descriptors.
pub fn main(args: &[OsString]) -> ExitCode {
    let order = match args {
        [order] => order.to_str().and_then(|text| Order::decode(text).ok()),
        _ => None,
    };
    let Some(order) = order else {
        eprintln!("usage: selvedged unpack ORDER (the daemon calls this itself)");
        return ExitCode::from(2);
    };
    let outcome = match give_up(&order.limits) {
        Ok(()) => work(&order),
        Err(e) => Err(ImageError::io("confine the process that unpacks", e)),
    };
    let word = match outcome {
        Ok(marker) => Word::Done(marker),
        Err(error) => Word::Failed(error.into()),
    };
    // Whoever would be told of this is who cannot be told.
    let told = word.write(&mut io::stdout().lock());
    if told.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// All it does not need. From here on it also dies with the thread that started it.
fn give_up(limits: &Limits) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Not everywhere is there a /proc that takes it.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    // The first is told by a signal of its own, the second kills.
    let seconds = (
        Resource::Cpu,
        limits.seconds,
        limits.seconds.saturating_add(1),
    );
    confine::enter(&Kept {
        name: NAME,
        capabilities: CAPABILITIES,
        calls: &CALLS,
        sockets: false,
        file: limits.raw.saturating_add(BESIDE),
        limits: &[seconds],
    })
}

fn work(order: &Order) -> Result<Marker, ImageError> {
    let plan = order.plan()?;
    let budget = Budget::resumed(order.limits, order.spent);
    let packed = Telling {
        inner: io::stdin(),
        budget: &budget,
        told: order.spent,
    };
    // The root is the layer's folder by now.
    layer::unpack_verified(packed, &plan, &Path::new("/").join(layer::CONTENT), &budget)
}

/// Tells what was spent in between, whenever more packed bytes are wanted: layers of one image share
/// a budget while they are unpacked side by side.
struct Telling<'a, R> {
    inner: R,
    budget: &'a Budget,
    told: Spent,
}

impl<R: Read> Read for Telling<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let now = self.budget.spent();
        let more = Spent {
            raw: now.raw - self.told.raw,
            entries: now.entries - self.told.entries,
            names: now.names - self.told.names,
        };
        if more.raw >= TOLD_RAW || more.entries >= TOLD_ENTRIES {
            Word::Spent(more).write(&mut io::stdout().lock())?;
            self.told = now;
        }
        self.inner.read(buf)
    }
}
