//! What a well-meant layer keeps, and what it takes for a layer to be kept at all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use tar::{EntryType, Header};
use tempfile::TempDir;

use super::budget::Budget;
use super::layer::Layers;
use super::manifest::{LayerPlan, Packing};
use super::testing::{Tar, gzip, temp};
use super::unpack::{Stop, Unpacked};
use super::{Digest, ImageError, Limits};

use super::field::{Field, xattrs};

#[test]
fn a_cut_off_or_damaged_tar_is_an_error_of_the_stream() {
    let whole = Tar::default().file("f", &"x".repeat(2000)).end();
    for cut in [100, 600, 1500] {
        let outcome = Field::new().unpack(&whole[..cut]);
        assert!(
            matches!(outcome, Err(Stop::Stream(_))),
            "{cut}: {outcome:?}"
        );
    }
    let mut damaged = whole;
    damaged[0] ^= 1;
    assert!(matches!(
        Field::new().unpack(&damaged),
        Err(Stop::Stream(_))
    ));
    assert!(
        Field::new().unpack(&[]).is_ok(),
        "an empty layer is a layer"
    );
}

#[test]
fn what_a_layer_says_of_its_files_is_kept() {
    let mut setuid = Header::new_gnu();
    setuid.as_old_mut().name[..2].copy_from_slice(b"su");
    setuid.set_entry_type(EntryType::Regular);
    setuid.set_mode(0o4755);
    setuid.set_uid(7);
    setuid.set_gid(8);
    setuid.set_mtime(1_234_567_890);
    setuid.set_size(1);
    let tar = Tar::default()
        .dir("./")
        .dir("d")
        .header(&setuid, b"s")
        .hardlink("d/again", "su")
        .symlink("d/abs", "/etc/passwd")
        .hardlink("d/abs2", "d/abs")
        .pax(&[
            ("mtime", b"99.5"),
            ("SCHILY.xattr.user.note", b"kept"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/outside"),
        ])
        .file("implied/parents/f", "x")
        .file("f", "first")
        .hardlink("g", "f")
        .file("f", "second")
        .entry(EntryType::Regular, b"old-style-dir/", b"", b"")
        .end();
    let field = Field::new();
    let unpacked = field.unpack(&tar).unwrap();
    assert_eq!(
        unpacked,
        Unpacked {
            entries: 11,
            opaque_root: false
        }
    );
    let at = |name: &str| field.layer().join(name);
    let meta = fs::metadata(at("su")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o4755, 7, 8)
    );
    assert_eq!((meta.mtime(), meta.nlink()), (1_234_567_890, 2));
    assert_eq!(
        fs::read_link(at("d/abs2")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(
        fs::metadata(at("d")).unwrap().mtime(),
        1_000_000_000,
        "after its files"
    );
    let odd = fs::metadata(at("implied/parents/f")).unwrap();
    assert_eq!((odd.mtime(), odd.mtime_nsec()), (99, 500_000_000));
    assert_eq!(
        fs::metadata(at("implied")).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert_eq!(
        xattrs(&at("implied/parents/f")),
        BTreeMap::from([("user.note".into(), b"kept".to_vec())])
    );
    assert_eq!(
        fs::read_to_string(at("g")).unwrap(),
        "first",
        "a new file, not a write through"
    );
    assert_eq!(fs::read_to_string(at("f")).unwrap(), "second");
    assert!(at("old-style-dir").is_dir());
}

fn is_whiteout(path: &Path) -> bool {
    let meta = fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[test]
fn whiteouts_become_overlayfss() {
    let tar = Tar::default()
        .file("etc/.wh.gone", "")
        .file("etc/.wh.back", "")
        .file("etc/back", "again")
        .file("etc/here", "x")
        .file("etc/.wh.here", "")
        .file(".wh.tree", "")
        .file("tree/new", "x")
        .dir("own")
        .file(".wh.own", "")
        .file("wiped/.wh..wh..opq", "")
        .file("wiped/new", "x")
        .file(".wh..wh.plnk", "")
        .end();
    let field = Field::new();
    assert!(!field.unpack(&tar).unwrap().opaque_root);
    let at = |name: &str| field.layer().join(name);
    let opaque = BTreeMap::from([("trusted.overlay.opaque".to_owned(), b"y".to_vec())]);
    assert!(is_whiteout(&at("etc/gone")));
    assert_eq!(fs::read_to_string(at("etc/back")).unwrap(), "again");
    assert_eq!(
        fs::read_to_string(at("etc/here")).unwrap(),
        "x",
        "of this layer: stays"
    );
    for dir in ["tree", "own", "wiped"] {
        assert_eq!(xattrs(&at(dir)), opaque, "{dir}");
    }
    assert!(at("wiped/new").exists() && at("tree/new").exists());
    assert!(xattrs(&at("etc")).is_empty());
    assert!(!at(".wh..wh.plnk").exists());

    let field = Field::new();
    assert!(
        field
            .unpack(&Tar::default().file(".wh..wh..opq", "").end())
            .unwrap()
            .opaque_root
    );
}

fn layers(dir: &TempDir) -> Layers {
    fs::create_dir(dir.path().join("layers")).unwrap();
    fs::create_dir(dir.path().join("tmp")).unwrap();
    Layers::new(dir.path().join("layers"), dir.path().join("tmp"))
}

fn plan(packed: &[u8], raw: &[u8], packing: Packing) -> LayerPlan {
    let (digest, size) = (Digest::of(packed), packed.len() as u64);
    LayerPlan {
        digest,
        size,
        packing,
        diff_id: Digest::of(raw),
    }
}

#[test]
fn a_damaged_layer_makes_way_for_a_whole_one() {
    let dir = temp();
    let layers = layers(&dir);
    let raw = Tar::default().file("f", "content").end();
    let good = plan(&raw, &raw, Packing::Plain);
    let budget = || Budget::new(Limits::default());
    let marker = layers.bring_in(&raw[..], &good, &budget()).unwrap();
    let complete = layers.content(&good.diff_id).with_file_name("complete");
    fs::write(complete, "{").unwrap();
    assert_eq!(layers.marker(&good.diff_id), None);
    layers.bring_in(&raw[..], &good, &budget()).unwrap();
    assert_eq!(layers.marker(&good.diff_id), Some(marker));
}

#[test]
fn a_layer_is_kept_only_when_both_digests_fit() {
    let dir = temp();
    let layers = layers(&dir);
    let raw = Tar::default().file("f", "content").end();
    let other = Tar::default().file("f", "another").end();
    let budget = Budget::new(Limits::default());
    let packings = [
        (Packing::Plain, raw.clone()),
        (Packing::Gzip, gzip(&raw)),
        (Packing::Zstd, zstd::encode_all(&raw[..], 1).unwrap()),
    ];
    for (packing, packed) in &packings {
        let good = plan(packed, &raw, *packing);
        let wrong_digest = LayerPlan {
            digest: Digest::of(b"else"),
            ..good.clone()
        };
        let error = layers
            .bring_in(&packed[..], &wrong_digest, &budget)
            .unwrap_err();
        assert!(
            matches!(error, ImageError::DigestMismatch { .. }),
            "{packing:?}: {error}"
        );
        let wrong_diff_id = LayerPlan {
            diff_id: Digest::of(&other),
            ..good.clone()
        };
        let error = layers
            .bring_in(&packed[..], &wrong_diff_id, &budget)
            .unwrap_err();
        assert!(
            error.to_string().contains("unpacked"),
            "{packing:?}: {error}"
        );
        let mut longer = packed.clone();
        longer.extend_from_slice(&[0; 700]);
        let error = layers.bring_in(&longer[..], &good, &budget).unwrap_err();
        assert!(
            matches!(error, ImageError::SizeMismatch { .. }),
            "{packing:?}: {error}"
        );
        let mut flipped = packed.clone();
        let middle = flipped.len() / 3;
        flipped[middle] ^= 0x55;
        let error = layers.bring_in(&flipped[..], &good, &budget).unwrap_err();
        assert!(
            matches!(error, ImageError::DigestMismatch { .. }),
            "{packing:?}: {error}"
        );
        assert!(layers.marker(&good.diff_id).is_none());

        let marker = layers.bring_in(&packed[..], &good, &budget).unwrap();
        assert_eq!((marker.raw, marker.entries), (raw.len() as u64, 1));
        assert_eq!(layers.marker(&good.diff_id), Some(marker));
        drop(layers.take_away(&good.diff_id).unwrap());
    }
    assert_eq!(
        fs::read_dir(dir.path().join("tmp")).unwrap().count(),
        0,
        "scratch is left"
    );
}

#[test]
fn a_layer_without_its_marker_is_not_there() {
    let dir = temp();
    let layers = layers(&dir);
    let raw = Tar::default().file("f", "x").end();
    let plan = plan(&raw, &raw, Packing::Plain);
    layers
        .bring_in(&raw[..], &plan, &Budget::new(Limits::default()))
        .unwrap();
    let marker = dir
        .path()
        .join("layers")
        .join(plan.diff_id.hex())
        .join("complete");
    fs::write(&marker, "{").unwrap();
    assert!(layers.marker(&plan.diff_id).is_none());
}

#[test]
fn bombs_are_stopped_by_their_limit() {
    let dir = temp();
    let layers = layers(&dir);
    // 64 MiB of zeros: about 64 KiB of gzip.
    let zeros = vec![0; 64 << 20];
    let bomb = Tar::default()
        .entry(EntryType::Regular, b"zeros", b"", &zeros)
        .end();
    let packed = gzip(&bomb);
    let bomb = plan(&packed, &bomb, Packing::Gzip);
    let many: Vec<u8> = (0..50)
        .fold(Tar::default(), |t, n| t.file(&format!("f{n}"), "x"))
        .end();
    let many_plan = plan(&many, &many, Packing::Plain);
    let limits = Limits::default();
    let table = [
        (limits, &bomb, &packed, "ratio"),
        (
            Limits {
                raw: 1 << 20,
                ..limits
            },
            &bomb,
            &packed,
            "unpacked size",
        ),
        (
            Limits {
                files: 10,
                ..limits
            },
            &many_plan,
            &many,
            "number of files",
        ),
    ];
    for (limits, plan, packed, what) in table {
        let error = layers
            .bring_in(&packed[..], plan, &Budget::new(limits))
            .unwrap_err();
        assert!(
            matches!(error, ImageError::TooLarge { .. }),
            "{what}: {error}"
        );
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    assert_eq!(
        fs::read_dir(dir.path().join("tmp")).unwrap().count(),
        0,
        "scratch is left"
    );
}
