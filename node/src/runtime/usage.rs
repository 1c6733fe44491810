//! What a container used, as the kernel counts it in its control groups. Reading only; what the
//! numbers add up to is the meter's business.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cgroup::{Cgroup, is_unified};

/// A container's counters at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// Tells this control group from another of the same name: its counters began at zero.
    pub origin: u64,
    pub cpu_micros: u64,
    pub throttled_micros: u64,
    pub throttled_periods: u64,
    /// Page cache included, as the limit counts it.
    pub memory_bytes: u64,
    pub memory_peak_bytes: u64,
    pub oom_kills: u64,
    pub io_read_bytes: u64,
    pub io_write_bytes: u64,
    pub pids: u64,
}

impl Cgroup {
    /// Its counters now. With an earlier reading, a group that has used no CPU since is asked for
    /// its memory only: nothing ran, so nothing else can have moved. That makes an idle container
    /// three times as cheap to look at.
    ///
    /// # Errors
    /// The group is gone, or the kernel counts no CPU time.
    pub fn usage(&self, before: Option<&Usage>) -> io::Result<Usage> {
        let unified = is_unified();
        let counted = self.folder("cpuacct").ok_or(io::ErrorKind::Unsupported)?;
        let origin = fs::metadata(&counted)?.ino();
        let file = if unified { "cpu.stat" } else { "cpuacct.usage" };
        let text = fs::read_to_string(counted.join(file))?;
        let mut usage = Usage {
            origin,
            ..Usage::default()
        };
        if unified {
            usage.cpu_stat_v2(&text);
        } else {
            usage.cpu_micros = number(&text) / 1000;
        }
        let current = if unified {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        let memory_bytes = number(&self.text("memory", current));
        let still = |b: &&Usage| b.origin == origin && b.cpu_micros == usage.cpu_micros;
        if let Some(before) = before.filter(still) {
            return Ok(Usage {
                memory_bytes,
                ..*before
            });
        }
        usage.memory_bytes = memory_bytes;
        usage.oom_kills = self.oom_kills();
        usage.pids = number(&self.text("pids", "pids.current"));
        if unified {
            usage.memory_peak_bytes = number(&self.text("memory", "memory.peak"));
            usage.io_v2(&self.text("io", "io.stat"));
        } else {
            usage.memory_peak_bytes = number(&self.text("memory", "memory.max_usage_in_bytes"));
            usage.cpu_stat_v1(&self.text("cpu", "cpu.stat"));
            usage.io_v1(&self.text("blkio", "blkio.throttle.io_service_bytes"));
        }
        Ok(usage)
    }

    /// The processor time used in it so far.
    ///
    /// # Errors
    /// The group is gone, or the kernel counts no CPU time.
    pub fn cpu_micros(&self) -> io::Result<u64> {
        let counted = self.folder("cpuacct").ok_or(io::ErrorKind::Unsupported)?;
        if is_unified() {
            let text = fs::read_to_string(counted.join("cpu.stat"))?;
            return Ok(field(&text, "usage_usec"));
        }
        let text = fs::read_to_string(counted.join("cpuacct.usage"))?;
        Ok(number(&text) / 1000)
    }

    /// A file of the group. A controller that this machine lacks counts nothing.
    fn text(&self, controller: &str, file: &str) -> String {
        let read = |folder: &Path| fs::read_to_string(folder.join(file)).ok();
        self.folder(controller)
            .and_then(|folder| read(&folder))
            .unwrap_or_default()
    }
}

impl Usage {
    fn cpu_stat_v1(&mut self, text: &str) {
        self.throttled_periods = field(text, "nr_throttled");
        self.throttled_micros = field(text, "throttled_time") / 1000;
    }

    fn cpu_stat_v2(&mut self, text: &str) {
        self.cpu_micros = field(text, "usage_usec");
        self.throttled_periods = field(text, "nr_throttled");
        self.throttled_micros = field(text, "throttled_usec");
    }

    /// Lines like `8:0 Read 4096`, by device.
    fn io_v1(&mut self, text: &str) {
        for line in text.lines() {
            match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                [_, "Read", bytes] => self.io_read_bytes += number(bytes),
                [_, "Write", bytes] => self.io_write_bytes += number(bytes),
                _ => {}
            }
        }
    }

    /// Lines like `8:0 rbytes=4096 wbytes=0 rios=1 …`, by device.
    fn io_v2(&mut self, text: &str) {
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("rbytes", bytes)) => self.io_read_bytes += number(bytes),
                Some(("wbytes", bytes)) => self.io_write_bytes += number(bytes),
                _ => {}
            }
        }
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The number behind `name` in lines of `name number`.
fn field(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .find(|(key, _)| *key == name)
        .map_or(0, |(_, value)| number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_read_as_the_kernel_writes_it() {
        let mut usage = Usage::default();
        usage.cpu_stat_v2(
            "usage_usec 1500123\nuser_usec 1000000\nsystem_usec 500123\ncore_sched.force_idle_usec 0\n\
             nr_periods 40\nnr_throttled 12\nthrottled_usec 340000\nnr_bursts 0\nburst_usec 0\n",
        );
        usage.io_v2(
            "259:0 rbytes=8192 wbytes=4096 rios=2 wios=1 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=2\n",
        );
        let want = Usage {
            cpu_micros: 1_500_123,
            throttled_micros: 340_000,
            throttled_periods: 12,
            io_read_bytes: 8193,
            io_write_bytes: 4098,
            ..Usage::default()
        };
        assert_eq!(usage, want);
    }

    #[test]
    fn version_1_is_read_as_the_kernel_writes_it() {
        let mut usage = Usage::default();
        usage.cpu_stat_v1("nr_periods 40\nnr_throttled 12\nthrottled_time 340000999\n");
        usage.io_v1(
            "8:0 Read 8192\n8:0 Write 4096\n8:0 Sync 0\n8:0 Async 1\n8:0 Total 12288\n\
             7:1 Read 1\nTotal 12289\n",
        );
        let want = Usage {
            throttled_micros: 340_000,
            throttled_periods: 12,
            io_read_bytes: 8193,
            io_write_bytes: 4096,
            ..Usage::default()
        };
        assert_eq!(usage, want);
    }

    #[test]
    fn what_is_not_there_or_no_number_counts_nothing() {
        let mut usage = Usage::default();
        usage.cpu_stat_v2("usage_usec\nnr_throttled many\n");
        usage.io_v2("8:0 rbytes= wbytes=-1");
        usage.io_v1("Read\n8:0 Read\n");
        assert_eq!(usage, Usage::default());
        let gone = Cgroup::at(Path::new("/selvedge-usage-test/nothing-here"));
        assert!(gone.usage(None).is_err());
    }
}
