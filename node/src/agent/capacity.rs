//! What this node offers: the machine's cores and memory less the reserve, or what is configured.

use scheduler::model::Resources;

use crate::config::CapacitySection;

/// Resources for instances. A reserve larger than the machine leaves nothing, not less.
pub fn offered(section: &CapacitySection) -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let machine_cpu = u32::try_from(cores.saturating_mul(1000)).unwrap_or(u32::MAX);
    let auto_cpu = machine_cpu.saturating_sub(section.reserve.cpu.0);
    let auto_memory = machine_memory().saturating_sub(section.reserve.memory.0);
    Resources {
        cpu_millis: section.cpu.or(|| crate::config::Cpu(auto_cpu)).0,
        memory_bytes: section.memory.or(|| crate::config::Bytes(auto_memory)).0,
        instances: section.max_instances,
    }
}

/// `MemTotal` of `/proc/meminfo` in bytes.
fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    mem_total(&text).unwrap_or(0)
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Auto, Bytes, Cpu, Reserve};

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(
            mem_total("MemTotal:       2048 kB\nMemFree: 1 kB\n"),
            Some(2048 * 1024)
        );
        assert_eq!(mem_total("garbage"), None);
    }

    #[test]
    fn configured_amounts_win_and_a_large_reserve_leaves_nothing() {
        let set = CapacitySection {
            cpu: Auto::Set(Cpu(1500)),
            memory: Auto::Set(Bytes(7)),
            ..CapacitySection::default()
        };
        assert_eq!(
            (offered(&set).cpu_millis, offered(&set).memory_bytes),
            (1500, 7)
        );
        let greedy = CapacitySection {
            reserve: Reserve {
                cpu: Cpu(u32::MAX),
                memory: Bytes(u64::MAX),
            },
            ..CapacitySection::default()
        };
        assert_eq!(
            (offered(&greedy).cpu_millis, offered(&greedy).memory_bytes),
            (0, 0)
        );
    }
}
