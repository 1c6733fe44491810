//! How much waits on this machine, by the kernel's pressure stall information.

use std::path::Path;

use scheduler::model::Pressure;

/// Where the kernel tells it; not there on kernels without it.
const FOLDER: &str = "/proc/pressure";
/// A change of less is not told: it is over before anybody acts on it.
const STEP_PERMILLE: u16 = 50;

/// What waits now; none where the kernel does not tell.
pub(super) fn read() -> Option<Pressure> {
    read_in(Path::new(FOLDER))
}

fn read_in(folder: &Path) -> Option<Pressure> {
    let some = |file: &str| {
        let text = std::fs::read_to_string(folder.join(file)).ok()?;
        some_avg10(&text)
    };
    let (cpu, memory, io) = (some("cpu"), some("memory"), some("io"));
    cpu.or(memory).or(io)?;
    Some(Pressure {
        cpu_permille: cpu.unwrap_or(0),
        memory_permille: memory.unwrap_or(0),
        io_permille: io.unwrap_or(0),
    })
}

/// `avg10` of the line `some`, a percentage with two decimals, in thousandths.
fn some_avg10(text: &str) -> Option<u16> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let avg10 = line
        .split(' ')
        .find_map(|word| word.strip_prefix("avg10="))?;
    let (whole, rest) = avg10.split_once('.').unwrap_or((avg10, ""));
    let whole: u16 = whole.parse().ok()?;
    let tenth = rest.bytes().next().filter(u8::is_ascii_digit);
    let tenth = tenth.map_or(0, |digit| u16::from(digit - b'0'));
    Some(
        whole
            .min(100)
            .saturating_mul(10)
            .saturating_add(tenth)
            .min(1000),
    )
}

/// What others should think: what they were told, as long as that is nearly true.
pub(super) fn tell(told: Option<Pressure>, now: Option<Pressure>) -> Option<Pressure> {
    let near = |a: u16, b: u16| a.abs_diff(b) < STEP_PERMILLE;
    match (told, now) {
        (Some(told), Some(now))
            if near(told.cpu_permille, now.cpu_permille)
                && near(told.memory_permille, now.memory_permille)
                && near(told.io_permille, now.io_permille) =>
        {
            Some(told)
        }
        (_, now) => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: &str = "some avg10=12.34 avg60=2.00 avg300=0.10 total=1234\n\
                       full avg10=99.00 avg60=0.00 avg300=0.00 total=0\n";

    #[test]
    fn it_is_read_as_the_kernel_writes_it() {
        for (text, permille) in [
            (CPU, Some(123)),
            ("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", Some(0)),
            ("some avg10=100.00 avg60=1.00\n", Some(1000)),
            ("some avg10=7\n", Some(70)),
            ("full avg10=7.00\n", None),
            ("some avg10=x.00\n", None),
            ("", None),
        ] {
            assert_eq!(some_avg10(text), permille, "{text}");
        }
    }

    #[test]
    fn a_kernel_without_it_tells_nothing_and_one_without_a_part_tells_the_others() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_in(folder.path()), None);
        std::fs::write(folder.path().join("cpu"), CPU).unwrap();
        let cpu_alone = Pressure {
            cpu_permille: 123,
            ..Pressure::default()
        };
        assert_eq!(read_in(folder.path()), Some(cpu_alone));
    }

    #[test]
    fn small_changes_are_not_told() {
        let at = |io_permille| {
            Some(Pressure {
                io_permille,
                ..Pressure::default()
            })
        };
        assert_eq!(tell(None, at(3)), at(3));
        assert_eq!(tell(at(3), at(50)), at(3));
        assert_eq!(tell(at(3), at(60)), at(60));
        assert_eq!(tell(at(3), None), None);
    }
}
