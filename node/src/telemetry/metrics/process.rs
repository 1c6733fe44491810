//! What the daemon itself uses, under the names every Prometheus client gives it.

use std::fs;

/// The kernel's tick as programs see it, the same on every Linux.
const TICKS: u64 = 100;
const PAGE: u64 = 4096;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub open_fds: u64,
}

pub(super) fn read() -> Process {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let (ticks, pages) = parse(&stat).unwrap_or_default();
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Process {
        cpu_millis: ticks * 1000 / TICKS,
        memory_bytes: pages * PAGE,
        open_fds: open as u64,
    }
}

/// Ticks in user and system mode, and resident pages. The name may hold anything, so fields count
/// from the parenthesis that closes it.
fn parse(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((number(11)? + number(12)?, number(21)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_line_is_read_behind_the_name() {
        let line = "7 (a (b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 123 \
                    1000000 2048 18446744073709551615 1 1";
        assert_eq!(parse(line), Some((300, 2048)));
        assert_eq!(parse("7 (x"), None);
        let me = read();
        assert!(me.memory_bytes > 1 << 20 && me.open_fds > 2, "{me:?}");
    }
}
