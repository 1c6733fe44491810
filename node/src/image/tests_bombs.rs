//! Packed layers that mean harm: bombs, strange streams, promises that are not kept. Each is refused by
//! an error that names the layer, and the entry where there is one, or does no harm.

use std::fs;

use proptest::prelude::*;
use tar::EntryType;

use super::budget::{Budget, Spent};
use super::field::Field;
use super::layer::Layers;
use super::manifest::{LayerPlan, Packing};
use super::testing::{Tar, gzip, temp};
use super::tests_documents::{mutate, mutations};
use super::{Digest, Limits};

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A frame that wants `1 << log` bytes of memory and holds one byte.
fn wide_frame(log: u8) -> Vec<u8> {
    vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 9, 0, 0, b'x']
}

/// A frame every decoder must pass over.
fn skippable(len: u8) -> Vec<u8> {
    let mut frame = vec![0x50, 0x2a, 0x4d, 0x18, len, 0, 0, 0];
    frame.resize(8 + usize::from(len), b'j');
    frame
}

/// Brings in what `packed` is, as whoever made it would describe it; the error's text.
fn bring_in(packing: Packing, packed: &[u8], raw: &[u8], limits: Limits) -> Result<u64, String> {
    let dir = temp();
    fs::create_dir(dir.path().join("layers")).unwrap();
    fs::create_dir(dir.path().join("tmp")).unwrap();
    let layers = Layers::new(dir.path().join("layers"), dir.path().join("tmp"));
    let plan = LayerPlan {
        digest: Digest::of(packed),
        size: packed.len() as u64,
        packing,
        diff_id: Digest::of(raw),
    };
    let outcome = layers.bring_in(packed, &plan, &Budget::new(limits));
    let left = fs::read_dir(dir.path().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "scratch is left");
    assert_eq!(layers.marker(&plan.diff_id).is_some(), outcome.is_ok());
    outcome.map(|marker| marker.entries).map_err(|error| {
        let text = error.to_string();
        assert!(text.contains(plan.diff_id.short()), "no layer in: {text}");
        text
    })
}

type Pack = fn(&[u8]) -> Vec<u8>;
const BOTH: [(Packing, Pack); 2] = [(Packing::Gzip, gzip), (Packing::Zstd, zstd)];

#[test]
fn limits_hold_for_both_packings_and_name_the_entry() {
    let zeros = vec![0; 48 << 20];
    let bomb =
        Tar::default()
            .file("before", "x")
            .entry(EntryType::Regular, b"d/zeros", b"", &zeros);
    let bomb = bomb.end();
    let small: Tar = (0..20).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), "x"));
    let deep = "d/".repeat(40);
    let implied: Tar = (0..3).fold(Tar::default(), |tar, n| {
        tar.file(&format!("{n}/{deep}f"), "")
    });
    let limits = Limits::default();
    for (packing, pack) in BOTH {
        let table = [
            (&bomb, limits, "`d/zeros`", "compression ratio"),
            (
                &bomb,
                Limits {
                    raw: 1 << 20,
                    ..limits
                },
                "`d/zeros`",
                "unpacked size",
            ),
            (
                &small.clone().end(),
                Limits { files: 7, ..limits },
                "`f7`",
                "number of files",
            ),
            (
                &implied.clone().end(),
                Limits {
                    files: 100,
                    ..limits
                },
                "`2/d/",
                "number of files",
            ),
            (
                &implied.clone().end(),
                Limits {
                    depth: 41,
                    ..limits
                },
                "`0/d/",
                "too deep",
            ),
        ];
        for (raw, limits, entry, what) in table {
            let text = bring_in(packing, &pack(raw), raw, limits).unwrap_err();
            assert!(
                text.contains(entry) && text.contains(what),
                "{packing:?}: {text}"
            );
        }
    }
}

#[test]
fn streams_of_many_pieces_are_read_to_their_end() {
    let raw = (0..50)
        .fold(Tar::default(), |tar, n| {
            tar.file(&format!("f{n}"), "content")
        })
        .end();
    for (packing, pack) in BOTH {
        let pieces: Vec<u8> = raw.chunks(700).flat_map(pack).collect();
        assert_eq!(bring_in(packing, &pieces, &raw, Limits::default()), Ok(50));
        // Empty pieces between them cost nothing and hide nothing.
        let empty = [pack(b"").repeat(500), pack(&raw), pack(b"").repeat(500)].concat();
        assert_eq!(bring_in(packing, &empty, &raw, Limits::default()), Ok(50));
    }
    let passed_over = [skippable(200), zstd(&raw), skippable(3)].concat();
    assert_eq!(
        bring_in(Packing::Zstd, &passed_over, &raw, Limits::default()),
        Ok(50)
    );
    // What follows a tar's end is covered by its digest and goes nowhere.
    let followed = [&raw[..], b"more".repeat(1000).as_slice()].concat();
    for (packing, pack) in BOTH {
        assert_eq!(
            bring_in(packing, &pack(&followed), &followed, Limits::default()),
            Ok(50)
        );
    }
}

#[test]
fn streams_that_are_not_what_they_say_are_refused() {
    let raw = Tar::default().file("f", &"content ".repeat(4000)).end();
    let mut wrong_sum = gzip(&raw);
    let sum = wrong_sum.len() - 6;
    wrong_sum[sum] ^= 1;
    let cut = |packed: Vec<u8>| packed[..packed.len() * 2 / 3].to_vec();
    let table = [
        ("zstd, a huge window", Packing::Zstd, wide_frame(31)),
        (
            "zstd, garbage behind",
            Packing::Zstd,
            [zstd(&raw), b"garbage!".to_vec()].concat(),
        ),
        (
            "zstd, a huge window behind",
            Packing::Zstd,
            [zstd(&raw), wide_frame(31)].concat(),
        ),
        ("zstd, cut off", Packing::Zstd, cut(zstd(&raw))),
        (
            "gzip, garbage behind",
            Packing::Gzip,
            [gzip(&raw), b"garbage!".to_vec()].concat(),
        ),
        ("gzip, a wrong sum", Packing::Gzip, wrong_sum),
        ("gzip, cut off", Packing::Gzip, cut(gzip(&raw))),
        ("gzip in gzip", Packing::Gzip, gzip(&gzip(&raw))),
        ("gzip called zstd", Packing::Zstd, gzip(&raw)),
        ("zstd called gzip", Packing::Gzip, zstd(&raw)),
        ("gzip called plain", Packing::Plain, gzip(&raw)),
        ("nothing at all", Packing::Gzip, Vec::new()),
    ];
    for (what, packing, packed) in table {
        let outcome = bring_in(packing, &packed, &raw, Limits::default());
        assert!(outcome.is_err(), "{what}");
    }
}

#[test]
fn names_cost_too() {
    let budget = Budget::new(Limits::default());
    let names = |names| Spent {
        names,
        ..Spent::default()
    };
    assert!(budget.charge(names(64 << 20)).is_ok());
    let error = budget.entry(1).unwrap_err();
    assert!(error.to_string().contains("file names"), "{error}");
    assert!(budget.charge(names(u64::MAX)).is_err());
}

#[test]
fn floods_of_attributes_and_headers_do_no_harm() {
    let value = [b'v'; 60];
    let names: Vec<String> = (0..2000)
        .map(|n| format!("SCHILY.xattr.user.flood{n}"))
        .collect();
    let flood: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), &value[..]))
        .collect();
    let huge = vec![b'v'; 70_000];
    let not_an_images: [(&str, &[u8]); 7] = [
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
        ("SCHILY.xattr.security.selinux", b"system_u"),
        ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("SCHILY.xattr.user.overlay.redirect", b"/outside"),
        ("SCHILY.xattr.user.huge", &huge),
    ];
    let headers = (0..300).fold(Tar::default(), |tar, _| {
        tar.raw(EntryType::XGlobalHeader, b"g", b"", b"")
    });
    let field = Field::new();
    let tar = headers
        .pax(&flood)
        .file("flooded", "x")
        .pax(&not_an_images)
        .dir("plain")
        .end();
    assert_eq!(field.unpack(&tar).unwrap().entries, 2);
    assert!(super::field::xattrs(&field.layer().join("plain")).is_empty());
}

/// The beginnings of members, frames and blocks.
const TOKENS: &[&[u8]] = &[
    b"\x1f\x8b\x08\0\0\0\0\0\0\0",
    b"\x28\xb5\x2f\xfd\0\xf8",
    b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
    b"\x03\0\xff\xff",
    b"\0\0\xff\xff",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn changed_streams_are_unpacked_or_refused(which in 0..2_usize, changes in mutations(TOKENS)) {
        let raw = Tar::default().dir("d").file("d/f", &"content ".repeat(300)).end();
        let (packing, pack) = BOTH[which];
        let mut packed = pack(&raw);
        mutate(&mut packed, &changes);
        let limits = Limits { raw: 1 << 20, ..Limits::default() };
        // Described as it is now: only the diff id still speaks of the honest one.
        if let Ok(entries) = bring_in(packing, &packed, &raw, limits) {
            prop_assert_eq!(entries, 2);
        }
    }
}
