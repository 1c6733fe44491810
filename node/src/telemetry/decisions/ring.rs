//! The files of the ring: two segments, of which the fuller one makes way when the other is full.
//!
//! A line is a checksum, a number that rises, and the text. A torn end is cut off when the ring is
//! opened, and a line that is damaged is passed over. No line is synced for itself: a killed daemon loses
//! nothing, a power cut the last seconds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

const SEGMENTS: [&str; 2] = ["0.log", "1.log"];
/// No line is longer.
pub(super) const LINE: usize = 64 << 10;
/// Of the checksum and the space behind it.
const SUM: usize = 9;

#[derive(Debug)]
pub(super) struct Ring {
    folder: PathBuf,
    /// Bytes in a segment.
    limit: u64,
    active: usize,
    file: File,
    len: u64,
    next: u64,
}

/// The lines of a segment that are whole, and where the last of them ends.
struct Segment {
    bytes: Vec<u8>,
    whole: Vec<(u64, std::ops::Range<usize>)>,
    end: usize,
}

impl Ring {
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let read = |number| Segment::read(&path(folder, number), limit);
        let segments = [read(0)?, read(1)?];
        let newest = |segment: &Segment| segment.whole.last().map_or(0, |(number, _)| *number);
        let active = usize::from(newest(&segments[1]) > newest(&segments[0]));
        let (file, len) = (append(folder, active)?, segments[active].end);
        let len = u64::try_from(len).map_err(io::Error::other)?;
        file.set_len(len)?;
        Ok(Self {
            folder: folder.to_owned(),
            limit,
            active,
            file,
            len,
            next: segments
                .iter()
                .map(newest)
                .max()
                .unwrap_or(0)
                .saturating_add(1),
        })
    }

    /// Adds a line. One that is too long, or has a line end within it, is refused.
    pub fn push(&mut self, text: &[u8]) -> io::Result<()> {
        let mut line = format!("{} ", self.next).into_bytes();
        line.extend_from_slice(text);
        if line.len() + SUM >= LINE || text.contains(&b'\n') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut whole = format!("{:08x} ", sum(&line)).into_bytes();
        whole.append(&mut line);
        whole.push(b'\n');
        let more = u64::try_from(whole.len()).map_err(io::Error::other)?;
        if self.len + more > self.limit {
            self.turn()?;
        }
        if let Err(error) = self.file.write_all(&whole) {
            // What follows may not hang on to a part of this one.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += more;
        self.next = self.next.saturating_add(1);
        Ok(())
    }

    /// The other segment is emptied and written to from now on.
    fn turn(&mut self) -> io::Result<()> {
        self.sync()?;
        let other = 1 - self.active;
        let file = append(&self.folder, other)?;
        file.set_len(0)?;
        (self.active, self.file, self.len) = (other, file, 0);
        Ok(())
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Shows all texts that are whole, the oldest first. It may run while somebody writes.
    pub fn read(folder: &Path, limit: u64, mut show: impl FnMut(&[u8])) -> io::Result<()> {
        let mut segments = [
            Segment::read(&path(folder, 0), limit)?,
            Segment::read(&path(folder, 1), limit)?,
        ];
        segments.sort_by_key(|s| s.whole.first().map_or(0, |(number, _)| *number));
        let mut last = 0;
        for segment in &segments {
            for (number, range) in &segment.whole {
                // A segment that was emptied between the two readings would come twice.
                if *number > last {
                    show(&segment.bytes[range.clone()]);
                    last = *number;
                }
            }
        }
        Ok(())
    }
}

impl Segment {
    fn read(path: &Path, limit: u64) -> io::Result<Self> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => {
                file.take(limit).read_to_end(&mut bytes)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (mut whole, mut end, mut at) = (Vec::new(), 0, 0);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if let Some((number, text)) = parse(line) {
                let begin = at + line.len() - 1 - text;
                end = at + line.len();
                whole.push((number, begin..end - 1));
            }
            at += line.len();
        }
        Ok(Self { bytes, whole, end })
    }
}

/// The number of a whole line, and how long its text is.
fn parse(line: &[u8]) -> Option<(u64, usize)> {
    let line = line.strip_suffix(b"\n")?;
    let (head, body) = (line.get(..SUM)?, line.get(SUM..)?);
    let told = std::str::from_utf8(head.strip_suffix(b" ")?).ok()?;
    if u32::from_str_radix(told, 16).ok()? != sum(body) {
        return None;
    }
    let space = body.iter().position(|byte| *byte == b' ')?;
    let number = std::str::from_utf8(&body[..space]).ok()?.parse().ok()?;
    Some((number, body.len() - space - 1))
}

fn sum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn path(folder: &Path, segment: usize) -> PathBuf {
    folder.join(SEGMENTS[segment])
}

fn append(folder: &Path, segment: usize) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    options.open(path(folder, segment))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 400;

    fn texts(folder: &Path) -> Vec<String> {
        let mut all = Vec::new();
        Ring::read(folder, LIMIT, |text| {
            all.push(String::from_utf8(text.to_vec()).unwrap());
        })
        .unwrap();
        all
    }

    fn fill(folder: &Path, numbers: std::ops::Range<u32>) {
        let mut ring = Ring::open(folder, LIMIT).unwrap();
        for number in numbers {
            ring.push(format!("this is {number}").as_bytes()).unwrap();
        }
    }

    #[test]
    fn the_newest_stay_within_bounds_and_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), 0..5);
        assert_eq!(texts(folder.path()).len(), 5);
        for begin in (5..1000).step_by(7) {
            fill(folder.path(), begin..begin + 7);
        }
        let all = texts(folder.path());
        assert_eq!(all.last().map(String::as_str), Some("this is 1005"));
        assert!((15..=32).contains(&all.len()), "{all:?}");
        let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size("0.log") <= LIMIT && size("1.log") <= LIMIT);
        let numbers: Vec<u32> = all.iter().map(|t| t[8..].parse().unwrap()).collect();
        let gapless = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
        assert!(gapless, "{numbers:?}");
    }

    #[test]
    fn a_torn_end_is_cut_off_wherever_it_tore() {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), 0..3);
        let file = folder.path().join("0.log");
        let whole = fs::read(&file).unwrap();
        let third = whole.len() / 3;
        for torn in 2 * third + 1..whole.len() {
            fs::write(&file, &whole[..torn]).unwrap();
            assert_eq!(texts(folder.path()), ["this is 0", "this is 1"]);
            fill(folder.path(), 7..8);
            let after = texts(folder.path());
            assert_eq!(after, ["this is 0", "this is 1", "this is 7"], "at {torn}");
        }
    }

    #[test]
    fn a_line_that_is_damaged_is_passed_over_and_the_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), 0..3);
        let file = folder.path().join("0.log");
        let whole = fs::read(&file).unwrap();
        let second = whole.len() / 3..2 * whole.len() / 3;
        for byte in second {
            let mut rotten = whole.clone();
            rotten[byte] ^= 1;
            fs::write(&file, &rotten).unwrap();
            // The line end makes two of them one.
            let left = texts(folder.path());
            assert_eq!(left.first().map(String::as_str), Some("this is 0"));
            assert!(!left.contains(&"this is 1".to_owned()), "at {byte}");
        }
    }

    #[test]
    fn a_line_that_does_not_fit_is_refused_and_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path(), LIMIT).unwrap();
        ring.push(b"before").unwrap();
        assert!(ring.push(&vec![b'x'; LINE]).is_err());
        assert!(ring.push(b"two\nlines").is_err());
        ring.push(b"after").unwrap();
        assert_eq!(texts(folder.path()), ["before", "after"]);
    }

    proptest! {
        #[test]
        fn whatever_lies_there_it_opens_and_takes_lines(
            first in prop::collection::vec(any::<u8>(), 0..600),
            second in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("0.log"), first).unwrap();
            fs::write(folder.path().join("1.log"), second).unwrap();
            fill(folder.path(), 0..2);
            let all = texts(folder.path());
            prop_assert!(all.ends_with(&["this is 0".to_owned(), "this is 1".to_owned()]), "{:?}", all);
        }
    }
}
