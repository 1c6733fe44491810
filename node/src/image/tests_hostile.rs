//! Layers that mean harm: what is refused and why, and that nothing is ever written outside.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use proptest::prelude::*;
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::Limits;
use super::budget::Budget;
use super::testing::{Tar, temp};
use super::unpack::{Stop, Unpacked, unpack};

/// A directory with a layer's place and something beside it that must not change.
pub(super) struct Field {
    dir: TempDir,
}

impl Field {
    pub(super) fn new() -> Self {
        let dir = temp();
        fs::create_dir(dir.path().join("layer")).expect("made");
        fs::create_dir(dir.path().join("outside")).expect("made");
        fs::write(dir.path().join("outside/sentinel"), "untouched").expect("written");
        Self { dir }
    }

    pub(super) fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    pub(super) fn unpack(&self, tar: &[u8]) -> Result<Unpacked, Stop> {
        let outcome = unpack(tar, &self.layer(), &Budget::new(Limits::default()), &());
        let mut beside: Vec<_> = fs::read_dir(self.dir.path()).expect("there").collect();
        beside.sort_by_key(|e| e.as_ref().expect("entry").file_name());
        assert_eq!(
            beside.len(),
            2,
            "something new beside the layer: {beside:?}"
        );
        let outside: Vec<_> = fs::read_dir(self.dir.path().join("outside"))
            .expect("there")
            .collect();
        assert_eq!(outside.len(), 1, "something new outside: {outside:?}");
        let sentinel = self.dir.path().join("outside/sentinel");
        assert_eq!(fs::read_to_string(&sentinel).expect("there"), "untouched");
        assert_eq!(
            fs::metadata(&sentinel).expect("there").nlink(),
            1,
            "linked from inside"
        );
        outcome
    }
}

fn reason(outcome: Result<Unpacked, Stop>) -> String {
    match outcome {
        Err(Stop::Refused { reason, .. }) => reason,
        Err(Stop::Stream(e)) => format!("stream: {e}"),
        other => format!("{other:?}"),
    }
}

fn device(kind: EntryType) -> Tar {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..3].copy_from_slice(b"dev");
    header.set_entry_type(kind);
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header.set_device_major(1).expect("gnu");
    header.set_device_minor(3).expect("gnu");
    Tar::default().header(&header, b"")
}

type Table = Vec<(&'static str, Tar)>;

fn refused(table: Table) {
    for (expected, tar) in table {
        assert_eq!(reason(Field::new().unpack(&tar.end())), expected);
    }
}

fn tar() -> Tar {
    Tar::default()
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let deep = "d/".repeat(65);
    let long = "n".repeat(300);
    let huge = "p/".repeat(30) + &"n".repeat(5000);
    refused(vec![
        ("its name holds `..`", tar().file("../outside/x", "x")),
        ("its name holds `..`", tar().file("a/../../outside/x", "x")),
        ("its name is absolute", tar().file("/abs", "x")),
        ("its name is absolute", tar().dir("/")),
        ("it lies too deep", tar().file(&deep, "x")),
        ("its name is too long", tar().file(&long, "x")),
        ("its name is too long", tar().file(&huge, "x")),
        ("it is a whiteout of no name", tar().file(".wh.", "")),
        ("it is a whiteout of no name", tar().file("d/.wh...", "")),
        ("it lies below a whiteout", tar().file(".wh.d/x", "x")),
        ("it takes the place of the root", tar().file(".", "x")),
        (
            "it takes the place of the root",
            tar().symlink("./", "../outside"),
        ),
    ]);
}

#[test]
fn links_are_never_written_through() {
    const THROUGH: &str = "it leads through a symbolic link";
    const OUTSIDE: &str = "it is a hard link to a file outside this layer";
    const REPLACED: &str = "it replaces a directory of its own layer";
    let link = || tar().symlink("l", "../outside");
    refused(vec![
        (THROUGH, link().file("l/sentinel", "x")),
        (THROUGH, tar().symlink("l", "/").file("l/tmp/x/y", "x")),
        (THROUGH, tar().symlink("l", ".").dir("l/d")),
        (THROUGH, link().file("l/.wh.sentinel", "")),
        (THROUGH, link().file("l/.wh..wh..opq", "")),
        (THROUGH, link().hardlink("h", "l/sentinel")),
        (
            "its name holds `..`",
            tar().hardlink("h", "../outside/sentinel"),
        ),
        ("its name is absolute", tar().hardlink("h", "/etc/passwd")),
        (OUTSIDE, tar().hardlink("h", "absent")),
        (OUTSIDE, tar().hardlink("h", "no/such/parent")),
        (
            "it is a hard link to something that is no file",
            tar().dir("d").hardlink("h", "d"),
        ),
        (
            "it is a hard link to itself or to the root",
            tar().file("h", "x").hardlink("./h", "h"),
        ),
        (
            REPLACED,
            tar()
                .dir("d")
                .symlink("d", "../outside")
                .file("d/sentinel", "x"),
        ),
        (REPLACED, tar().dir("d").file("d", "x")),
        (
            "it lies below something that is no directory",
            tar().file("f", "x").file("f/g", "x"),
        ),
        ("it is a link to nothing", tar().symlink("l", "")),
    ]);
}

#[test]
fn kinds_that_are_no_files_are_refused() {
    const SPARSE: &str = "sparse files are not supported";
    let kind = |kind| tar().entry(kind, b"e", b"", b"");
    refused(vec![
        ("it is a device", device(EntryType::Char)),
        ("it is a device", device(EntryType::Block)),
        ("it is a named pipe", kind(EntryType::Fifo)),
        (SPARSE, kind(EntryType::GNUSparse)),
        (
            SPARSE,
            tar().pax(&[("GNU.sparse.major", b"1")]).file("s", "x"),
        ),
        ("it is of an unknown kind", kind(EntryType::new(b'Z'))),
        (
            "it has content but is no file",
            tar().entry(EntryType::Directory, b"d", b"", b"x"),
        ),
    ]);
}

#[test]
fn headers_that_say_two_things_are_refused() {
    let twice = |second: Tar| second.file("f", "x");
    let long = |tar: Tar| tar.raw(EntryType::GNULongName, b"l", b"", b"b\0");
    let large = vec![b'a'; 2 << 20];
    refused(vec![
        (
            "its two headers disagree on its size",
            tar().pax(&[("size", b"4")]).file("f", "xx"),
        ),
        (
            "its name holds a NUL",
            tar().pax(&[("path", b"a\0b")]).file("f", "x"),
        ),
        (
            "its name holds `..`",
            tar().pax(&[("path", b"../outside/x")]).file("f", "x"),
        ),
        (
            "its name holds `..`",
            tar()
                .pax(&[("linkpath", b"../outside/sentinel")])
                .hardlink("h", "f"),
        ),
        (
            "its owner is out of range",
            tar().pax(&[("uid", b"4294967295")]).file("f", "x"),
        ),
        (
            "an extended header comes twice",
            twice(tar().pax(&[("path", b"a")]).pax(&[("path", b"b")])),
        ),
        (
            "it is named twice",
            twice(long(tar().pax(&[("path", b"a")]))),
        ),
        (
            "the archive ends after an extended header",
            tar().pax(&[("path", b"a")]),
        ),
        (
            "an extended header is too large",
            twice(tar().raw(EntryType::XHeader, b"pax", b"", &large)),
        ),
        (
            "a global header sets fields",
            twice(tar().raw(EntryType::XGlobalHeader, b"g", b"", b"10 path=x\n")),
        ),
    ]);
}

#[derive(Debug, Clone)]
struct Made {
    kind: u8,
    name: String,
    link: String,
    data: Vec<u8>,
}

/// Names and targets from a small set, so that entries meet each other.
fn made() -> impl Strategy<Value = Made> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "outside",
        "sentinel",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
    ]);
    let path = prop::collection::vec(part, 0..5).prop_map(|parts| parts.join("/"));
    let target = prop_oneof![
        path.clone(),
        Just("../outside".to_owned()),
        Just("../../outside".to_owned()),
        Just("/tmp".to_owned()),
    ];
    let kind = prop::sample::select(b"0125127L3456xgK".to_vec());
    let data = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 0..40)];
    (kind, path, target, data).prop_map(|(kind, name, link, data)| Made {
        kind,
        name,
        link,
        data,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_tar_writes_outside(entries in prop::collection::vec(made(), 1..25)) {
        // One by one as well as together: the first refusal must not hide what follows it.
        let field = Field::new();
        let mut whole = Tar::default();
        for entry in &entries {
            let (kind, name, link) = (EntryType::new(entry.kind), &entry.name, &entry.link);
            let one = Tar::default().entry(kind, name.as_bytes(), link.as_bytes(), &entry.data);
            let _ = field.unpack(&one.end());
            whole = whole.entry(kind, name.as_bytes(), link.as_bytes(), &entry.data);
        }
        let _ = Field::new().unpack(&whole.end());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096), at in 0_usize..2048) {
        let _ = Field::new().unpack(&bytes);
        let mut tar = Tar::default().dir("a").file("a/f", "x").symlink("a/l", "/").end();
        for (offset, byte) in bytes.iter().take(8).enumerate() {
            tar[at + offset] = *byte;
        }
        let _ = Field::new().unpack(&tar);
    }
}
