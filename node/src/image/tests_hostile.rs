//! Layers that mean harm: what is refused and why, and that nothing is ever written outside.

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::Limits;
use super::field::Field;
use super::testing::Tar;
use super::tests_documents::{mutate, mutations};
use super::unpack::{Stop, Unpacked};

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
        ("it is a whiteout of no name", tar().symlink("d/.wh..", "x")),
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
        (OUTSIDE, tar().file(".wh.a", "").hardlink("h", ".wh.a")),
        (
            "it is a hard link to something that is no file",
            tar().file("d/.wh.a", "").hardlink("h", "d/a"),
        ),
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

#[test]
fn sizes_that_lie_are_an_error_of_the_stream() {
    let sized = |field: &[u8; 12]| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..1].copy_from_slice(b"f");
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.as_old_mut().size = *field;
        tar().header(&header, b"x").file("after", "x").end()
    };
    for field in [
        b"77777777777\0",
        b"-0000000001\0",
        b"00000000009\0",
        b"not a number",
        b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let outcome = Field::new().unpack(&sized(field));
        let expected = matches!(outcome, Err(Stop::Stream(_) | Stop::Refused { .. }));
        assert!(expected, "{field:?}: {outcome:?}");
    }
}

#[test]
fn a_mark_of_another_kind_is_a_mark_and_nothing_else() {
    let field = Field::new();
    let marks = tar()
        .symlink("d/.wh..wh..opq", "../../outside")
        .symlink("e/.wh.gone", "../../outside/sentinel")
        .hardlink("e/.wh.sentinel", "d/x")
        .end();
    assert_eq!(field.unpack(&marks).expect("marks").entries, 3);
    let there = super::field::facts_below(&field.layer());
    assert!(there.keys().all(|path| !path.is_symlink()), "{there:?}");
}

#[test]
fn what_is_refused_is_named_and_named_safely() {
    let table = [
        (tar().file("d/../\x1b[2J\n", "x"), "d/../\\u{1b}[2J\\n"),
        (tar().pax(&[("path", b"p/../q")]).file("f", "x"), "p/../q"),
        (
            tar().raw(EntryType::XHeader, b"head", b"", b"nonsense"),
            "head",
        ),
        (tar().file("last", "x").pax(&[("uid", b"1")]), "last"),
    ];
    for (tar, expected) in table {
        match Field::new().unpack(&tar.end()) {
            Err(Stop::Refused { entry, .. }) => assert_eq!(entry, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let cut = tar()
        .file("whole", "x")
        .file("torn", &"x".repeat(2000))
        .end();
    match Field::new().unpack(&cut[..2500]) {
        Err(Stop::Stream(e)) => assert!(e.to_string().contains("`torn`"), "{e}"),
        other => panic!("{other:?}"),
    }
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

const TOKENS: &[&[u8]] = &[
    b"..",
    b"/",
    b"../../outside/sentinel",
    b".wh.",
    b".wh..wh..opq",
    b"\0",
    b"l/",
    b"path=",
    b"size=99",
    b"77777777777",
    b"\x80",
    b"ustar\0",
    b"GNU.sparse.",
    b"\n",
];

/// Every kind of entry there is.
fn everything() -> Vec<u8> {
    let long = "long/".repeat(5) + &"n".repeat(120);
    tar()
        .dir("d")
        .file("d/f", "content")
        .symlink("l", "../outside")
        .hardlink("h", "d/f")
        .file("d/.wh.gone", "")
        .file("o/.wh..wh..opq", "")
        .pax(&[
            ("path", b"p/q"),
            ("mtime", b"1.5"),
            ("SCHILY.xattr.user.a", b"v"),
        ])
        .file("f", "x")
        .file(&long, "x")
        .raw(EntryType::GNULongLink, b"l", b"", b"../outside/folder\0")
        .symlink("m", "t")
        .end()
}

/// Makes every block that might be a header one.
fn correct_sums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

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
    fn no_changed_tar_writes_outside(changes in mutations(TOKENS), sums in any::<bool>()) {
        let mut tar = everything();
        mutate(&mut tar, &changes);
        if sums {
            // As whoever means it would do.
            correct_sums(&mut tar);
        }
        let field = Field::new();
        let limits = Limits { files: 60, raw: 1 << 20, depth: 8, ..Limits::default() };
        let _ = field.unpack_within(&tar, limits);
        let made = super::field::facts_below(&field.layer()).len();
        prop_assert!(made < 60 + 8 + 2, "{made} files");
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
