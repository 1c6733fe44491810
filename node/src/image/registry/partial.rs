//! Layers whose download ended early, by a crash or a network that went away: the packed bytes that
//! came, so that the next pull asks only for the rest. Owns `partial/` with its bounds. What is in it
//! proves nothing: the layer's digest is over all of its bytes, these among them.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::disk;
use super::super::error::ImageError;
use super::super::manifest::LayerPlan;

/// A smaller layer is as soon fetched again.
const LEAST: u64 = 1024 * 1024;
/// Bytes that all may take together; the oldest go first.
const MOST: u64 = 1024 * 1024 * 1024;
/// What nobody went on with for so long is not wanted any more.
const EXPIRY: Duration = Duration::from_hours(24);

#[derive(Debug)]
pub(in super::super) struct Partials(PathBuf);

impl Partials {
    /// Those in `dir`, less what is over the bounds.
    pub(in super::super) fn open(dir: PathBuf) -> Result<Self, ImageError> {
        disk::create_private_dirs(&dir)?;
        let partials = Self(dir);
        partials.sweep(SystemTime::now(), MOST)?;
        Ok(partials)
    }

    /// What has come of a layer, to read and to add to; `None` where that is not worth it or where
    /// the disk does not want to. A pull goes without.
    pub(in super::super) fn of(&self, plan: &LayerPlan) -> Option<Partial> {
        if plan.size < LEAST || plan.size > MOST {
            return None;
        }
        self.sweep(SystemTime::now(), MOST.saturating_sub(plan.size))
            .ok()?;
        let name = format!("{}-{}", plan.diff_id.hex(), plan.digest.hex());
        let path = self.0.join(name);
        let mut options = File::options();
        let options = options.read(true).append(true).create(true).mode(0o600);
        let file = options.open(&path).ok()?;
        let mut have = file.metadata().ok()?.len();
        if have > plan.size {
            file.set_len(0).ok()?;
            have = 0;
        }
        Some(Partial { path, file, have })
    }

    /// Removes all; a download under way goes on without.
    pub(in super::super) fn clear(&self) -> Result<(), ImageError> {
        self.sweep(SystemTime::now(), 0)
    }

    fn sweep(&self, now: SystemTime, most: u64) -> Result<(), ImageError> {
        let mut all = Vec::new();
        for name in disk::names(&self.0)? {
            let path = self.0.join(name);
            // One that is gone meanwhile needs no sweeping.
            if let Ok(meta) = fs::metadata(&path) {
                all.push((meta.modified().unwrap_or(now), meta.len(), path));
            }
        }
        all.sort();
        let mut sum = 0;
        for (written, size, path) in all.into_iter().rev() {
            sum += size;
            let age = now.duration_since(written).unwrap_or_default();
            if sum > most || age > EXPIRY || most == 0 {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// The packed bytes of one layer, from its beginning.
pub(in super::super) struct Partial {
    path: PathBuf,
    file: File,
    have: u64,
}

impl Partial {
    pub(in super::super) fn have(&self) -> u64 {
        self.have
    }

    pub(in super::super) fn path(&self) -> &Path {
        &self.path
    }
}

pub(in super::super) fn remove(path: &Path) -> Result<(), ImageError> {
    disk::remove_all(path).map_err(|e| ImageError::disk("remove", path, e))
}

/// Reads what was there, then what arrives, which it adds. At the end nothing is left of it.
pub(in super::super) struct Keeping<R> {
    partial: Option<Partial>,
    at: u64,
    arriving: R,
}

impl<R: Read> Keeping<R> {
    pub(in super::super) fn new(partial: Option<Partial>, arriving: R) -> Self {
        Self {
            partial,
            at: 0,
            arriving,
        }
    }
}

impl<R: Read> Read for Keeping<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(partial) = &self.partial
            && self.at < partial.have
        {
            let left = usize::try_from(partial.have - self.at).unwrap_or(usize::MAX);
            let most = buf.len().min(left);
            let n = partial.file.read_at(&mut buf[..most], self.at)?;
            self.at += n as u64;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            return Ok(n);
        }
        let n = self.arriving.read(buf)?;
        let kept = match &mut self.partial {
            Some(partial) if n > 0 => partial.file.write_all(&buf[..n]).is_ok(),
            _ => false,
        };
        if kept {
            fail::fail_point!("image::piece_kept");
        }
        // All is here, or the disk takes no more. Gone now, it is not synced with the layer.
        if !kept
            && !buf.is_empty()
            && let Some(partial) = self.partial.take()
        {
            let _ = remove(&partial.path);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Digest;
    use super::super::super::manifest::Packing;
    use super::*;

    fn plan(of: &str, size: u64) -> LayerPlan {
        LayerPlan {
            digest: Digest::of(of.as_bytes()),
            size,
            packing: Packing::Plain,
            diff_id: Digest::of(of.as_bytes()),
        }
    }

    #[test]
    fn what_came_is_read_again_and_added_to() {
        let dir = crate::image::testing::temp();
        let partials = Partials::open(dir.path().join("partial")).expect("opens");
        let plan = plan("a", LEAST);
        let all: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
        let (first, second) = all.split_at(300_000);

        let mut keeping = Keeping::new(partials.of(&plan), first);
        let mut got = vec![0; first.len()];
        keeping.read_exact(&mut got).expect("arrives");
        // The process dies here.
        drop(keeping);

        let partials = Partials::open(dir.path().join("partial")).expect("opens");
        let partial = partials.of(&plan).expect("is there");
        assert_eq!(partial.have(), 300_000);
        let mut got = Vec::new();
        let mut keeping = Keeping::new(Some(partial), second);
        keeping.read_to_end(&mut got).expect("arrives");
        assert_eq!(got, all);
        assert_eq!(disk::names(&partials.0).expect("listed").len(), 0);
    }

    #[test]
    fn they_are_bounded_in_age_and_size() {
        let dir = crate::image::testing::temp();
        let partials = Partials::open(dir.path().join("partial")).expect("opens");
        assert!(partials.of(&plan("small", LEAST - 1)).is_none());
        for name in ["a", "b"] {
            let mut partial = partials.of(&plan(name, LEAST)).expect("made");
            partial.file.write_all(&[0; 1000]).expect("written");
        }
        let count = || disk::names(&partials.0).expect("listed").len();
        partials.sweep(SystemTime::now(), MOST).expect("swept");
        assert_eq!(count(), 2);
        partials.sweep(SystemTime::now(), 1500).expect("swept");
        assert_eq!(count(), 1);
        let late = SystemTime::now() + EXPIRY + Duration::from_mins(1);
        partials.sweep(late, MOST).expect("swept");
        assert_eq!(count(), 0);
    }
}
