//! The process that unpacks one layer: reads its order, gives up every power it does not need, and
//! does the work. It stands in the layer's folder; packed bytes come on its stdin.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use super::wire::{Order, Word};
use super::{NAME, confine};
use crate::image::budget::{Budget, Spent};
use crate::image::error::ImageError;
use crate::image::layer::{self, Marker};

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
    let outcome = match confine::enter(NAME, &order.limits) {
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
