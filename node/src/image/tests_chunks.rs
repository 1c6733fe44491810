//! A tree gives its tar back, byte for byte, and what is told of it is refused when it is nonsense.

use std::fs;
use std::io::Read as _;

use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;

use super::budget::Budget;
use super::chunks::{ChunkList, Cutting};
use super::layer::Layers;
use super::manifest::{LayerPlan, Packing};
use super::recipe::{Recipe, Segment};
use super::testing::{Tar, temp};
use super::{Digest, Limits};

fn layers(dir: &TempDir) -> Layers {
    for part in ["layers", "tmp"] {
        fs::create_dir(dir.path().join(part)).unwrap();
    }
    Layers::new(dir.path().join("layers"), dir.path().join("tmp"))
}

fn keep(layers: &Layers, tar: &[u8]) -> Digest {
    let diff_id = Digest::of(tar);
    let plan = LayerPlan {
        digest: diff_id.clone(),
        size: tar.len() as u64,
        packing: Packing::Plain,
        diff_id: diff_id.clone(),
    };
    let budget = Budget::new(Limits::default());
    layers.bring_in(tar, &plan, &budget).unwrap();
    diff_id
}

/// The whole tar, read back chunk by chunk, each verified.
fn read_back(layers: &Layers, diff_id: &Digest) -> Option<Vec<u8>> {
    let list = layers.chunk_list(diff_id).unwrap()?;
    let mut raw = layers.raw(diff_id).unwrap().expect("both or none");
    let (mut all, mut bytes) = (Vec::new(), Vec::new());
    for chunk in &list.chunks {
        raw.read_at(chunk.offset, chunk.len, &mut bytes).unwrap();
        assert!(chunk.holds(&bytes), "at {}", chunk.offset);
        all.extend_from_slice(&bytes);
    }
    assert_eq!(all.len() as u64, list.raw);
    Some(all)
}

/// Bytes that neither repeat nor depend on a run.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(step).collect()
}

fn every_kind() -> Vec<u8> {
    let long = format!("d/{}", "n".repeat(180));
    Tar::default()
        .dir("./")
        .dir("d/")
        .file("./d//odd-name", "content")
        .entry(EntryType::Regular, b"d/big", b"", &noise(300_000, 7))
        .entry(EntryType::Regular, b"d/exact", b"", &noise(512, 8))
        .file("d/empty", "")
        .file(&long, "behind a long name")
        .pax(&[("path", b"d/by-pax"), ("mtime", b"7.5")])
        .file("short", "behind a pax name")
        .hardlink("d/again", "d/big")
        .symlink("d/link", "/etc/passwd")
        .file("d/.wh.gone", "")
        .file("d/.wh..wh..opq", "")
        .entry(EntryType::Continuous, b"d/contiguous", b"", b"c")
        .end()
}

#[test]
fn a_tree_gives_its_tar_back_whatever_is_in_it() {
    let dir = temp();
    let layers = layers(&dir);
    let mut tar = every_kind();
    // What follows an archive's end counts too.
    tar.extend_from_slice(&noise(70_000, 9));
    let diff_id = keep(&layers, &tar);
    assert!(read_back(&layers, &diff_id).unwrap() == tar);
    let (mut raw, mut middle) = (layers.raw(&diff_id).unwrap().unwrap(), Vec::new());
    raw.read_at(1000, 50_000, &mut middle).unwrap();
    assert!(middle == tar[1000..51_000]);
    assert!(raw.read_at(tar.len() as u64 - 1, 2, &mut middle).is_err());
    // The contents are in the tree, and only there.
    let beside = |name| layers.folder(&diff_id).join(name).metadata().unwrap().len();
    assert!(beside("recipe") + beside("chunks") < 80_000);
}

#[test]
fn a_tar_that_replaces_its_own_file_is_kept_without_a_record() {
    let replacing: [fn(Tar) -> Tar; 4] = [
        |tar| tar.file("f", "second"),
        |tar| tar.symlink("f", "x"),
        |tar| tar.hardlink("f", "g"),
        |tar| tar.dir("f"),
    ];
    let dir = temp();
    let layers = layers(&dir);
    for replace in replacing {
        let tar = Tar::default().file("g", "other").file("f", "first");
        let diff_id = keep(&layers, &replace(tar).end());
        assert!(layers.marker(&diff_id).is_some());
        assert!(layers.recipe(&diff_id).unwrap().is_none());
        assert!(layers.chunk_list(&diff_id).unwrap().is_none());
    }
}

fn entries() -> impl Strategy<Value = Vec<(u8, u8, usize)>> {
    prop::collection::vec((0..8u8, any::<u8>(), 0..40_000usize), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_tar_comes_back_or_has_no_record(entries in entries(), behind in 0..3000usize) {
        let mut tar = Tar::default().file("first", "there");
        let mut twice = false;
        let mut names = std::collections::BTreeSet::new();
        for (kind, name, size) in entries {
            let path = format!("d{}/{}", name % 3, "n".repeat(usize::from(name).max(1)));
            let data = noise(size, u64::from(name));
            twice |= !names.insert(path.clone());
            tar = match kind {
                0 => tar.symlink(&path, "anywhere"),
                1 => tar.hardlink(&path, "first"),
                2 => tar.pax(&[("path", path.as_bytes())]).entry(EntryType::Regular, b"p", b"", &data),
                3 => tar.file(&format!("d{}/.wh.{name}", name % 3), ""),
                _ => tar.entry(EntryType::Regular, path.as_bytes(), b"", &data),
            };
        }
        let mut tar = tar.end();
        tar.extend_from_slice(&noise(behind, 3));
        let dir = temp();
        let layers = layers(&dir);
        let diff_id = keep(&layers, &tar);
        match read_back(&layers, &diff_id) {
            Some(back) => prop_assert!(back == tar),
            None => prop_assert!(twice, "nothing was replaced"),
        }
    }

    #[test]
    fn cutting_does_not_depend_on_how_bytes_arrive(len in 0..900_000usize, piece in 1..200_000usize) {
        let bytes = noise(len, 5);
        let mut whole = Cutting::new(&bytes[..]);
        std::io::copy(&mut whole, &mut std::io::sink()).unwrap();
        let mut pieces = Cutting::new(&bytes[..]);
        let mut buffer = vec![0; piece];
        while pieces.read(&mut buffer).unwrap() > 0 {}
        let (whole, pieces) = (whole.finish().1.unwrap(), pieces.finish().1.unwrap());
        prop_assert_eq!(&whole, &pieces);
        prop_assert_eq!(whole.raw, len as u64);
        prop_assert_eq!(&ChunkList::decode(&whole.encode().unwrap()[..]).unwrap(), &whole);
    }

    #[test]
    fn nonsense_is_refused_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Recipe::decode(&bytes[..]);
        let _ = ChunkList::decode(&bytes[..]);
        let mut packed = vec![1];
        packed.extend(zstd::encode_all(&bytes[..], 1).unwrap());
        let _ = Recipe::decode(&packed[..]);
        let _ = ChunkList::decode(&packed[..]);
        bytes.clear();
    }
}

#[test]
fn a_recipe_names_only_what_may_be_in_a_tree() {
    let file = |path: &[u8], len| Segment::File {
        path: path.to_vec(),
        offset: 3,
        len,
    };
    let decoded = |segment| Recipe::decode(&Recipe::new(vec![segment]).encode().unwrap()[..]);
    assert!(decoded(file(b"a/b", 1)).is_ok());
    for path in [&b"/a"[..], b"../a", b"a/../b", b"", b".", b"a\0", b"a//b"] {
        assert!(decoded(file(path, 1)).is_err(), "{path:?}");
    }
    assert!(decoded(file(b"a", 0)).is_err(), "nothing of a file");
    assert!(decoded(file(b"a", u64::MAX >> 1)).is_err(), "too much");
    let bytes = Recipe::new(vec![file(b"a", 9)]).encode().unwrap();
    for cut in 0..bytes.len() {
        assert!(Recipe::decode(&bytes[..cut]).is_err(), "{cut}");
    }
}
