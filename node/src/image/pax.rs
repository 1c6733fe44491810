//! PAX extended headers, parsed by their stated lengths: values may hold newlines and binary
//! extended attributes, which a line-based parser breaks on.

/// What one extended header says about the entry after it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

impl Pax {
    /// Parses records of the form `LENGTH KEY=VALUE\n`, where the length counts all of the record.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        const MALFORMED: &str = "its extended header is malformed";
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let space = bytes
                .iter()
                .take(20)
                .position(|b| *b == b' ')
                .ok_or(MALFORMED)?;
            let length: usize = number(&bytes[..space]).ok_or(MALFORMED)?;
            let record = bytes.get(space + 1..length).ok_or(MALFORMED)?;
            let (end, record) = record.split_last().ok_or(MALFORMED)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or(MALFORMED)?;
            if *end != b'\n' {
                return Err(MALFORMED);
            }
            pax.take(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[length..];
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const NUMBER: &str = "a number in its extended header is malformed";
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.linkpath = Some(value.to_vec()),
            b"size" => self.size = Some(number(value).ok_or(NUMBER)?),
            b"uid" => self.uid = Some(number(value).ok_or(NUMBER)?),
            b"gid" => self.gid = Some(number(value).ok_or(NUMBER)?),
            b"mtime" => self.mtime = Some(time(value).ok_or(NUMBER)?),
            key if key.starts_with(SPARSE) => return Err("sparse files are not supported"),
            key => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// Whether it says something that changes how entries are read.
    pub(super) fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// Digits only: `parse` alone would also take a sign.
fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    let digits = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(bytes).ok()?.parse().ok())
        .flatten()
}

/// `SECONDS[.FRACTION]`, perhaps negative; the fraction is cut at nanoseconds.
fn time(bytes: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = nanos.fold(0_u32, |n, digit| n * 10 + u32::from(digit - b'0'));
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        let mut out = format!("{length} {key}=").into_bytes();
        out.extend_from_slice(value);
        out.push(b'\n');
        out
    }

    #[test]
    fn records_are_read_by_length() {
        let mut bytes = record("path", b"a/b");
        bytes.extend(record("SCHILY.xattr.user.x", b"bin\n\0=ary"));
        bytes.extend(record("mtime", b"-1.25"));
        bytes.extend(record("comment", b"hello"));
        let pax = Pax::parse(&bytes).expect("valid");
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"bin\n\0=ary".to_vec())]);
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
        assert!(
            Pax::parse(&record("comment", b"x"))
                .expect("valid")
                .is_idle()
        );
    }

    #[test]
    fn malformed_records_are_refused() {
        let table: [&[u8]; 8] = [
            b"x",
            b"5 a=",
            b"999 a=b\n",
            b"0 a=b\n",
            b"6 a=bc",
            b"6 abc\n\n",
            b"+6 a=b\n",
            b"99999999999999999999999 a=b\n",
        ];
        for bytes in table {
            assert!(
                Pax::parse(bytes).is_err(),
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        assert!(Pax::parse(&record("size", b"-1")).is_err());
        assert!(Pax::parse(&record("GNU.sparse.size", b"1")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let _ = Pax::parse(&bytes);
        }
    }
}
