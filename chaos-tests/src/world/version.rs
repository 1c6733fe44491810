//! The next version of an image: the same files but for a few.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::standard::Standard;
use super::{World, image, run};

impl World {
    /// Packs what is below a folder as a layer for [`World::push`].
    pub fn pack(&self, root: &Path, name: &str) -> Result<PathBuf> {
        let layer = self.dir().join(format!("{name}.tar"));
        image::pack(root, &layer)?;
        Ok(layer)
    }

    /// A folder with the files of a real program's image.
    pub fn files(&self, program: Standard) -> Result<PathBuf> {
        let (layout, name) = program.layout()?;
        let root = self.dir().join(format!("{name}-files"));
        let tagged = format!("{}:{name}", layout.display());
        let root_name = root.to_string_lossy();
        run("umoci", ["raw", "unpack", "--image", &tagged, &*root_name])?.ok()?;
        Ok(root)
    }
}

/// Writes a file that does not pack, the same for the same seed.
pub fn noise(file: &Path, bytes: u64, seed: u64) -> Result<()> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    let content: Vec<u8> = std::iter::repeat_with(step)
        .take(usize::try_from(bytes)?)
        .collect();
    let mut file = File::create(file).with_context(|| file.display().to_string())?;
    Ok(file.write_all(&content)?)
}

/// Gives every `each`th file below a folder other content of the same size, all of it; how many.
pub fn change(root: &Path, each: usize) -> Result<usize> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    let mut changed = 0;
    for (file, seed) in files.iter().skip(each / 2).step_by(each).zip(1..) {
        noise(file, fs::metadata(file)?.len(), seed)?;
        changed += 1;
    }
    Ok(changed)
}

/// The regular files, in the order of their names.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    for path in paths {
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            collect(&path, files)?;
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_is_another_of_the_same_size() -> Result<()> {
        let home = tempfile::tempdir()?;
        fs::create_dir(home.path().join("d"))?;
        let file = |n: u64| home.path().join("d").join(format!("{n:02}"));
        for n in 0..20 {
            noise(&file(n), 100, 1000 + n)?;
        }
        let read = || -> Result<Vec<Vec<u8>>> { (0..20).map(|n| Ok(fs::read(file(n))?)).collect() };
        let before = read()?;
        assert_eq!(change(home.path(), 10)?, 2);
        let after = read()?;
        let differ = before.iter().zip(&after).filter(|(b, a)| b != a).count();
        assert_eq!(differ, 2);
        assert!(after.iter().all(|content| content.len() == 100));
        Ok(())
    }
}
