//! The image store of a node as it lies on its disk, read without asking the node: whether all that is
//! recorded is there and nothing else is, and what exactly the layers hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What a layer's folder has beside its tree once it is whole.
const PROOFS: [&str; 3] = ["complete", "recipe", "chunks"];

/// Every file of the layers with its owner, mode, time and bytes, in words that can be compared.
pub type Content = BTreeMap<PathBuf, String>;

/// The digests of the images recorded in `store`, a node's `images`. Looks into `index`, `layers`,
/// `blobs` and `tmp`: layers and documents must be those of the recorded images, each whole, and
/// nothing may be half-made. In `partial` a part of a layer may wait for its rest.
pub fn whole(store: &Path) -> Result<BTreeSet<String>> {
    let (mut images, mut layers, mut blobs) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for name in names(&store.join("index"))? {
        let record: Value = serde_json::from_slice(&fs::read(store.join("index").join(&name))?)?;
        let manifest = name.trim_end_matches(".json").to_owned();
        let ids = record["layers"].as_array().context("no layers")?;
        layers.extend(ids.iter().filter_map(hex));
        blobs.extend(hex(&record["configDigest"]));
        blobs.insert(manifest.clone());
        images.insert(format!("sha256:{manifest}"));
    }
    same("layers", &names(&store.join("layers"))?, &layers)?;
    same("documents", &names(&store.join("blobs/sha256"))?, &blobs)?;
    for layer in &layers {
        let folder = store.join("layers").join(layer);
        for proof in PROOFS {
            ensure!(folder.join(proof).exists(), "layer {layer} has no {proof}");
        }
    }
    for blob in &blobs {
        let bytes = fs::read(store.join("blobs/sha256").join(blob))?;
        ensure!(digest(&bytes) == *blob, "document {blob} has other bytes");
    }
    let scratch = names(&store.join("tmp"))?;
    ensure!(scratch.is_empty(), "left in tmp: {scratch:?}");
    Ok(images)
}

/// That no part of a layer waits for its rest either.
pub fn nothing_partial(store: &Path) -> Result<()> {
    let partial = names(&store.join("partial"))?;
    ensure!(partial.is_empty(), "left in partial: {partial:?}");
    Ok(())
}

/// All that the layers hold, with what lies beside their trees.
pub fn content(store: &Path) -> Result<Content> {
    let (root, mut found) = (store.join("layers"), Content::new());
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for name in names(&folder)? {
            let path = folder.join(name);
            let meta = fs::symlink_metadata(&path)?;
            let bytes = if meta.is_dir() {
                folders.push(path.clone());
                String::new()
            } else if meta.is_symlink() {
                fs::read_link(&path)?.display().to_string()
            } else {
                digest(&fs::read(&path)?)
            };
            let inside = path.strip_prefix(&root)?.to_owned();
            // Of what the node itself wrote, the time says nothing.
            let of_image = inside.iter().nth(1).is_some_and(|at| at == "fs");
            let time = if of_image { meta.mtime() } else { 0 };
            let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
            found.insert(inside, format!("{mode:o} {uid}:{gid} {time} {bytes}"));
        }
    }
    Ok(found)
}

/// That two nodes, or two lives of one, hold the same.
pub fn equal(here: &Content, there: &Content) -> Result<()> {
    let differs = |path: &&PathBuf| here.get(*path) != there.get(*path);
    let paths: BTreeSet<_> = here.keys().chain(there.keys()).collect();
    let odd: Vec<_> = paths.into_iter().filter(differs).take(10).collect();
    ensure!(odd.is_empty(), "these differ: {odd:?}");
    Ok(())
}

fn hex(id: &Value) -> Option<String> {
    Some(id.as_str()?.split_once(':')?.1.to_owned())
}

fn digest(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let entries: Result<Vec<_>, _> = entries.collect();
    let names = entries?.into_iter().map(|entry| entry.file_name());
    Ok(names.map(|n| n.to_string_lossy().into_owned()).collect())
}

fn same(what: &str, there: &BTreeSet<String>, recorded: &BTreeSet<String>) -> Result<()> {
    let odd: Vec<_> = there.symmetric_difference(recorded).collect();
    ensure!(odd.is_empty(), "{what} and records differ: {odd:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Harm = fn(&Path) -> std::io::Result<()>;

    /// A store with one image of one layer.
    fn store() -> Result<(tempfile::TempDir, PathBuf)> {
        let home = tempfile::tempdir()?;
        let store = home.path().to_owned();
        for folder in ["index", "layers/aa/fs", "blobs/sha256", "tmp", "partial"] {
            fs::create_dir_all(store.join(folder))?;
        }
        for proof in PROOFS {
            fs::write(store.join("layers/aa").join(proof), proof)?;
        }
        fs::write(store.join("layers/aa/fs/file"), "bytes")?;
        let (manifest, config) = (digest(b"manifest"), digest(b"config"));
        let blobs = store.join("blobs/sha256");
        fs::write(blobs.join(&manifest), "manifest")?;
        fs::write(blobs.join(&config), "config")?;
        let record = serde_json::json!({
            "layers": ["sha256:aa"], "configDigest": format!("sha256:{config}"),
        });
        let index = store.join(format!("index/{manifest}.json"));
        fs::write(index, record.to_string())?;
        Ok((home, store))
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_seen() -> Result<()> {
        let harms: [(&str, Harm); 6] = [
            ("layers", |s| fs::create_dir(s.join("layers/bb"))),
            ("layers", |s| fs::remove_dir_all(s.join("layers/aa"))),
            ("no recipe", |s| fs::remove_file(s.join("layers/aa/recipe"))),
            ("documents", |s| fs::write(s.join("blobs/sha256/cc"), "")),
            ("other bytes", |s| {
                fs::write(s.join("blobs/sha256").join(digest(b"config")), "confih")
            }),
            ("tmp", |s| fs::write(s.join("tmp/1-1"), "")),
        ];
        for (says, harm) in harms {
            let (_home, store) = store()?;
            ensure!(whole(&store)?.len() == 1);
            harm(&store)?;
            let found = whole(&store).err().context("nothing was seen")?;
            ensure!(found.to_string().contains(says), "{says}: {found}");
        }
        Ok(())
    }

    #[test]
    fn another_byte_mode_or_file_is_a_difference() -> Result<()> {
        let (_home, store) = store()?;
        let before = content(&store)?;
        equal(&before, &content(&store)?)?;
        let file = store.join("layers/aa/fs/file");
        let bytes = fs::metadata(&file)?;
        fs::write(&file, "Bytes")?;
        ensure!(equal(&before, &content(&store)?).is_err());
        fs::write(&file, "bytes")?;
        fs::File::options()
            .write(true)
            .open(&file)?
            .set_modified(bytes.modified()?)?;
        equal(&before, &content(&store)?)?;
        fs::write(store.join("layers/aa/fs/more"), "")?;
        ensure!(equal(&before, &content(&store)?).is_err());
        Ok(())
    }
}
