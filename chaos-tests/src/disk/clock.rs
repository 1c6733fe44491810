//! Clocks that are wrong, for one process and those it starts: rows T1 to T3. Owns the words and
//! variables that a program is started with, and the file that turns the wall clock while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::prefix::Prefix;
use crate::world::is_running;

/// What two readings of a clock may differ by for the time it takes to read them.
const SLACK: Duration = Duration::from_secs(20);

/// The wall clock of programs started with its prefix. Right at first.
#[derive(Debug)]
pub struct WallClock {
    file: PathBuf,
    library: PathBuf,
}

impl WallClock {
    /// `file` says how wrong the clock is; the programs read it again at every question.
    pub fn new(file: &Path) -> Result<Self> {
        let clock = Self {
            file: file.to_owned(),
            library: library()?,
        };
        sweep()?;
        clock.heal()?;
        Ok(clock)
    }

    /// Only the wall clock lies: timeouts and leases, which count on the monotonic one, are the
    /// machine's own.
    pub fn prefix(&self) -> Prefix {
        self.prefix_all().set("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// The monotonic clock lies along: a machine whose clock runs too fast or too slow (T2).
    pub fn prefix_all(&self) -> Prefix {
        Prefix::default()
            .set("LD_PRELOAD", &self.library)
            .set("FAKETIME_TIMESTAMP_FILE", &self.file)
            .set("FAKETIME_NO_CACHE", "1")
    }

    /// Wrong by this many seconds, from the next question on.
    pub fn jump(&self, seconds: i64) -> Result<()> {
        self.say(&format!("{seconds:+}"))
    }

    /// Runs this many times as fast, from each program's start on.
    pub fn rate(&self, times: f64) -> Result<()> {
        self.say(&format!("+0 x{times}"))
    }

    pub fn heal(&self) -> Result<()> {
        self.say("+0")
    }

    /// Shows that a program sees the clock wrong by this many seconds.
    pub fn check(&self, seconds: i64) -> Result<()> {
        let said = self.prefix().run(&["date", "+%s"])?.ok()?;
        let (theirs, ours) = (said.out.trim().parse::<i64>()?, now()?);
        let off = (theirs - ours - seconds).unsigned_abs();
        ensure!(off < SLACK.as_secs(), "theirs {theirs}, ours {ours}");
        Ok(())
    }

    /// Whole at every moment: programs read it while it changes.
    fn say(&self, text: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{text}\n"))?;
        fs::rename(&new, &self.file).context("turning the clock")
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        if let Err(error) = sweep() {
            eprintln!("{error:#}");
        }
    }
}

/// Removes what the library leaves in shared memory for every process that was killed, by its pid.
pub(crate) fn sweep() -> Result<()> {
    for entry in fs::read_dir("/dev/shm")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = ["faketime_shm_", "sem.faketime_sem_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !is_running(pid)) {
            // Another test may sweep at the same time.
            fs::remove_file(entry.path()).ok();
        }
    }
    Ok(())
}

/// A program whose monotonic clock is this many seconds ahead of the machine's, and which counts as
/// many seconds more since the boot (T3).
pub fn monotonic_ahead(seconds: u32) -> Prefix {
    let (monotonic, boot) = (
        format!("--monotonic={seconds}"),
        format!("--boottime={seconds}"),
    );
    Prefix::words(["unshare", "--time", &monotonic, &boot, "--"])
}

/// Shows that a program sees the machine up for this many seconds more than it is.
pub fn check_ahead(seconds: u32) -> Result<()> {
    let up = |prefix: Prefix| -> Result<f64> {
        let said = prefix.run(&["cat", "/proc/uptime"])?.ok()?;
        let first = said.out.split(' ').next().context("no uptime")?;
        Ok(first.parse()?)
    };
    let (ours, theirs) = (up(Prefix::default())?, up(monotonic_ahead(seconds))?);
    let off = (theirs - ours - f64::from(seconds)).abs();
    ensure!(off < SLACK.as_secs_f64(), "theirs {theirs}, ours {ours}");
    Ok(())
}

fn now() -> Result<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(i64::try_from(since.as_secs())?)
}

/// Where Debian puts the library: below the machine's triple. The one for programs with threads.
fn library() -> Result<PathBuf> {
    let triples = fs::read_dir("/usr/lib")?.flatten();
    let mut libraries = triples.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1"));
    let hint = "no libfaketime; apt-get install libfaketime";
    libraries.find(|library| library.exists()).context(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a_jump_holds_until_it_is_healed() -> Result<()> {
        let home = tempfile::tempdir()?;
        let clock = WallClock::new(&home.path().join("clock"))?;
        clock.check(0)?;
        for seconds in [3600, -3600, 400 * DAY] {
            clock.jump(seconds)?;
            clock.check(seconds)?;
            ensure!(clock.check(0).is_err(), "the check sees a wrong clock");
        }
        clock.heal()?;
        clock.check(0)
    }

    #[test]
    fn a_jump_reaches_a_program_that_runs() -> Result<()> {
        let home = tempfile::tempdir()?;
        let clock = WallClock::new(&home.path().join("clock"))?;
        let script = "print time, qq(\\n); open $f, '>', @ARGV; print $f qq(+864000\\n); \
                      close $f; print time, qq(\\n)";
        let file = clock.file.to_string_lossy();
        let said = clock.prefix().run(&["perl", "-e", script, &file])?.ok()?;
        let times = said.out.lines().map(str::parse::<i64>);
        let times = times.collect::<Result<Vec<_>, _>>()?;
        ensure!((times[1] - times[0] - 10 * DAY).abs() < 60, "{times:?}");
        Ok(())
    }

    #[test]
    fn a_killed_program_leaves_nothing_in_shared_memory() -> Result<()> {
        let home = tempfile::tempdir()?;
        let clock = WallClock::new(&home.path().join("clock"))?;
        let script = "print $$, qq(\\n); kill 9, $$";
        let said = clock.prefix().run(&["perl", "-e", script])?;
        drop(clock);
        let left = format!("/dev/shm/faketime_shm_{}", said.out.trim());
        ensure!(!Path::new(&left).exists(), "{left}");
        Ok(())
    }

    #[test]
    fn a_fast_clock_runs_away() -> Result<()> {
        let home = tempfile::tempdir()?;
        let clock = WallClock::new(&home.path().join("clock"))?;
        clock.rate(10_000.0)?;
        // Spins until the wall clock has gone a thousand seconds, which takes a true clock longer
        // than the limit.
        let script = "printf -v a '%(%s)T' -1; b=$a; while ((b < a + 1000)); do \
                      printf -v b '%(%s)T' -1; done";
        let limited = ["timeout", "15", "bash", "-c", script];
        clock.prefix().run(&limited)?.ok()?;
        Ok(())
    }

    #[test]
    fn a_monotonic_clock_is_ahead_by_its_offset() -> Result<()> {
        check_ahead(500_000)?;
        let offsets = ["cat", "/proc/self/timens_offsets"];
        let said = monotonic_ahead(500_000).run(&offsets)?.ok()?;
        let words: Vec<_> = said.out.split_whitespace().take(3).collect();
        ensure!(words == ["monotonic", "500000", "0"], "{said}");
        Ok(())
    }
}
