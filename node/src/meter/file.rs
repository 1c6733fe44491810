//! Where the books are kept: `DATA/meter/ledger.json`, replaced whole, so that it is always one
//! book or another and never a part of one.
//!
//! A killed daemon loses what it had not written. A power cut may take a file that was not synced
//! as well, so every so often a second one is written that was.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::ledger::Book;

const NEWEST: &str = "ledger.json";
const SYNCED: &str = "ledger.synced.json";
/// No book of a node is larger: a thousand services with twenty revisions each.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    pub fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join("meter");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// The newest book that can be read; an empty one on a node that never kept any.
    #[must_use]
    pub fn load(&self) -> Book {
        for name in [NEWEST, SYNCED] {
            match read(&self.folder.join(name)) {
                Ok(book) => return book,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = name, %error, "the meter's book cannot be read; an older one is taken");
                }
            }
        }
        Book::default()
    }

    /// Puts the book in the place of the one before.
    pub fn save(&self, book: &[u8], synced: bool) -> io::Result<()> {
        if synced {
            self.replace(SYNCED, book, true)?;
        }
        self.replace(NEWEST, book, synced)
    }

    fn replace(&self, name: &str, book: &[u8], synced: bool) -> io::Result<()> {
        let temporary = self.folder.join(format!("{name}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(book)?;
        if synced {
            file.sync_all()?;
        }
        fs::rename(temporary, self.folder.join(name))
    }
}

fn read(path: &Path) -> io::Result<Book> {
    let bytes = fs::metadata(path)?.len();
    if bytes > MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Ledger;
    use super::*;

    #[test]
    fn a_torn_book_gives_way_to_the_synced_one() {
        let data = tempfile::tempdir().unwrap();
        let files = Files::open(data.path()).unwrap();
        assert!(files.load().services.is_empty(), "a new node");
        let book = |boot: &str| serde_json::to_vec(&Ledger::open(Book::default(), boot).book);
        files.save(&book("one").unwrap(), true).unwrap();
        files.save(&book("two").unwrap(), false).unwrap();
        let boot = || serde_json::to_value(files.load()).unwrap()["boot"].clone();
        assert_eq!(boot(), "two");
        fs::write(data.path().join("meter/ledger.json"), "{\"boot\":\"thr").unwrap();
        assert_eq!(boot(), "one");
        let left = fs::read_dir(data.path().join("meter")).unwrap();
        assert_eq!(left.count(), 2, "no temporary file stays");
    }
}
